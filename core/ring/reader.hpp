// A reader's side of the ring protocol, see message.hpp.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

class RingReader {
 public:
  static constexpr std::uint64_t kVacant = Seat::pack(0, SeatState::vacant);

  // Takes the seat `index`, in which `found` was seen: a vacant one, or that of a reader which has
  // died (the caller knows) and whose place is taken. False if it is not like that any more.
  static bool attach(const Segment& segment, std::uint32_t index, const Identity& who,
                     std::uint64_t found = kVacant) {
    Member& member = segment.member(index);
    Lobby& lobby = segment.lobby();
    const auto seat = std::atomic_ref(member.seat);
    const bool is_first = found == kVacant;
    const auto taken = is_first ? SeatState::attached : SeatState::claimed;
    // seq_cst: pairs with attached_readers(), looked at between announce() and park(); acquire: of
    // two who want the seat one gets it, and what its last owner did is over. relaxed on failure:
    // nothing is read.
    if (!seat.compare_exchange_strong(found, Seat::pack(who.pid, taken), std::memory_order_seq_cst,
                                      std::memory_order_relaxed)) {
      return false;
    }
    put(member.identity.pid_namespace, who.pid_namespace);
    // release: pairs with peers(); who sees the start time sees the rest.
    std::atomic_ref(member.identity.start_time).store(who.start_time, std::memory_order_release);
    if (!is_first) {
      // What the dead one held in the arena is free now, even if we leave before we are attached.
      // relaxed: ordered by the store below.
      for (std::uint32_t extent = 0; extent < segment.geometry().extents; ++extent) {
        std::atomic_ref(segment.held(index, extent)).store(0, std::memory_order_relaxed);
      }
      // seq_cst: the writer does not wait for the dead one any longer, as after leave(). Over
      // before the writer can attach us, in RingWriter::admit().
      std::atomic_ref(member.consumed).store(kNever, std::memory_order_seq_cst);
      // release: who sees the state sees all this.
      seat.store(Seat::pack(who.pid, SeatState::rejoining), std::memory_order_release);
      // release: pairs with the acquire in RingWriter::begin().
      std::atomic_ref(lobby.rejoins).fetch_add(1, std::memory_order_release);
    }
    // relaxed: a hint that there is somebody to look at.
    std::atomic_ref(lobby.arrivals).fetch_add(1, std::memory_order_relaxed);
    Gate(segment.writer_seat().gate).wake();
    Gate(lobby.gate).wake();
    return true;
  }

  // The seat was taken by attach(), with the same `found`.
  RingReader(Segment segment, std::uint32_t index, const WaitPolicy& policy,
             std::uint64_t found = kVacant)
      : waiter(policy, segment.reader_figures(index)),
        segment_(segment),
        figures_(segment.reader_figures(index)),
        index_(index),
        next_(found == kVacant ? 0 : kNotAdmitted) {}

  Waiter waiter;

  // A message's start lies ready: begin() will not wait.
  bool has_message() const {
    return readable() && Descriptor::starts(peek(segment_.slot_of(next_).descriptor));
  }

  // Waits for the next message. After `ready`, frame_count() and its table tell what it holds.
  template <class Stop>
  Outcome begin(std::int64_t deadline_ns, Stop stop) {
    for (;;) {
      if (next_ == kNotAdmitted) {
        const Outcome outcome = wait_admitted(deadline_ns, stop);
        if (outcome != Outcome::ready) return outcome;
      }
      const Outcome outcome = wait_readable(deadline_ns, stop, Beat::yes);
      if (outcome != Outcome::ready) return outcome;
      const Slot& slot = segment_.slot_of(next_);
      const std::uint64_t word = peek(slot.descriptor);  // once: what is checked is what is used
      if (Descriptor::starts(word)) {
        waiter.arrived(slot.sent_ns);
        frames_ = Descriptor::frames(word);
        remaining_ = Descriptor::bytes(word);
        if (table_bytes(frames_) > remaining_) corrupted(word);
        one_slot_ = remaining_ <= capacity();
        first_ = next_;
        cursor_ = 0;
        return Outcome::ready;
      }
      release_slot();  // the rest of a message that was drop()ped
    }
  }

  std::uint64_t frame_count() const { return frames_; }

  // The message lies in one slot: fetch() will not wait.
  bool is_immediate() const { return one_slot_; }

  // The frame table, after it was fetched; or the one frame's size.
  void check_entries(std::span<const std::uint64_t> entries) const {
    std::uint64_t left = remaining_;
    for (const std::uint64_t entry : entries) {
      const std::uint64_t size = FrameEntry::inline_bytes(entry);
      if (size > left) corrupted(size);
      left -= size;
    }
    if (left != 0) corrupted(left);
  }
  std::uint64_t remaining() const { return remaining_; }

  // Sets where the next bytes of the message go.
  void into(std::span<const MutablePiece> pieces) {
    pieces_.assign(pieces.begin(), pieces.end());
    piece_ = 0;
    offset_ = 0;
  }

  // Fills the pieces set by into(). `abandoned`: the writer gave the message up, begin() the next.
  template <class Stop>
  Outcome fetch(std::int64_t deadline_ns, Stop stop) {
    while (piece_ != pieces_.size()) {
      const MutablePiece& piece = pieces_[piece_];
      if (piece.size == offset_) {
        ++piece_;
        offset_ = 0;
        continue;
      }
      if (cursor_ == capacity()) release_slot();
      if (cursor_ == 0 && next_ != first_) {
        const Outcome outcome = wait_readable(deadline_ns, stop, Beat::no);
        if (outcome != Outcome::ready) return outcome;
        waiter.done();
        if (Descriptor::starts(segment_.slot_of(next_).descriptor)) {
          add(figures_.abandoned, 1);
          return Outcome::abandoned;
        }
      }
      const std::size_t n = std::min(piece.size - offset_, capacity() - cursor_);
      std::memcpy(piece.data + offset_, segment_.slot_of(next_).payload() + cursor_, n);
      offset_ += n;
      cursor_ += n;
      remaining_ -= n;
    }
    return Outcome::ready;
  }

  // Gives the message's last slot back, after all of it was fetched.
  void end(std::uint64_t payload) {
    release_slot();
    add(figures_.messages, 1);
    add(figures_.bytes, payload);
  }

  // Gives up on the message that begin() found: the next begin() skips the rest of it.
  void drop() { release_slot(); }

  // Leaves for good: the writer no longer waits for this reader.
  void leave() {
    Member& member = segment_.member(index_);
    const auto seat_word = std::atomic_ref(member.seat);
    std::uint64_t word = seat();
    const std::uint64_t left = Seat::pack(Seat::pid(word), SeatState::left);
    // release: pairs with RingWriter::nobody_is_left(); before the store of `consumed`, so that a
    // writer which finds room because we left can tell why.
    std::atomic_ref(segment_.lobby().left).fetch_add(1, std::memory_order_release);
    // Not admitted yet: the writer waits for nothing from us, but may admit us in this moment.
    // release: as below. acquire on failure: pairs with RingWriter::admit().
    if (Seat::state(word) != SeatState::rejoining ||
        !seat_word.compare_exchange_strong(word, left, std::memory_order_release,
                                           std::memory_order_acquire)) {
      // seq_cst: as in release_slot(); our last copy is over before slots are reused. Before the
      // seat is left: who is killed in between has died, and holds nobody up.
      std::atomic_ref(member.consumed).store(kNever, std::memory_order_seq_cst);
      // release: pairs with peers(); who finds this process gone sees that it had left.
      seat_word.store(left, std::memory_order_release);
    }
    Gate(segment_.writer_seat().gate).wake();
  }

  bool writer_closed() const {
    // seq_cst: looked at between announce() and park(); pairs with RingWriter::close(). Its
    // acquire half makes all that was published before the close visible.
    return std::atomic_ref(segment_.lobby().closed).load(std::memory_order_seq_cst) != 0;
  }

  const Figures& figures() const { return figures_; }
  void begin_tensor_set() { add(figures_.tensor_sets, 1); }
  void count_arena(std::uint64_t frames) { add(figures_.arena_frames, frames); }

  template <class Stop>
  Outcome wait_ready(std::int64_t deadline_ns, Stop stop) {
    return wait_all_attached(segment_, waiter, Gate(segment_.lobby().gate), deadline_ns,
                             [&] { return writer_closed() || stop(); });
  }

  // Wakes this reader's own wait, from another thread (and, harmlessly, the other readers').
  void interrupt() { Gate(segment_.lobby().gate).wake(); }

 private:
  std::uint64_t capacity() const { return segment_.geometry().slot_capacity; }

  bool readable() const {
    // acquire: pairs with the store of seq in RingWriter::publish_fragment(). seq_cst because it
    // is also the waiter's second look between announce() and park() (see Gate); the same
    // instruction on x86-64 and, but for one bit, on ARM64.
    return std::atomic_ref(segment_.slot_of(next_).seq).load(std::memory_order_seq_cst) ==
           next_ + 1;
  }

  // No fragment has this number, and no slot the next one.
  static constexpr std::uint64_t kNotAdmitted = kNever - 1;

  std::uint64_t seat() const {
    // seq_cst: acquire pairs with RingWriter::admit(); and looked at between announce() and park().
    return std::atomic_ref(segment_.member(index_).seat).load(std::memory_order_seq_cst);
  }

  // Waits until the writer has attached us in the place of a dead reader, at its next message.
  template <class Stop>
  Outcome wait_admitted(std::int64_t deadline_ns, Stop stop) {
    Member& member = segment_.member(index_);
    const auto admitted = [this] { return Seat::state(seat()) == SeatState::attached; };
    if (!admitted()) {
      const Outcome outcome =
          waiter.wait(Gate(segment_.lobby().gate), deadline_ns, member.seat, Beat::no, admitted,
                      [&] { return writer_closed() || stop(); });
      if (outcome != Outcome::ready) return outcome;
      waiter.done();
    }
    next_ = peek(member.consumed);
    return Outcome::ready;
  }

  template <class Stop>
  Outcome wait_readable(std::int64_t deadline_ns, Stop stop, Beat beat) {
    if (readable()) return Outcome::ready;
    check_lap();
    return waiter.wait(
        Gate(segment_.lobby().gate), deadline_ns, segment_.slot_of(next_).seq, beat,
        [this] { return readable(); }, [&] { return writer_closed() || stop(); });
  }

  // While a fragment is awaited, its slot holds the one of a lap before, or none yet. A wait for
  // anything else would be one for ever.
  void check_lap() const {
    const std::uint64_t seq = peek(segment_.slot_of(next_).seq);
    const std::uint64_t slots = segment_.geometry().slots;
    const std::uint64_t before = next_ < slots ? 0 : next_ + 1 - slots;
    if (seq != before && seq != next_ + 1) {  // it may have come just now
      throw_corrupted("a slot's number", seq, "the one awaited", next_ + 1);
    }
  }

  void release_slot() {
    ++next_;
    cursor_ = 0;
    add(figures_.fragments, 1);
    // seq_cst: release pairs with the writer's load before it reuses the slot; and against a lost
    // wake-up of the writer, store consumed / load wake_at here faces store wake_at / load
    // consumed in RingWriter::wait_for_credit().
    std::atomic_ref(segment_.member(index_).consumed).store(next_, std::memory_order_seq_cst);
    WriterSeat& seat = segment_.writer_seat();
    if (std::atomic_ref(seat.wake_at).load(std::memory_order_seq_cst) == next_) {
      if (Gate(seat.gate).wake()) add(figures_.wakes, 1);
    }
  }

  [[noreturn, gnu::cold, gnu::noinline]] void corrupted(std::uint64_t value) const {
    throw SegmentCorrupted("fragment " + std::to_string(next_) + " holds " + std::to_string(value) +
                           ", which fits no message of " + std::to_string(frames_) +
                           " frames and " + std::to_string(remaining_) + " bytes");
  }

  Segment segment_;
  Figures& figures_;
  std::uint32_t index_;
  std::uint64_t next_;        // the fragment to consume next
  std::uint64_t cursor_ = 0;  // bytes of its payload already copied out

  std::uint64_t first_ = 0;      // the message's first fragment
  std::uint64_t frames_ = 0;     // and its frames
  std::uint64_t remaining_ = 0;  // bytes of it still to fetch
  bool one_slot_ = false;
  std::vector<MutablePiece> pieces_;
  std::size_t piece_ = 0;
  std::size_t offset_ = 0;
};

}  // namespace shmcast

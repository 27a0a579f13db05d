// Room: ring. A reader's side of the protocol in message.hpp.
// Knows: consuming, leaving.
// Does not know: what is in a frame, where its bytes are copied to, Python.
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
#include "ring/incoming.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "ring/seating.hpp"
#include "ring/waking.hpp"
#include "wait/cpus.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

class RingReader {
 public:
  // The seat must have been taken by take_seat(), with the same `found`.
  RingReader(Segment segment, std::uint32_t index, const WaitPolicy& policy,
             std::uint64_t found = kVacantSeat)
      : waiter(policy, segment.reader_figures(index)),
        segment_(segment),
        figures_(segment.reader_figures(index)),
        index_(index),
        cpu_(segment.member(index).cpu),
        next_(found == kVacantSeat ? 0 : kNotAdmitted),
        bytes_(segment.member(index)) {
    Affinity::of_this_thread().publish(segment.cpus(index));
    waiter.set_peer_cpu(segment.writer_seat().cpu);
  }

  Waiter waiter;

  // Set where the spill is mapped. Without it, see Lobby::unmapped.
  void set_spill(std::span<const std::byte> spill) { bytes_.set_spill(spill); }

  // Return whether the start of a message is there, so that begin() will not wait.
  bool has_message() const {
    return readable() && Descriptor::starts(peek(segment_.slot_of(next_).descriptor));
  }

  // Return whether what ends a wait is there: a fragment, this reader's admission, the end.
  bool has_news() const {
    const bool is_admitted = next_ != kNotAdmitted || Seat::state(seat()) == SeatState::attached;
    return (next_ == kNotAdmitted ? is_admitted : readable()) || writer_closed();
  }

  // Of the next fragment; of the message that starts with it; and of the last one that was begun.
  Awaited awaited() const { return {&segment_.slot_of(next_).seq, next_ + 1}; }
  std::int64_t sent_ns() const { return segment_.slot_of(next_).sent_ns; }
  std::uint64_t first() const { return first_; }

  // Wait for the next message. After `ready`, frame_count() and the frame table describe it.
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
      // On its way here while the message is looked at: what does not fit the slot's first line.
      __builtin_prefetch(reinterpret_cast<const std::byte*>(&slot) + kLine, 0);
      const std::uint64_t word = peek(slot.descriptor);  // read once: use the value that is checked
      if (Descriptor::starts(word)) {
        sent_ns_ = slot.sent_ns;
        waiter.arrived(sent_ns_);
        frames_ = Descriptor::frames(word);
        remaining_ = Descriptor::bytes(word);
        if (table_bytes(frames_) > remaining_) corrupted(word);
        one_slot_ = remaining_ <= capacity();
        first_ = next_;
        bytes_.begin(segment_.slot_of(next_).payload(), capacity(), next_);
        return Outcome::ready;
      }
      release_slot();  // the rest of a message given up by drop()
      if (is_long_way() && is_late(deadline_ns)) return Outcome::timed_out;
    }
  }

  // Return whether the call that ends at `deadline_ns` should end now, although fragments go on
  // coming: its time is over, and all that was published by then has been looked at.
  bool is_late(std::int64_t deadline_ns) {
    if (deadline_ns <= 0 || deadline_ns == kForever) return false;  // 0: look at all that is there
    if (late_since_ != deadline_ns) {
      if (monotonic_ns() < deadline_ns) return false;
      late_since_ = deadline_ns;
      published_then_ = peek(segment_.writer_figures().fragments);
    }
    return next_ >= published_then_;
  }

  std::uint64_t frame_count() const { return frames_; }

  // Return whether the message lies in one slot, so that fetch() will not wait.
  bool is_immediate() const { return one_slot_; }

  // Check that the frame table, or the size of a single frame, adds up to the bytes remaining.
  // Throws SegmentCorrupted.
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

  // Set where to copy the next bytes of the message.
  void into(std::span<const MutablePiece> pieces) {
    pieces_.assign(pieces.begin(), pieces.end());
    piece_ = 0;
    offset_ = 0;
  }

  // Fill the pieces set by into(). `abandoned`: the writer gave the message up; begin() the next.
  template <class Stop>
  Outcome fetch(std::int64_t deadline_ns, Stop stop) {
    while (piece_ != pieces_.size()) {
      const MutablePiece& piece = pieces_[piece_];
      if (piece.size == offset_) {
        ++piece_;
        offset_ = 0;
        continue;
      }
      if (bytes_.is_empty()) release_slot();
      if (bytes_.is_new() && next_ != first_) {
        if (is_long_way() && is_late(deadline_ns)) return Outcome::timed_out;
        const Outcome outcome = wait_readable(deadline_ns, stop, Beat::no);
        if (outcome != Outcome::ready) return outcome;
        waiter.done();
        Slot& slot = segment_.slot_of(next_);
        const std::uint64_t word = peek(slot.descriptor);
        if (Descriptor::starts(word)) {
          add(figures_.abandoned, 1);
          return Outcome::abandoned;
        }
        if (Descriptor::is_spilled(word)) {
          bytes_.begin_spilled(slot.payload(), Descriptor::bytes(word));
        } else {
          bytes_.begin(slot.payload(), capacity(), next_);
        }
      }
      const std::size_t n = bytes_.copy(piece.data + offset_, piece.size - offset_);
      offset_ += n;
      remaining_ -= n;
    }
    return Outcome::ready;
  }

  // Copy out the message that begin() found, if it lies in one slot, instead of fetch(). Of an
  // empty one `to` may be null, which memcpy must not see.
  void copy_whole(std::byte* to) {
    if (remaining_ != 0) bytes_.copy(to, remaining_);
  }

  // Release the message's last slot, after all of it was fetched.
  void end(std::uint64_t payload) {
    release_slot();
    if (Latencies::takes(peek(figures_.messages))) latencies().record(sent_ns_, monotonic_ns());
    add(figures_.messages, 1);
    add(figures_.bytes, payload);
  }

  // Give up the message that begin() found: the next begin() skips the rest of it.
  void drop() { release_slot(); }

  // End otherwise than in order: the writer and the other readers see to it as after a death.
  void fail() {
    const auto seat_word = std::atomic_ref(segment_.member(index_).seat);
    std::uint64_t word = seat();
    do {
      const SeatState state = Seat::state(word);
      if (state != SeatState::attached && state != SeatState::rejoining) return;
      // release: pairs with peers(); the last use of the slots is over. acquire on failure: as in
      // leave().
    } while (!seat_word.compare_exchange_weak(word, Seat::pack(Seat::pid(word), SeatState::failed),
                                              std::memory_order_release,
                                              std::memory_order_acquire));
    // release: who sees the count sees the seat. Pairs with nothing stronger than a hint: it is
    // looked at again.
    std::atomic_ref(segment_.lobby().arrivals).fetch_add(1, std::memory_order_release);
    wake_writer(segment_);
    wake_readers(segment_);
  }

  // Leave for good: the writer no longer waits for this reader.
  void leave() {
    Member& member = segment_.member(index_);
    const auto seat_word = std::atomic_ref(member.seat);
    std::uint64_t word = seat();
    const std::uint64_t left = Seat::pack(Seat::pid(word), SeatState::left);
    // seq_cst: its release half pairs with RingWriter::nobody_is_left(). Before the store of
    // `consumed`, so that a writer which finds room because of it knows why. And a hub reads it
    // between announce() and park().
    std::atomic_ref(segment_.lobby().left).fetch_add(1, std::memory_order_seq_cst);
    // A reader that is not admitted yet is not waited for, but may be admitted at this moment.
    // release: as below. acquire on failure: pairs with RingWriter::admit().
    if (Seat::state(word) != SeatState::rejoining ||
        !seat_word.compare_exchange_strong(word, left, std::memory_order_release,
                                           std::memory_order_acquire)) {
      // seq_cst: as in release_slot(); the last copy is over before slots are reused. Before the
      // store to the seat: a reader killed in between counts as dead, and blocks nobody.
      std::atomic_ref(member.consumed).store(kNever, std::memory_order_seq_cst);
      // release: pairs with peers(); who finds this process dead sees that it had left.
      seat_word.store(left, std::memory_order_release);
    }
    wake_writer(segment_);
  }

  bool writer_closed() const {
    // seq_cst: read between announce() and park(); pairs with RingWriter::close(). Its acquire half
    // makes visible all that was published before the close.
    return std::atomic_ref(segment_.lobby().closed).load(std::memory_order_seq_cst) != 0;
  }

  // Prefetch what the next message will touch, but for its slot, which is being looked at.
  void fetch_ahead() const {
    __builtin_prefetch(&figures_, 1);
    __builtin_prefetch(reinterpret_cast<const std::byte*>(&figures_) + kLine, 1);
    __builtin_prefetch(&segment_.member(index_).consumed, 1);
    __builtin_prefetch(&segment_.writer_seat(), 0);
    __builtin_prefetch(pieces_.data(), 1);
  }

  const Figures& figures() const { return figures_; }
  Latencies& latencies() const { return segment_.latencies(index_); }
  void begin_tensor_set() { add(figures_.tensor_sets, 1); }
  void count_arena(std::uint64_t frames) { add(figures_.arena_frames, frames); }

  template <class Stop>
  Outcome wait_ready(std::int64_t deadline_ns, Stop stop) {
    return wait_all_attached(segment_, waiter, Gate(segment_.readers_gate()), deadline_ns,
                             [&] { return writer_closed() || stop(); });
  }

  // Wake this reader's own wait, from another thread (and, harmlessly, the other readers').
  void interrupt() { Gate(segment_.readers_gate()).wake(); }

 private:
  std::uint64_t capacity() const { return segment_.geometry().slot_capacity; }

  // Return whether to look at the clock although fragments are there: now and then.
  bool is_long_way() const { return next_ % kFragmentsPerLook == 0; }
  static constexpr std::uint64_t kFragmentsPerLook = 16;

  bool readable() const {
    // seq_cst: its acquire half pairs with the store of seq in RingWriter::publish_fragment(). It
    // is also the second look between announce() and park() (see Gate). On x86-64 an acquire load
    // is the same instruction; on ARM64 it differs in one bit.
    return std::atomic_ref(segment_.slot_of(next_).seq).load(std::memory_order_seq_cst) ==
           next_ + 1;
  }

  // No fragment has this number, and no slot holds the next one as its `seq`.
  static constexpr std::uint64_t kNotAdmitted = kNever - 1;

  std::uint64_t seat() const {
    // seq_cst: its acquire half pairs with RingWriter::admit(); read between announce() and park().
    return std::atomic_ref(segment_.member(index_).seat).load(std::memory_order_seq_cst);
  }

  // Wait until the writer attaches this reader in the place of a dead one, at its next message.
  template <class Stop>
  Outcome wait_admitted(std::int64_t deadline_ns, Stop stop) {
    Member& member = segment_.member(index_);
    const auto admitted = [this] { return Seat::state(seat()) == SeatState::attached; };
    if (!admitted()) {
      const Outcome outcome =
          waiter.wait(Gate(segment_.readers_gate()), deadline_ns, member.seat, Beat::no, admitted,
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
    awaited().check(segment_.geometry().slots);
    cpu_.note();
    return waiter.wait(
        Gate(segment_.readers_gate()), deadline_ns, segment_.slot_of(next_).seq, beat,
        [this] { return readable(); }, [&] { return writer_closed() || stop(); });
  }

  void release_slot() {
    ++next_;
    bytes_.end();
    if (next_ % LastCpu::kMessages == 0) cpu_.note();
    add(figures_.fragments, 1);
    // seq_cst: its release half pairs with Credit::refresh(), before the slot
    // is reused. Against a lost wake-up of the writer, store consumed / load wake_at here pairs
    // with store wake_at / load consumed in Credit::wait().
    std::atomic_ref(segment_.member(index_).consumed).store(next_, std::memory_order_seq_cst);
    WriterSeat& seat = segment_.writer_seat();
    if (std::atomic_ref(seat.wake_at).load(std::memory_order_seq_cst) == next_) {
      if (Gate(segment_.writer_gate()).wake()) add(figures_.wakes, 1);
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
  LastCpu cpu_;
  std::uint64_t next_;  // the fragment to consume next
  Incoming bytes_;      // its bytes

  std::uint64_t first_ = 0;      // the message's first fragment
  std::int64_t sent_ns_ = 0;     // when it was sent
  std::uint64_t frames_ = 0;     // and its frames
  std::uint64_t remaining_ = 0;  // its bytes still to fetch
  bool one_slot_ = false;
  std::vector<MutablePiece> pieces_;
  std::size_t piece_ = 0;
  std::size_t offset_ = 0;

  std::int64_t late_since_ = 0;  // the deadline that has passed last
  std::uint64_t published_then_ = 0;
};

}  // namespace shmcast

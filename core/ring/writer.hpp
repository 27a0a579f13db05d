// Room: ring. The writer's side of the protocol in message.hpp.
// Knows: publishing, into slots or beside them; dropping and admitting readers.
// Does not know: what is in a frame, how a reader's death becomes known, Python.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "layout.hpp"
#include "ring/credit.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "ring/outgoing.hpp"
#include "ring/slot_copies.hpp"
#include "ring/spill.hpp"
#include "ring/waking.hpp"
#include "wait/cpus.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

class RingWriter {
 public:
  RingWriter(Segment segment, const WaitPolicy& policy, std::uint64_t published = 0)
      : waiter(policy, segment.writer_figures()),
        segment_(segment),
        figures_(segment.writer_figures()),
        cpu_(segment.writer_seat().cpu),
        credit_(segment),
        ringer_(segment.doorbells()),
        next_(published),
        is_dropped_(segment.geometry().readers) {
    put(figures_.fragments, published);
    Affinity::of_this_thread().publish(segment.cpus(segment.geometry().readers));
  }

  Waiter waiter;

  // Spill what busy readers hold up, from the next message on. `spill` must outlive this.
  void set_spill(Spill& spill, std::uint64_t least_bytes = Spilling::kLeastBytes) {
    spilling_.use(&spill, least_bytes);
  }
  // See Spilling.
  std::uint64_t take_largest() { return spilling_.take_largest(); }

  // Set the message to publish. The pieces' memory must stay valid until advance() or abandon()
  // ends the message. `entries` is the frame table of a message with a frame in the arena, whose
  // piece is an ArenaOffset. Throws MessageTooLarge.
  void begin(std::span<const ConstPiece> frames, std::span<const std::uint64_t> entries = {}) {
    const std::uint64_t payload =
        std::accumulate(frames.begin(), frames.end(), std::uint64_t{0},
                        [](std::uint64_t sum, const ConstPiece& f) { return sum + f.size; });
    const std::uint64_t table = table_bytes(frames.size());
    if (frames.size() > Descriptor::kMaxFrames || payload + table > Descriptor::kMaxBytes) {
      throw MessageTooLarge("a message of " + std::to_string(frames.size()) + " frames and " +
                            std::to_string(payload) + " bytes is over the limit of " +
                            std::to_string(Descriptor::kMaxFrames) + " frames and " +
                            std::to_string(Descriptor::kMaxBytes) + " bytes");
    }
    // Admit nobody to a message that was refused above: the caller would not learn of it.
    admitted_.clear();
    // acquire: pairs with take_seat().
    const auto rejoins = std::atomic_ref(segment_.lobby().rejoins).load(std::memory_order_acquire);
    if (rejoins != rejoins_) admit(rejoins);
    bytes_.begin(frames, entries, payload);
    is_copied_last_ = false;
    descriptor_ = Descriptor::pack(frames.size(), payload + table);
    first_ = next_;
    rest_ = 0;
    spilling_.begin(bytes_.remaining());
    // The slot's other line is on its way here meanwhile. (Its first one, spinning readers take.)
    __builtin_prefetch(reinterpret_cast<const std::byte*>(&segment_.slot_of(next_)) + kLine, 1);
  }

  // Return whether the message fits a slot that is free now, so that advance() will not wait.
  bool is_immediate() { return bytes_.remaining() <= capacity() && credit_.has(next_); }

  // Publish what is left of the message, but for its last fragment: `ready` says that commit() can
  // publish it. So the caller can still call the message off, abandon() it, when all that may take
  // time is done. `closed`: every reader has left, or stop() returned true in a wait. After
  // anything but `ready`, call again or abandon(). With the deadline 0, what may be spilled waits
  // for a call with another one. Throws MemoryChanged, and what Spill::take() throws.
  template <class Stop>
  Outcome advance(std::int64_t deadline_ns, Stop stop) {
    if (nobody_is_left()) return Outcome::closed;
    for (;;) {
      if (!credit_.has(next_)) {
        wake_readers();  // they may sleep although fragments are there, see kFragmentsPerWake
        const Outcome outcome = wait_for_credit(deadline_ns, stop);
        if (outcome != Outcome::ready) return outcome;
        if (nobody_is_left()) return Outcome::closed;  // there is room because they left
      }
      if (spilling_.is_open() && next_ != first_) [[unlikely]] {
        const Outcome outcome = spill_if_stuck(deadline_ns, stop);
        if (outcome != Outcome::ready) return outcome;
      }
      if (spilling_.is_on()) [[unlikely]] {
        fill_spill();
      } else {
        is_copied_last_ =
            bytes_.remaining() <= std::min(capacity(), kCopiedLast) && bytes_.is_held();
        if (is_copied_last_) return Outcome::ready;
        fill_slot();
      }
      if (bytes_.remaining() == 0) return Outcome::ready;
      publish_fragment();
    }
  }

  // Publish the last fragment: every reader will have the message. Never waits, and throws nothing.
  void commit() {
    publish_fragment();
    spilling_.end(next_);
    add(figures_.messages, 1);
    add(figures_.bytes, bytes_.payload());
  }

  // Say whether nothing can unmap the pieces' memory from the next advance() on until commit() has
  // returned, as begin() assumes.
  void hold_memory(bool is_held) { bytes_.hold(is_held); }

  // Prefetch the lines that the next publish will touch: the slot's and the next one for writing,
  // the lobby's for reading.
  void fetch_ahead() const {
    Slot& slot = segment_.slot_of(next_);
    __builtin_prefetch(&slot, 1);
    __builtin_prefetch(reinterpret_cast<const std::byte*>(&slot) + kLine, 1);
    __builtin_prefetch(&segment_.lobby(), 0);
  }

  // Give up the message set by begin(). No reader has all of it, so none will deliver it: the start
  // of the next message tells them to discard what they have.
  void abandon() {
    if (next_ != first_) wake_readers();
    spilling_.end(next_);
    bytes_.drop();
    add(figures_.abandoned, 1);
  }

  // Close the ring and wake the readers, which drain what is published and then see how it ended.
  void close(End how = End::left) {
    // seq_cst: a waiter loads it between announce() and park(), as it does `seq` (see Gate).
    std::atomic_ref(segment_.lobby().closed)
        .store(static_cast<std::uint32_t>(how), std::memory_order_seq_cst);
    wake_readers();
    ringer_.close_all();
  }

  // Continue without a reader that the caller knows to be dead or to have failed. `found` is its
  // seat as it was read. May be called from any thread.
  void drop(std::uint32_t index, std::uint64_t found) {
    Member& member = segment_.member(index);
    // acq_rel: pairs with take_seat(). relaxed on failure, which means that somebody has
    // taken the seat: nothing is read.
    if (!std::atomic_ref(member.seat)
             .compare_exchange_strong(found, Seat::pack(Seat::pid(found), SeatState::dropped),
                                      std::memory_order_acq_rel, std::memory_order_relaxed)) {
      return;
    }
    // relaxed: only this writer waits for it, and until admit() a replacement stores the same.
    put(member.consumed, kNever);
    if (Seat::state(found) != SeatState::failed) {
      // Its views went with its program, whatever runs in its process now. Who takes the seat has
      // none before admit(). relaxed: read by this thread, and by take_seat() as a hint.
      for (std::uint32_t extent = 0; extent < segment_.geometry().extents; ++extent) {
        std::atomic_ref(segment_.held(index, extent)).store(0, std::memory_order_relaxed);
      }
    }
    // relaxed, here and below: a hint, see nobody_is_left(); each counts what it changes.
    const bool was_dropped = is_dropped_[index].exchange(true, std::memory_order_relaxed);
    dropped_.fetch_add(was_dropped ? 0 : 1, std::memory_order_relaxed);
  }

  // Return the fragments published so far: who has consumed that many has every message.
  std::uint64_t published() const { return next_; }

  // Return the readers that the last begin() has attached in the place of dead ones.
  std::span<const std::uint32_t> admitted() const { return admitted_; }

  const Figures& figures() const { return figures_; }
  void begin_tensor_set() { add(figures_.tensor_sets, 1); }
  void count_arena(std::uint64_t frames, std::uint64_t full, std::uint64_t non_temporal_bytes) {
    add(figures_.arena_frames, frames);
    add(figures_.arena_full, full);
    add(figures_.non_temporal_bytes, non_temporal_bytes);
  }

  template <class Stop>
  Outcome wait_ready(std::int64_t deadline_ns, Stop stop) {
    return wait_all_attached(segment_, waiter, Gate(segment_.writer_gate()), deadline_ns, stop);
  }

  // Wake this writer's own wait, from another thread.
  void interrupt() { Gate(segment_.writer_gate()).wake(); }

 private:
  bool nobody_is_left() const {
    // acquire: pairs with RingReader::leave(), so that room made by the last leave() is not
    // mistaken for consumption.
    const auto left = std::atomic_ref(segment_.lobby().left).load(std::memory_order_acquire);
    if (left + dropped_.load(std::memory_order_relaxed) < segment_.geometry().readers) return false;
    // Look at each seat: one whose owners died or left one after the other was counted twice.
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      const Member& member = segment_.member(i);
      const auto state = Seat::state(peek(member.seat));
      if (state == SeatState::vacant) return false;
      // This one is attached and waited for, rather than about to leave.
      if (state == SeatState::attached && peek(member.consumed) != kNever) return false;
    }
    return true;
  }

  // Attach the readers that rejoin. They begin with the next fragment, which starts a message.
  void admit(std::uint32_t rejoins) {
    rejoins_ = rejoins;
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      Member& member = segment_.member(i);
      // acquire: pairs with take_seat(); its store of `consumed` is done.
      std::uint64_t seat = std::atomic_ref(member.seat).load(std::memory_order_acquire);
      if (Seat::state(seat) != SeatState::rejoining) continue;
      put(member.consumed, next_);
      // seq_cst: its release half pairs with RingReader::seat(), so that a reader which finds
      // itself attached finds where to begin. And a reader reads it between announce() and park(),
      // before the message's wake-up.
      if (std::atomic_ref(member.seat)
              .compare_exchange_strong(seat, Seat::pack(Seat::pid(seat), SeatState::attached),
                                       std::memory_order_seq_cst, std::memory_order_relaxed)) {
        const bool was_dropped = is_dropped_[i].exchange(false, std::memory_order_relaxed);
        dropped_.fetch_sub(was_dropped ? 1 : 0, std::memory_order_relaxed);
        admitted_.push_back(i);
      } else {
        put(member.consumed, kNever);  // it has just left
      }
    }
  }

  // Wake sleeping readers at the first fragment of a long message, then once in this many: where
  // members share cores, each wake-up should find work for a while.
  static constexpr std::uint64_t kFragmentsPerWake = 16;
  // Copy a last fragment of at most so many bytes in commit(), together with its `seq`: readers
  // look at the slot all the time while they spin, and each look takes its line from this core.
  static constexpr std::uint64_t kCopiedLast = 4096;

  std::uint64_t capacity() const { return segment_.geometry().slot_capacity; }
  std::uint64_t slots() const { return segment_.geometry().slots; }
  std::uint64_t quarter() const { return std::max<std::uint64_t>(slots() / 4, 1); }

  // Wait for one free slot, but ask to be woken when half the ring is free: a sleeping writer is
  // then woken once per half ring. This can't deadlock: readers can always consume up to next_.
  template <class Stop>
  Outcome wait_for_credit(std::int64_t deadline_ns, Stop stop) {
    const Outcome outcome = credit_.wait(
        waiter, next_ - slots() / 2, deadline_ns, Beat::yes, [this] { return credit_.has(next_); },
        stop);
    if (outcome == Outcome::ready) waiter.arrived(kForever);  // that is: just now
    return outcome;
  }

  // Decide to spill the rest of the message if a quarter of the ring is in flight and the slowest
  // reader does not move for a while. One that does is streamed to, which is faster: both sides
  // then copy at the same time. Until it is clear, half of the ring is kept for what comes.
  template <class Stop>
  [[gnu::noinline]] Outcome spill_if_stuck(std::int64_t deadline_ns, Stop stop) {
    if (credit_.in_flight(next_) < quarter() || bytes_.remaining() <= capacity()) {
      return Outcome::ready;
    }
    for (;;) {
      credit_.refresh(next_);
      const std::uint64_t in_flight = credit_.in_flight(next_);
      if (in_flight < quarter()) return Outcome::ready;
      const std::uint64_t consumed = credit_.consumed_by_all();
      if (spilling_.stands_at(consumed)) break;
      const std::int64_t now = monotonic_ns();
      const bool has_moved = spilling_.has_moved(consumed, now);
      if (in_flight + 1 < slots() && (has_moved || in_flight < slots() / 2)) return Outcome::ready;
      if (deadline_ns == 0) return Outcome::timed_out;
      const std::int64_t sent_ns = segment_.slot_of(first_).sent_ns;
      const std::int64_t end =
          std::min(deadline_ns, spilling_.patience_ends(sent_ns, is_crowded()));
      if (now >= end) break;
      wake_readers();
      const Outcome outcome = wait_for_move(consumed, end, stop);
      if (outcome == Outcome::closed) return outcome;
    }
    if (deadline_ns == 0) return Outcome::timed_out;
    spill_rest();
    return Outcome::ready;
  }

  // Wait until a slowest reader that was at `consumed` has freed another quarter of the ring.
  template <class Stop>
  Outcome wait_for_move(std::uint64_t consumed, std::int64_t end_ns, Stop stop) {
    const std::uint64_t wanted = consumed + quarter();
    const auto has_moved = [this, wanted] {
      credit_.refresh(next_);
      return credit_.consumed_by_all() >= wanted;
    };
    Outcome outcome;
    do {  // (so short a time that signals can wait)
      outcome = credit_.wait(waiter, wanted, end_ns, Beat::no, has_moved, stop);
    } while (outcome == Outcome::interrupted);
    waiter.done();
    return outcome;
  }

  void spill_rest() {
    if (!may_spill()) return spilling_.decline();
    const std::uint64_t free = slots() - credit_.in_flight(next_);
    const bool has_room = spilling_.start(bytes_.remaining(), credit_.consumed_by_all(), free);
    add(has_room ? figures_.spilled : figures_.spill_full, 1);
  }

  bool is_crowded() const {
    const std::uint32_t me = segment_.geometry().readers;
    return shmcast::is_crowded(segment_, me, kNoQuota);
  }

  // Return whether every reader can read what is spilled. One that has yet to attach may not.
  bool may_spill() const {
    if (attached_readers(segment_) != segment_.geometry().readers) return false;
    // acquire: pairs with take_seat(); who has attached has counted itself before.
    return std::atomic_ref(segment_.lobby().unmapped).load(std::memory_order_acquire) == 0;
  }

  // Copy the next fragment into its slot, which is free.
  void fill_slot() { copies_.fill(next_, bytes_, std::min(capacity(), bytes_.remaining())); }

  // Copy the next fragment into the spill. Its slot, which is free, says where.
  void fill_spill() {
    const SpillPlace place = spilling_.place();
    const std::uint64_t bytes = std::min(spilling_.part_bytes(), bytes_.remaining());
    copies_.fill_beside(place.data, bytes_, bytes);
    spilling_.filled(bytes);
    std::memcpy(segment_.slot_of(next_).payload(), &place.offset, sizeof place.offset);
    rest_ = Descriptor::spilled(bytes);
  }

  void publish_fragment() {
    Slot& slot = segment_.slot_of(next_);
    const bool is_start = next_ == first_;
    if (next_ % LastCpu::kMessages == 0) cpu_.note();
    if (is_copied_last_) fill_slot();
    slot.descriptor = is_start ? descriptor_ : rest_;
    if (is_start) slot.sent_ns = monotonic_ns();  // while the slot's line is on its way here
    ++next_;
    add(figures_.fragments, 1);
    // seq_cst: its release half pairs with RingReader::readable(). The total order with the gate's
    // load in wake_readers(), here or before a wait, is what loses no wake-up (see Gate).
    std::atomic_ref(slot.seq).store(next_, std::memory_order_seq_cst);
    if (is_start || bytes_.remaining() == 0 || rest_ != 0 ||
        (next_ - first_) % kFragmentsPerWake == 0) {
      wake_readers();
    }
  }

  void wake_readers() {
    // A reader that preempts this writer when it is woken shall know on whose CPU it is.
    if (!shmcast::wake_readers(segment_, ringer_, [this] { cpu_.note(); })) return;
    add(figures_.wakes, 1);
    if (spilling_.is_open()) spilling_.woke_readers(monotonic_ns());
  }

  Segment segment_;
  Figures& figures_;
  LastCpu cpu_;
  Credit credit_;
  SlotStores copies_{segment_};
  Ringer ringer_;
  Spilling spilling_;
  std::uint64_t next_;                     // the fragment to publish next
  std::uint32_t rejoins_ = 0;              // Lobby::rejoins, as of the last admit()
  std::atomic<std::uint32_t> dropped_{0};  // readers dropped and not replaced
  std::vector<std::atomic<bool>> is_dropped_;

  std::vector<std::uint32_t> admitted_;
  Outgoing bytes_;
  bool is_copied_last_ = false;  // the next fragment, see kCopiedLast
  std::uint64_t first_ = 0;      // the message's first fragment
  std::uint64_t descriptor_ = 0;
  std::uint64_t rest_ = 0;  // the Descriptor of the next fragment, if that continues the message
};

}  // namespace shmcast

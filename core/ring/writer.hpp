// Room: ring. The writer's side of the protocol in message.hpp.
// Knows: credit, publishing, dropping and admitting readers.
// Does not know: what is in a frame, how a reader's death becomes known, Python.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "ring/vanishing.hpp"
#include "wait/cpus.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

class RingWriter {
 public:
  RingWriter(Segment segment, const WaitPolicy& policy)
      : waiter(policy, segment.writer_figures()),
        segment_(segment),
        figures_(segment.writer_figures()),
        cpu_(segment.writer_seat().cpu),
        is_dropped_(segment.geometry().readers) {
    Affinity::of_this_thread().publish(segment.cpus(segment.geometry().readers));
  }

  Waiter waiter;

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
    // acquire: pairs with RingReader::attach().
    const auto rejoins = std::atomic_ref(segment_.lobby().rejoins).load(std::memory_order_acquire);
    if (rejoins != rejoins_) admit(rejoins);
    pieces_.clear();
    is_memory_held_ = true;
    is_copied_last_ = false;
    payload_ = payload;
    if (table != 0) {
      entries_.assign(entries.begin(), entries.end());
      if (entries.empty()) {
        for (const ConstPiece& frame : frames) entries_.push_back(frame.size);
      } else {
        payload_ = payload_bytes(entries);
      }
      pieces_.push_back({reinterpret_cast<const std::byte*>(entries_.data()), table});
    }
    std::copy_if(frames.begin(), frames.end(), std::back_inserter(pieces_),
                 [](const ConstPiece& frame) { return frame.size != 0; });
    descriptor_ = Descriptor::pack(frames.size(), payload + table);
    remaining_ = payload + table;
    piece_ = 0;
    offset_ = 0;
    first_ = next_;
    // The slot's other line is on its way here meanwhile. (Its first one, spinning readers take.)
    __builtin_prefetch(reinterpret_cast<const std::byte*>(&segment_.slot_of(next_)) + kLine, 1);
  }

  // Return whether the message fits a slot that is free now, so that advance() will not wait.
  bool is_immediate() { return remaining_ <= capacity() && has_credit(); }

  // Publish what is left of the message, but for its last fragment: `ready` says that commit() can
  // publish it. So the caller can still call the message off, abandon() it, when all that may take
  // time is done. `closed`: every reader has left, or stop() returned true in a wait. After
  // anything but `ready`, call again or abandon(). Throws MemoryChanged, too.
  template <class Stop>
  Outcome advance(std::int64_t deadline_ns, Stop stop) {
    if (nobody_is_left()) return Outcome::closed;
    for (;;) {
      if (!has_credit()) {
        wake_readers();  // they may sleep although fragments are there, see kFragmentsPerWake
        const Outcome outcome = wait_for_credit(deadline_ns, stop);
        if (outcome != Outcome::ready) return outcome;
        if (nobody_is_left()) return Outcome::closed;  // there is room because they left
      }
      is_copied_last_ = remaining_ <= std::min(capacity(), kCopiedLast) && is_memory_held_;
      if (is_copied_last_) return Outcome::ready;
      fill_slot();
      if (remaining_ == 0) return Outcome::ready;
      publish_fragment();
    }
  }

  // Publish the last fragment: every reader will have the message. Never waits, and throws nothing.
  void commit() {
    publish_fragment();
    add(figures_.messages, 1);
    add(figures_.bytes, payload_);
  }

  // Say whether nothing can unmap the pieces' memory from the next advance() on until commit() has
  // returned, as begin() assumes.
  void hold_memory(bool is_held) { is_memory_held_ = is_held; }

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
    remaining_ = 0;
    add(figures_.abandoned, 1);
  }

  // Close the ring and wake the readers, which drain what is published and then see how it ended.
  void close(End how = End::left) {
    // seq_cst: a waiter loads it between announce() and park(), as it does `seq` (see Gate).
    std::atomic_ref(segment_.lobby().closed)
        .store(static_cast<std::uint32_t>(how), std::memory_order_seq_cst);
    wake_readers();
  }

  // Continue without a reader that the caller knows to be dead or to have failed. `found` is its
  // seat as it was read.
  void drop(std::uint32_t index, std::uint64_t found) {
    Member& member = segment_.member(index);
    // acq_rel: pairs with RingReader::attach(). relaxed on failure, which means that somebody has
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
      // none before admit(). relaxed: read by this thread, and by attach() as a hint.
      for (std::uint32_t extent = 0; extent < segment_.geometry().extents; ++extent) {
        std::atomic_ref(segment_.held(index, extent)).store(0, std::memory_order_relaxed);
      }
    }
    if (!is_dropped_[index]) ++dropped_;
    is_dropped_[index] = true;
  }

  // Return the fragments published so far: who has consumed that many has every message.
  std::uint64_t published() const { return next_; }

  // Return the readers that the last begin() has attached in the place of dead ones.
  std::span<const std::uint32_t> admitted() const { return admitted_; }

  const Figures& figures() const { return figures_; }
  void begin_tensor_set() { add(figures_.tensor_sets, 1); }
  void count_arena(std::uint64_t frames, std::uint64_t full) {
    add(figures_.arena_frames, frames);
    add(figures_.arena_full, full);
  }
  // Return the fragments published and not yet consumed, by reader; 0 for one that has left. May be
  // called from any thread.
  std::vector<std::uint64_t> lags() const {
    const std::uint64_t published = peek(figures_.fragments);  // next_, readable by any thread
    std::vector<std::uint64_t> lags;
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      // relaxed: it orders nothing.
      const auto consumed =
          std::atomic_ref(segment_.member(i).consumed).load(std::memory_order_relaxed);
      lags.push_back(consumed >= published ? 0 : published - consumed);
    }
    return lags;
  }

  template <class Stop>
  Outcome wait_ready(std::int64_t deadline_ns, Stop stop) {
    return wait_all_attached(segment_, waiter, Gate(segment_.writer_seat().gate), deadline_ns,
                             stop);
  }

  // Wake this writer's own wait, from another thread.
  void interrupt() { Gate(segment_.writer_seat().gate).wake(); }

 private:
  bool nobody_is_left() const {
    // acquire: pairs with RingReader::leave(), so that room made by the last leave() is not
    // mistaken for consumption.
    const auto left = std::atomic_ref(segment_.lobby().left).load(std::memory_order_acquire);
    if (left + dropped_ < segment_.geometry().readers) return false;
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
      // acquire: pairs with RingReader::attach(); its store of `consumed` is done.
      std::uint64_t seat = std::atomic_ref(member.seat).load(std::memory_order_acquire);
      if (Seat::state(seat) != SeatState::rejoining) continue;
      put(member.consumed, next_);
      // seq_cst: its release half pairs with RingReader::seat(), so that a reader which finds
      // itself attached finds where to begin. And a reader reads it between announce() and park(),
      // before the message's wake-up.
      if (std::atomic_ref(member.seat)
              .compare_exchange_strong(seat, Seat::pack(Seat::pid(seat), SeatState::attached),
                                       std::memory_order_seq_cst, std::memory_order_relaxed)) {
        if (is_dropped_[i]) --dropped_;
        is_dropped_[i] = false;
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

  bool has_credit() {
    if (next_ - consumed_by_all_ < slots()) return true;  // the cached minimum suffices
    refresh_consumed_by_all();
    return next_ - consumed_by_all_ < slots();
  }

  void refresh_consumed_by_all() {
    std::uint64_t least = next_;  // a reader that has left counts as having consumed all
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      // seq_cst: its acquire half pairs with RingReader::release_slot(), so that the reader's copy
      // is over before the slot is overwritten. In wait_for_credit() it is also the second look
      // after wake_at was stored.
      const auto consumed =
          std::atomic_ref(segment_.member(i).consumed).load(std::memory_order_seq_cst);
      if (next_ - consumed > slots() && consumed != kNever) {  // (or consumed > next_)
        throw_corrupted("a reader's count of fragments", consumed, "the writer's", next_);
      }
      if (consumed < least) {
        least = consumed;
        slowest_ = i;
      }
    }
    consumed_by_all_ = least;
  }

  // Wait for one free slot, but ask to be woken when half the ring is free: a sleeping writer is
  // then woken once per half ring. This can't deadlock: readers can always consume up to next_.
  template <class Stop>
  Outcome wait_for_credit(std::int64_t deadline_ns, Stop stop) {
    WriterSeat& seat = segment_.writer_seat();
    waiter.set_peer_cpu(segment_.member(slowest_).cpu);
    const auto wake_at = std::atomic_ref(seat.wake_at);
    // seq_cst: announces the wait; pairs with RingReader::release_slot().
    wake_at.store(next_ - slots() / 2, std::memory_order_seq_cst);
    const Outcome outcome = waiter.wait(
        Gate(seat.gate), deadline_ns, segment_.member(slowest_).consumed, Beat::yes,
        [this] { return has_credit(); }, stop);
    if (outcome == Outcome::ready) waiter.arrived(kForever);  // that is: just now
    // relaxed: a reader that still sees the old value makes one needless system call.
    wake_at.store(kNever, std::memory_order_relaxed);
    return outcome;
  }

  // Copy the next fragment into its slot, which is free.
  void fill_slot() {
    Slot& slot = segment_.slot_of(next_);
    std::byte* to = slot.payload();
    std::size_t room = std::min(capacity(), remaining_);
    remaining_ -= room;
    while (room != 0) {
      const ConstPiece& piece = pieces_[piece_];
      const std::size_t n = std::min(room, piece.size - offset_);
      if (!piece.can_vanish || is_memory_held_) [[likely]] {
        std::memcpy(to, piece.data + offset_, n);
      } else if (!copy_unless_gone(to, piece.data + offset_, n)) {
        throw MemoryChanged();
      }
      to += n;
      room -= n;
      offset_ += n;
      if (offset_ == piece.size) {
        ++piece_;
        offset_ = 0;
      }
    }
  }

  void publish_fragment() {
    Slot& slot = segment_.slot_of(next_);
    const bool is_start = next_ == first_;
    if (next_ % LastCpu::kMessages == 0) cpu_.note();
    if (is_copied_last_) fill_slot();
    slot.descriptor = is_start ? descriptor_ : 0;
    if (is_start) slot.sent_ns = monotonic_ns();  // while the slot's line is on its way here
    ++next_;
    add(figures_.fragments, 1);
    // seq_cst: its release half pairs with RingReader::readable(). The total order with the gate's
    // load in wake_readers(), here or before a wait, is what loses no wake-up (see Gate).
    std::atomic_ref(slot.seq).store(next_, std::memory_order_seq_cst);
    if (is_start || remaining_ == 0 || (next_ - first_) % kFragmentsPerWake == 0) wake_readers();
  }

  void wake_readers() {
    // A reader that preempts this writer when it is woken shall know on whose CPU it is.
    if (Gate(segment_.lobby().gate).wake([this] { cpu_.note(); })) add(figures_.wakes, 1);
  }

  Segment segment_;
  Figures& figures_;
  LastCpu cpu_;
  std::uint64_t next_ = 0;             // the fragment to publish next
  std::uint64_t consumed_by_all_ = 0;  // a lower bound, refreshed when the ring looks full
  std::uint32_t slowest_ = 0;          // the reader that was furthest behind then
  std::uint32_t rejoins_ = 0;          // Lobby::rejoins, as of the last admit()
  std::uint32_t dropped_ = 0;          // readers dropped and not replaced
  std::vector<bool> is_dropped_;

  std::vector<std::uint32_t> admitted_;
  std::vector<std::uint64_t> entries_;  // the frame table
  std::vector<ConstPiece> pieces_;      // table and frames, without empty ones
  bool is_memory_held_ = true;          // see hold_memory()
  bool is_copied_last_ = false;         // the next fragment, see kCopiedLast
  std::size_t piece_ = 0;               // copied next: pieces_[piece_] from offset_
  std::size_t offset_ = 0;
  std::uint64_t first_ = 0;      // the message's first fragment
  std::uint64_t remaining_ = 0;  // its bytes still to publish
  std::uint64_t payload_ = 0;
  std::uint64_t descriptor_ = 0;
};

}  // namespace shmcast

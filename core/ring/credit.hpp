// Room: ring. How far the readers are, as the writer sees it: which slots are free again.
// Knows: the readers' counts, and how the writer waits for them to go on.
// Does not know: what is published, or what else the writer does while readers are busy.
#pragma once

#include <atomic>
#include <cstdint>

#include "layout.hpp"
#include "ring/message.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

// `next` is always the fragment that the writer publishes next.
class Credit {
 public:
  explicit Credit(const Segment& segment) : segment_(segment) {}

  // Return whether a slot is free for the next fragment.
  bool has(std::uint64_t next) {
    if (next - consumed_by_all_ < slots()) return true;  // the cached minimum suffices
    refresh(next);
    return next - consumed_by_all_ < slots();
  }

  // Look at every reader. Throws SegmentCorrupted.
  void refresh(std::uint64_t next) {
    std::uint64_t least = next;  // a reader that has left counts as having consumed all
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      // seq_cst: its acquire half pairs with RingReader::release_slot(), so that the reader's copy
      // is over before the slot is overwritten. In wait() it is also the second look after wake_at
      // was stored.
      const auto consumed =
          std::atomic_ref(segment_.member(i).consumed).load(std::memory_order_seq_cst);
      if (next - consumed > slots() && consumed != kNever) {  // (or consumed > next)
        throw_corrupted("a reader's count of fragments", consumed, "the writer's", next);
      }
      if (consumed < least) {
        least = consumed;
        slowest_ = i;
      }
    }
    consumed_by_all_ = least;
  }

  // As of the last look: how many fragments all readers have consumed, and how many slots may hold
  // one that some reader has not.
  std::uint64_t consumed_by_all() const { return consumed_by_all_; }
  std::uint64_t in_flight(std::uint64_t next) const { return next - consumed_by_all_; }

  // Wait until ready(), which looks at the readers. A reader wakes this writer when it has consumed
  // `wake_at` fragments.
  template <class Ready, class Stop>
  Outcome wait(Waiter& waiter, std::uint64_t wake_at, std::int64_t deadline_ns, Beat beat,
               Ready ready, Stop stop) {
    WriterSeat& seat = segment_.writer_seat();
    waiter.set_peer_cpu(segment_.member(slowest_).cpu);
    const auto wanted = std::atomic_ref(seat.wake_at);
    // seq_cst: announces the wait; pairs with RingReader::release_slot().
    wanted.store(wake_at, std::memory_order_seq_cst);
    const Outcome outcome = waiter.wait(Gate(segment_.writer_gate()), deadline_ns,
                                        segment_.member(slowest_).consumed, beat, ready, stop);
    // relaxed: a reader that still sees the old value makes one needless system call.
    wanted.store(kNever, std::memory_order_relaxed);
    return outcome;
  }

 private:
  std::uint64_t slots() const { return segment_.geometry().slots; }

  Segment segment_;
  std::uint64_t consumed_by_all_ = 0;  // a lower bound, refreshed when the ring looks full
  std::uint32_t slowest_ = 0;          // the reader that was furthest behind then
};

}  // namespace shmcast

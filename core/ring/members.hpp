// Room: ring. The members: who is in a ring, as any of them or an observer sees it.
// Knows: seats, identities, progress.
// Does not know: whether a process is alive, or what to do about one that is not.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>
#include <vector>

#include "layout.hpp"
#include "ring/message.hpp"
#include "wait/cpus.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

// Return how many readers have attached so far.
inline std::uint32_t attached_readers(const Segment& segment) {
  std::uint32_t count = 0;
  for (std::uint32_t i = 0; i < segment.geometry().readers; ++i) {
    // seq_cst: read between announce() and park(); pairs with take_seat().
    const auto seat = std::atomic_ref(segment.member(i).seat).load(std::memory_order_seq_cst);
    if (Seat::state(seat) != SeatState::vacant) ++count;
  }
  return count;
}

// Return a count that changes whenever somebody takes a seat or gives it up.
inline std::uint32_t arrivals_so_far(const Segment& segment) {
  // relaxed: a hint.
  return std::atomic_ref(segment.lobby().arrivals).load(std::memory_order_relaxed);
}

// A member as its peers see it.
struct Peer {
  std::uint32_t index;        // of a reader; the writer's is the number of readers
  std::uint64_t seat;         // a Seat
  Identity identity;          // start time 0: not written yet
  std::uint64_t behind;       // fragments published and not yet consumed
  std::uint64_t takeovers;    // times that the seat was taken over from a dead reader
  std::uint64_t predecessor;  // the Seat that the last of them found
};

inline constexpr int kSeatTries = 16;

// Return all members: the readers by index, then the writer.
inline std::vector<Peer> peers(const Segment& segment) {
  const std::uint64_t published = peek(segment.writer_figures().fragments);
  std::vector<Peer> all;
  for (std::uint32_t i = 0; i < segment.geometry().readers; ++i) {
    Member& member = segment.member(i);
    // acquire: pairs with take_seat() and leave().
    auto seat = std::atomic_ref(member.seat).load(std::memory_order_acquire);
    // acquire: pairs with take_seat().
    auto takeovers = std::atomic_ref(member.takeovers).load(std::memory_order_acquire);
    // The count is that of the seat, unless that is claimed: then, it may come yet. (A bound,
    // because a member that is out of its mind may write there without end.)
    for (int tries = 0; tries < kSeatTries; ++tries) {
      const auto again = std::atomic_ref(member.seat).load(std::memory_order_acquire);
      if (again == seat) break;
      seat = again;
      takeovers = std::atomic_ref(member.takeovers).load(std::memory_order_acquire);
    }
    // acquire: pairs with the release store of the start time in take_seat().
    const auto start = std::atomic_ref(member.identity.start_time).load(std::memory_order_acquire);
    const Identity identity{start, peek(member.identity.pid_namespace), Seat::pid(seat),
                            peek(member.identity.holds_lock)};
    const std::uint64_t consumed = peek(member.consumed);
    const std::uint64_t behind = consumed >= published ? 0 : published - consumed;
    all.push_back({i, seat, identity, behind, takeovers, peek(member.predecessor)});
  }
  // acquire: pairs with RingWriter::close().
  const auto end = std::atomic_ref(segment.lobby().closed).load(std::memory_order_acquire);
  const Identity& writer = segment.header().writer;
  const auto state = end == std::uint32_t(End::none)     ? SeatState::attached
                     : end == std::uint32_t(End::failed) ? SeatState::failed
                                                         : SeatState::left;
  all.push_back({segment.geometry().readers, Seat::pack(writer.pid, state), writer, 0, 0, 0});
  return all;
}

// Return the fragments published and not yet consumed, by reader; 0 for one that has left.
inline std::vector<std::uint64_t> lags(const Segment& segment) {
  const std::uint64_t published = peek(segment.writer_figures().fragments);
  std::vector<std::uint64_t> lags;
  for (std::uint32_t i = 0; i < segment.geometry().readers; ++i) {
    const std::uint64_t consumed = peek(segment.member(i).consumed);
    lags.push_back(consumed >= published ? 0 : published - consumed);
  }
  return lags;
}

// Return how many sets of device tensors each member has begun: the readers by index, then the
// writer.
inline std::vector<std::uint64_t> tensor_sets(const Segment& segment) {
  std::vector<std::uint64_t> sets;
  for (std::uint32_t i = 0; i < segment.geometry().readers; ++i) {
    sets.push_back(peek(segment.reader_figures(i).tensor_sets));
  }
  sets.push_back(peek(segment.writer_figures().tensor_sets));
  return sets;
}

// Return whether a member is there or still expected, so that it may need a CPU.
inline bool needs_cpu(const Segment& segment, std::uint32_t index) {
  // relaxed, twice: hints.
  if (index == segment.geometry().readers) {
    return std::atomic_ref(segment.lobby().closed).load(std::memory_order_relaxed) == 0;
  }
  const SeatState state = Seat::state(peek(segment.member(index).seat));
  return state != SeatState::left && state != SeatState::dropped;
}

inline constexpr double kNoQuota = std::numeric_limits<double>::infinity();

// Tell the other members on which CPUs the calling thread, that of member `me`, may run. Return
// whether the members that may run there outnumber those CPUs, of which a quota leaves `quota`.
inline bool is_crowded(const Segment& segment, std::uint32_t me, double quota) {
  const Affinity affinity = Affinity::of_this_thread();
  affinity.publish(segment.cpus(me));
  const double usable = std::min<double>(affinity.count, quota);
  std::uint32_t members = 1;
  for (std::uint32_t i = 0; i <= segment.geometry().readers && members <= usable; ++i) {
    if (i != me && needs_cpu(segment, i) && affinity.overlaps(segment.cpus(i))) ++members;
  }
  return members > usable;
}

// Tell that the member at a place has died, of which whoever tells it may die in turn; return who
// was the first of whom that was told.
inline std::uint32_t tell_death(const Segment& segment, std::uint32_t place) {
  std::uint32_t first = 0;
  // relaxed: whoever knows of a death by which this one is surpassed knows it by the seat or the
  // kernel, which order what the dead did before.
  const bool is_first = std::atomic_ref(segment.lobby().first_dead)
                            .compare_exchange_strong(first, place + 1, std::memory_order_relaxed);
  return is_first ? place : first - 1;
}

// Return the place of who died first, as was told; the number of places if nobody was told to have.
inline std::uint32_t told_death(const Segment& segment) {
  // relaxed: as in tell_death(). What a writer has told before it left is seen by who has seen it
  // leave, for peers() acquires that.
  const std::uint32_t first =
      std::atomic_ref(segment.lobby().first_dead).load(std::memory_order_relaxed);
  return first == 0 ? segment.geometry().readers + 1 : first - 1;
}

// Return how many fragments a writer has published that is no more, as the slots tell. (Its figures
// may be one ahead, if it was killed at that moment.)
inline std::uint64_t published_in(const Segment& segment) {
  std::uint64_t most = 0;
  for (std::uint32_t i = 0; i < segment.geometry().slots; ++i) {
    // acquire: the last writer's stores to the slots come before the next one's.
    most = std::max(most, std::atomic_ref(segment.slot_of(i).seq).load(std::memory_order_acquire));
  }
  return most;
}

// The word that becomes `number` when a reader's next fragment is there, for who waits for many
// rings.
struct Awaited {
  const std::uint64_t* seq;
  std::uint64_t number;
  bool is_there() const {
    // seq_cst: as in RingReader::readable(). (atomic_ref of const needs C++26)
    return std::atomic_ref(const_cast<std::uint64_t&>(*seq)).load(std::memory_order_seq_cst) ==
           number;
  }
  // Check that the slot holds the fragment of the lap before, or nothing yet. Anything else would
  // be waited for without end. Throws SegmentCorrupted.
  void check(std::uint64_t slots) const {
    const std::uint64_t found = peek(*seq);
    const std::uint64_t before = number <= slots ? 0 : number - slots;
    if (found != before && found != number) {  // (it may have just arrived)
      throw_corrupted("a slot's number", found, "the one awaited", number);
    }
  }
};

// Wait until all readers have attached; without any time, look. Parks on the endpoint's own gate.
template <class Stop>
Outcome wait_all_attached(const Segment& segment, Waiter& waiter, Gate gate,
                          std::int64_t deadline_ns, Stop stop) {
  const auto ready = [&] { return attached_readers(segment) == segment.geometry().readers; };
  const std::uint64_t& nearby = segment.lobby().gate;  // `arrivals` lies in the same line
  if (ready()) return Outcome::ready;
  return waiter.wait(gate, deadline_ns, nearby, Beat::no, ready, stop);
}

}  // namespace shmcast

// Room: ring. What is left of a ring when all members have left it.
// Knows: that nobody looks at a message then.
// Does not know: who still has the segment mapped, for its figures.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

#include "layout.hpp"

namespace shmcast {

// Return whether all members have come and have left in order. (Of two that leave at one moment,
// each may still see the other: then it is only not found out.)
inline bool all_have_left(const Segment& segment) {
  // acquire: pairs with RingWriter::close(); the last message is written.
  const auto end = std::atomic_ref(segment.lobby().closed).load(std::memory_order_acquire);
  if (end != static_cast<std::uint32_t>(End::left)) return false;
  for (std::uint32_t i = 0; i < segment.geometry().readers; ++i) {
    // acquire: pairs with RingReader::leave(); its last look at a slot is over.
    const auto seat = std::atomic_ref(segment.member(i).seat).load(std::memory_order_acquire);
    if (Seat::state(seat) != SeatState::left) return false;
  }
  return true;
}

// Give the memory of the messages back if nobody looks at them any more: an object of a member may
// live for long after its close(). Memory that is no file's stays.
inline void give_back_messages(const Segment& segment) {
  if (!all_have_left(segment)) return;
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto slots = segment.slots();
  const auto begin = (reinterpret_cast<std::uintptr_t>(slots.data()) + page - 1) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(slots.data() + slots.size()) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_REMOVE);
}

}  // namespace shmcast

// Room: ring. Taking a reader's seat, the first time or in the place of one that has died.
// Knows: seats, and what a dead reader may have left.
// Does not know: how a reader consumes.
#pragma once

#include <atomic>
#include <cstdint>

#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "ring/waking.hpp"

namespace shmcast {

inline constexpr std::uint64_t kVacantSeat = Seat::pack(0, SeatState::vacant);

// Return whether views of the arena are counted for the reader `index`.
inline bool holds_any(const Segment& segment, std::uint32_t index) {
  for (std::uint32_t extent = 0; extent < segment.geometry().extents; ++extent) {
    // acquire: pairs with the release in ~Hold(), as in Arena::is_done().
    if (std::atomic_ref(segment.held(index, extent)).load(std::memory_order_acquire) != 0) {
      return true;
    }
  }
  return false;
}

// Take the seat `index`. `found` is the seat as it was read: vacant, or that of a reader which
// the caller knows to be dead or to have failed; of one that `may_hold` views its process lives.
// Returns false if the seat has changed since, or there are such views.
inline bool take_seat(const Segment& segment, std::uint32_t index, const Identity& who,
                      std::uint64_t found = kVacantSeat, bool may_hold = false) {
  if (may_hold && holds_any(segment, index)) return false;
  Member& member = segment.member(index);
  Lobby& lobby = segment.lobby();
  const auto seat = std::atomic_ref(member.seat);
  const bool is_first = found == kVacantSeat;
  const auto taken = is_first ? SeatState::attached : SeatState::claimed;
  // seq_cst: pairs with attached_readers(), called between announce() and park(). Its acquire
  // half pairs with the last owner's stores to the seat and RingWriter::drop(); of two who want
  // the seat, one gets it. relaxed on failure: nothing is read.
  if (!seat.compare_exchange_strong(found, Seat::pack(who.pid, taken), std::memory_order_seq_cst,
                                    std::memory_order_relaxed)) {
    return false;
  }
  if (!is_first) {
    put(member.predecessor, found);
    // release: pairs with peers(), as the store of `rejoining` and the count of arrivals do.
    std::atomic_ref(member.takeovers).fetch_add(1, std::memory_order_release);
  }
  put(member.identity.pid_namespace, who.pid_namespace);
  put(member.identity.holds_lock, who.holds_lock);
  // release: pairs with peers(); who sees the start time sees the others.
  std::atomic_ref(member.identity.start_time).store(who.start_time, std::memory_order_release);
  if (!is_first) {
    // Free what the dead reader held in the arena, even if this one leaves before it is attached.
    // relaxed: ordered by the store of `consumed` below.
    for (std::uint32_t extent = 0; extent < segment.geometry().extents; ++extent) {
      std::atomic_ref(segment.held(index, extent)).store(0, std::memory_order_relaxed);
    }
    // Let the writer wait for the dead reader no longer. seq_cst: as in leave(). This is done
    // before the writer can attach this reader, in RingWriter::admit().
    std::atomic_ref(member.consumed).store(kNever, std::memory_order_seq_cst);
    // release: pairs with RingWriter::admit(); who sees the state sees all of the above.
    seat.store(Seat::pack(who.pid, SeatState::rejoining), std::memory_order_release);
    // release: pairs with the acquire in RingWriter::begin().
    std::atomic_ref(lobby.rejoins).fetch_add(1, std::memory_order_release);
  }
  // relaxed: a hint that there is somebody to watch.
  std::atomic_ref(lobby.arrivals).fetch_add(1, std::memory_order_relaxed);
  wake_writer(segment);
  wake_readers(segment);
  return true;
}

// Have nothing spilled from now on: this process can't map it. To be called before take_seat().
inline void refuse_spill(const Segment& segment) {
  // release: pairs with RingWriter::may_spill(), as what take_seat() stores does.
  std::atomic_ref(segment.lobby().unmapped).fetch_add(1, std::memory_order_release);
}

}  // namespace shmcast

// Room: hub. The barrier of a hub and its members.
// Knows: who has come to it, by words of the tail; whom to wake when all have.
// Does not know: how anybody waits, or who has died.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "hub/tail.hpp"
#include "layout.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"
#include "wait/yielding.hpp"

namespace shmcast {

// Everybody has a word that counts the barriers it has come to. Nobody is past one before all words
// have its number: nothing is reset, so nobody can come too early, and of a dead member one can
// tell whether it had come. Whoever passes wakes the others: the last one to come does, and if that
// one dies of it, whoever looks next. models/barrier.pml proves it.
//
// Not for members that take a dead one's place: they would count anew.
class Barrier {
 public:
  // `place`: a member's index, or their number for the hub.
  Barrier(const Segment& messages, const Tail& tail, std::uint32_t place)
      : segment_(messages),
        tail_(tail),
        place_(place),
        gate_(place == members() ? &tail.bell().gate : &messages.readers_gate()) {}

  // Come to the next barrier; or stay in the one that an earlier call has not got past.
  void enter() {
    may_yield_ = true;
    if (std::exchange(is_within_, true)) return;
    missing_ = 0;
    ++number_;
    // seq_cst: pairs with the loads of has_come(). Of the last two to come, one sees the other.
    std::atomic_ref(tail_.barriers(place_)).store(number_, std::memory_order_seq_cst);
  }
  // Pass it: all have come.
  void leave() {
    is_within_ = false;
    Gate(segment_.readers_gate()).wake();
    Gate(tail_.bell().gate).wake();
  }

  // Return how many barriers this one has passed.
  std::uint64_t passed() const { return number_ - (is_within_ ? 1 : 0); }

  // Return whether all have come. For who is within, as the others are.
  bool all_have_come() {
    while (missing_ <= members() && has_come(missing_)) ++missing_;
    return missing_ > members();
  }

  // Return whether somebody has closed who has not come, or the hub has closed.
  bool is_void() const {
    // seq_cst, both: read between announce() and park(); they pair with RingWriter::close() and
    // RingReader::leave(). Before the words: who came, and then closed, has come.
    if (std::atomic_ref(segment_.lobby().closed).load(std::memory_order_seq_cst) != 0) {
      return !absent().empty();
    }
    if (std::atomic_ref(segment_.lobby().left).load(std::memory_order_seq_cst) == 0) return false;
    for (std::uint32_t i = missing_; i < members(); ++i) {
      if (seat_state(i) == SeatState::left && !has_come(i)) return true;
    }
    return false;
  }

  // Return who has not come.
  std::vector<std::uint32_t> absent() const {
    std::vector<std::uint32_t> absent;
    for (std::uint32_t i = missing_; i <= members(); ++i) {
      if (!has_come(i)) absent.push_back(i);
    }
    return absent;
  }

  // Wait for no member that was dropped, from now on. For the hub, which drops them.
  void excuse_dropped() {
    for (std::uint32_t i = missing_; i < members(); ++i) {
      if (has_come(i) || seat_state(i) != SeatState::dropped) continue;
      // seq_cst: as in enter(), in the dead one's place.
      std::atomic_ref(tail_.barriers(i)).store(kNever, std::memory_order_seq_cst);
    }
  }

  // Wait until ready() or stop(), where this end of the messages parks: whoever interrupts it, or
  // closes the ring, ends this wait, too. `waiter` is the caller's, ready() reads seq_cst.
  template <class Ready, class Stop>
  Outcome wait(Waiter& waiter, std::int64_t deadline_ns, Ready ready, Stop stop) {
    if (ready()) return Outcome::ready;
    if (std::exchange(may_yield_, false) && waiter.is_crowded() &&
        yielding_.until(deadline_ns, ready, stop)) {
      return Outcome::ready;
    }
    const std::uint32_t awaited = missing_ > members() ? place_ : missing_;
    return waiter.wait(Gate(*gate_), deadline_ns, tail_.barriers(awaited), Beat::no, ready, stop);
  }

 private:
  std::uint32_t members() const { return segment_.geometry().readers; }
  bool has_come(std::uint32_t i) const {
    // seq_cst: read between announce() and park(); pairs with enter(), after which leave()
    // looks at the gates.
    return std::atomic_ref(tail_.barriers(i)).load(std::memory_order_seq_cst) >= number_;
  }
  SeatState seat_state(std::uint32_t i) const {
    // acquire: pairs with RingWriter::drop() and RingReader::leave().
    return Seat::state(std::atomic_ref(segment_.member(i).seat).load(std::memory_order_acquire));
  }

  Segment segment_;
  Tail tail_;
  std::uint32_t place_;
  std::uint64_t* gate_;
  Yielding yielding_;
  std::uint64_t number_ = 0;   // barriers that this one has come to
  std::uint32_t missing_ = 0;  // the first one that was not seen to have come to the last of them
  bool is_within_ = false;
  bool may_yield_ = true;  // in this wait, which has not yet
};

}  // namespace shmcast

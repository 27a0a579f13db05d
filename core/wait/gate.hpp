// Room: wait. The gate: how a thread sleeps until it is woken by another process.
// Knows: the futex system call and the clock.
// Does not know: what is waited for, or for how long it is worth spinning first.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <climits>
#include <cstdint>

namespace shmcast {

inline constexpr std::int64_t kForever = INT64_MAX;

inline std::int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * std::int64_t{1'000'000'000} + now.tv_nsec;
}

// Return the time of day, for people: it may jump.
inline std::int64_t realtime_ns() {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return now.tv_sec * std::int64_t{1'000'000'000} + now.tv_nsec;
}

// An eventcount: several threads park, one system call wakes them all.
//
// The low half of its word counts threads that are parked or about to park; its highest bit says
// that event loops are armed, which await a byte in a pipe (see Doorbell). The high half counts
// wake-ups; the kernel compares it. A wake-up clears the low half, so that it never counts threads
// that were woken or killed. The protocol is the store-buffer pattern. Every access in it is
// seq_cst, and that total order keeps the two sides from missing each other:
//     waiter: announce(); look again; park()          waker: store the change; wake()
// Either the waiter's second look sees the change, or wake() sees the waiter. In the second case
// the high half has moved on from the ticket, so a park() that comes too late returns at once.
// A loop does the same: arm(), look again, await the byte. models/park_wake.pml proves this, and
// that it fails without these orders.
class Gate {
 public:
  explicit Gate(std::uint64_t& word) : word_(word) {}

  // Announce that the caller will look again, then park() or withdraw(). Returns its ticket.
  std::uint64_t announce() {
    // seq_cst: pairs with the load in wake(), see above.
    return std::atomic_ref(word_).fetch_add(1, std::memory_order_seq_cst);
  }

  // Take an announcement back, unless a wake-up has cleared it already.
  void withdraw(std::uint64_t ticket) {
    // relaxed: this only saves a waker a needless system call; the count orders nothing.
    std::uint64_t word = std::atomic_ref(word_).load(std::memory_order_relaxed);
    while (wake_ups(word) == wake_ups(ticket) &&
           !std::atomic_ref(word_).compare_exchange_weak(word, word - 1, std::memory_order_relaxed,
                                                         std::memory_order_relaxed)) {
    }
  }

  // Sleep until wake(), the deadline (CLOCK_MONOTONIC) or a signal. Returns false after a signal.
  bool park(std::uint64_t ticket, std::int64_t deadline_ns) {
    timespec until{deadline_ns / 1'000'000'000, deadline_ns % 1'000'000'000};
    const long rc = syscall(SYS_futex, high_half(), FUTEX_WAIT_BITSET, wake_ups(ticket), &until,
                            nullptr, FUTEX_BITSET_MATCH_ANY);
    return !(rc == -1 && errno == EINTR);
  }

  // Say that a loop will look again, then await a byte. Returns the word before.
  std::uint64_t arm() {
    // seq_cst: as announce().
    return std::atomic_ref(word_).fetch_or(kArmed, std::memory_order_seq_cst);
  }

  // Wake all parked threads, and call ring() if loops are armed, which are so no more. Returns
  // whether that took a system call, before which it calls before_call().
  template <class BeforeCall, class Ring>
  bool wake(BeforeCall before_call, Ring ring) {
    // seq_cst: pairs with announce() and arm(). The change to be seen was stored seq_cst as well.
    std::uint64_t word = std::atomic_ref(word_).load(std::memory_order_seq_cst);
    do {
      if (!has_waiters(word)) return false;
      // relaxed on failure: the loop looks at the count again.
    } while (!std::atomic_ref(word_).compare_exchange_weak(
        word, std::uint64_t{wake_ups(word) + 1} << 32, std::memory_order_seq_cst,
        std::memory_order_relaxed));
    before_call();
    if ((word & kParked) != 0) wake_parked();
    if ((word & kArmed) != 0) ring();
    return true;
  }
  // Wake all parked threads, for who has no news for loops: they stay armed. Returns as above.
  bool wake() {
    // seq_cst: as above.
    std::uint64_t word = std::atomic_ref(word_).load(std::memory_order_seq_cst);
    do {
      if ((word & kParked) == 0) return false;
      // relaxed on failure: the loop looks at the count again.
    } while (!std::atomic_ref(word_).compare_exchange_weak(
        word, std::uint64_t{wake_ups(word) + 1} << 32 | (word & kArmed), std::memory_order_seq_cst,
        std::memory_order_relaxed));
    wake_parked();
    return true;
  }

  // Return whether threads are parked, or about to, or loops armed.
  static bool has_waiters(std::uint64_t word) { return static_cast<std::uint32_t>(word) != 0; }
  static std::uint32_t wake_ups(std::uint64_t word) {
    return static_cast<std::uint32_t>(word >> 32);
  }

 private:
  static constexpr std::uint64_t kArmed = std::uint64_t{1} << 31;
  static constexpr std::uint64_t kParked = kArmed - 1;

  void wake_parked() { syscall(SYS_futex, high_half(), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }
  // The kernel compares 32 bits.
  std::uint32_t* high_half() const {
    static_assert(std::endian::native == std::endian::little);
    return reinterpret_cast<std::uint32_t*>(&word_) + 1;
  }

  std::uint64_t& word_;
};

// How a wait, or a step that may wait, ended.
enum class Outcome : std::uint8_t {
  ready,
  timed_out,
  closed,       // by the peer, or by this endpoint in another thread
  interrupted,  // look for signals, then resume
  abandoned,    // (RingReader::fetch) the writer gave the message up
};

// Return the point in time `timeout_ns` from now.
inline std::int64_t deadline_after(std::int64_t timeout_ns) {
  const std::int64_t now = monotonic_ns();
  return timeout_ns > kForever - now ? kForever : now + timeout_ns;
}

// The end of one call, of however many waits it consists. Set when it is first asked for: a call
// that finds everything there reads no clock.
class Deadline {
 public:
  explicit Deadline(std::int64_t timeout_ns) : timeout_ns_(timeout_ns) {}
  std::int64_t ns() {
    if (ns_ == 0) ns_ = deadline_after(timeout_ns_);
    return ns_;
  }

 private:
  std::int64_t timeout_ns_;
  std::int64_t ns_ = 0;
};

}  // namespace shmcast

// How a thread sleeps until a word in shared memory changes, and how it is woken.
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

// An eventcount: several park, one system call wakes them all.
//
// One word: the low half counts who is parked or about to be, the high half counts wake-ups and is
// what the kernel compares. A wake-up empties the low half, so that it never speaks of those who
// were woken or killed. The protocol is the store-buffer pattern; every access in it is seq_cst,
// and that total order is what forbids both sides to miss each other:
//     waiter: announce(); look again; park()          waker: change the world; wake()
// Either the waiter's second look sees the change, or wake() sees the waiter. In the second case
// the high half has moved on from the ticket, so that a park() which comes too late returns at
// once. models/park_wake.pml proves it, and that it fails without these orders.
class Gate {
 public:
  explicit Gate(std::uint64_t& word) : word_(word) {}

  // The caller is about to park(), or will withdraw().
  std::uint64_t announce() {
    // seq_cst: pairs with the load in wake(), see above.
    return std::atomic_ref(word_).fetch_add(1, std::memory_order_seq_cst);
  }

  // The caller who had `ticket` is up, for another reason than a wake-up.
  void withdraw(std::uint64_t ticket) {
    // relaxed: it only spares a waker a needless system call; the count says nothing else.
    std::uint64_t word = std::atomic_ref(word_).load(std::memory_order_relaxed);
    while (wake_ups(word) == wake_ups(ticket) &&
           !std::atomic_ref(word_).compare_exchange_weak(word, word - 1, std::memory_order_relaxed,
                                                         std::memory_order_relaxed)) {
    }
  }

  // Sleeps until wake(), the deadline (CLOCK_MONOTONIC) or a signal; false if it was a signal.
  bool park(std::uint64_t ticket, std::int64_t deadline_ns) {
    timespec until{deadline_ns / 1'000'000'000, deadline_ns % 1'000'000'000};
    const long rc = syscall(SYS_futex, high_half(), FUTEX_WAIT_BITSET, wake_ups(ticket), &until,
                            nullptr, FUTEX_BITSET_MATCH_ANY);
    return !(rc == -1 && errno == EINTR);
  }

  // Wakes all who are parked; returns whether a system call was needed.
  bool wake() {
    // seq_cst: pairs with announce(). The change that is being reported was stored seq_cst too.
    std::uint64_t word = std::atomic_ref(word_).load(std::memory_order_seq_cst);
    do {
      if (static_cast<std::uint32_t>(word) == 0) return false;
      // relaxed on failure: the loop looks at the count again.
    } while (!std::atomic_ref(word_).compare_exchange_weak(
        word, std::uint64_t{wake_ups(word) + 1} << 32, std::memory_order_seq_cst,
        std::memory_order_relaxed));
    syscall(SYS_futex, high_half(), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
    return true;
  }

 private:
  static std::uint32_t wake_ups(std::uint64_t word) {
    return static_cast<std::uint32_t>(word >> 32);
  }
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
  interrupted,  // time to look for signals, then resume
  abandoned,    // (RingReader::fetch) the writer gave the message up
};

// `timeout_ns` from now.
inline std::int64_t deadline_after(std::int64_t timeout_ns) {
  const std::int64_t now = monotonic_ns();
  return timeout_ns > kForever - now ? kForever : now + timeout_ns;
}

}  // namespace shmcast

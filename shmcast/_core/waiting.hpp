// How a thread waits for a word in shared memory to change: look, spin, park on a Gate.
#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>

namespace shmcast {

inline constexpr std::int64_t kForever = INT64_MAX;
// A wait comes back to its caller this often, to look for signals that hit another thread or fell
// between two system calls. 20 returns a second cost an idle reader well under 0.1 % of a core.
inline constexpr std::int64_t kSliceNs = 50'000'000;
// A spinner comes back more often, for its rehearsal: caches forget within milliseconds.
inline constexpr std::int64_t kSpinSliceNs = 100'000;
inline constexpr int kLooksPerClockRead = 64;

inline std::int64_t monotonic_ns() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * std::int64_t{1'000'000'000} + now.tv_nsec;
}

// Tells the core that this is a spin loop: a sibling thread gets its turn, the exit costs less.
inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb" ::: "memory");
#else
  asm volatile("" ::: "memory");
#endif
}

// An eventcount on one futex word: several park, one system call wakes them all.
//
// Bit 0 says that somebody is parked or about to be, the bits above count wake-ups. The protocol is
// the store-buffer pattern; every access in it is seq_cst, and that total order is what forbids
// both sides to miss each other:
//     waiter: announce(); look again; park()          waker: change the word; wake()
// Either the waiter's second look sees the change, or wake() sees bit 0. In the second case the
// word has moved on from the ticket, so that a park() which comes too late returns at once.
class Gate {
 public:
  explicit Gate(std::uint32_t& word) : word_(word) {}

  std::uint32_t announce() {
    // seq_cst: pairs with the load in wake(), see above.
    return std::atomic_ref(word_).fetch_or(1, std::memory_order_seq_cst) | 1;
  }

  // Sleeps until wake(), the deadline (CLOCK_MONOTONIC) or a signal; false if it was a signal.
  bool park(std::uint32_t ticket, std::int64_t deadline_ns) {
    timespec until{deadline_ns / 1'000'000'000, deadline_ns % 1'000'000'000};
    const long rc = syscall(SYS_futex, &word_, FUTEX_WAIT_BITSET, ticket, &until, nullptr,
                            FUTEX_BITSET_MATCH_ANY);
    return !(rc == -1 && errno == EINTR);
  }

  // Wakes all who are parked; returns whether a system call was needed.
  bool wake() {
    // seq_cst: pairs with announce(). The change that is being reported was stored seq_cst too.
    std::uint32_t word = std::atomic_ref(word_).load(std::memory_order_seq_cst);
    do {
      if ((word & 1) == 0) return false;
      // relaxed on failure: the loop looks at the bit again; +1 clears bit 0 and counts.
    } while (!std::atomic_ref(word_).compare_exchange_weak(
        word, word + 1, std::memory_order_seq_cst, std::memory_order_relaxed));
    syscall(SYS_futex, &word_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
    return true;
  }

 private:
  std::uint32_t& word_;
};

// How a wait, or a step that may wait, ended.
enum class Outcome : std::uint8_t {
  ready,
  timed_out,
  closed,       // by the peer, or by this endpoint in another thread
  interrupted,  // time to look for signals, then resume
  abandoned,    // (RingReader::fetch) the writer gave the message up
};

// Until when a wait may last, and until when it may burn its core.
struct Patience {
  std::int64_t deadline_ns = kForever;
  std::int64_t spin_until_ns = 0;

  static Patience starting_now(std::int64_t timeout_ns, std::int64_t spin_ns) {
    const std::int64_t now = monotonic_ns();
    const auto after = [now](std::int64_t ns) { return ns > kForever - now ? kForever : now + ns; };
    return {after(timeout_ns), after(spin_ns)};
  }
};

// A count that one thread makes and any thread may read. relaxed throughout: a figure for people.
class Tally {
 public:
  void operator+=(std::uint64_t n) { count_.store(value() + n, std::memory_order_relaxed); }
  void operator++() { *this += 1; }
  std::uint64_t value() const { return count_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> count_{0};
};

struct WaitCounters {
  Tally spins;  // waits that ended while spinning
  Tally parks;  // times that the thread went to sleep
  Tally wakes;  // system calls made to wake others
};

// Waits until ready() or stop(). `interrupted` asks the caller to handle signals and call again.
template <class Ready, class Stop>
Outcome wait_for(Gate gate, const Patience& patience, WaitCounters& counters, Ready ready,
                 Stop stop) {
  // What was published before the close is still delivered: stop() first, then one more ready().
  const auto stopped = [&] { return ready() ? Outcome::ready : Outcome::closed; };

  std::int64_t now = monotonic_ns();
  const std::int64_t slice = now < patience.spin_until_ns ? kSpinSliceNs : kSliceNs;
  const std::int64_t slice_end = std::min(patience.deadline_ns, now + slice);
  const std::int64_t spin_end = std::min(patience.spin_until_ns, slice_end);
  while (now < spin_end) {
    for (int look = 0; look < kLooksPerClockRead; ++look) {
      if (ready()) {
        ++counters.spins;
        return Outcome::ready;
      }
      cpu_relax();
    }
    if (stop()) return stopped();
    now = monotonic_ns();
  }
  bool signalled = false;
  while (now < slice_end && !signalled) {
    const std::uint32_t ticket = gate.announce();
    if (ready()) return Outcome::ready;
    if (stop()) return stopped();
    ++counters.parks;
    signalled = !gate.park(ticket, slice_end);
    if (ready()) return Outcome::ready;
    now = monotonic_ns();
  }
  if (ready()) return Outcome::ready;
  if (stop()) return stopped();
  return now >= patience.deadline_ns ? Outcome::timed_out : Outcome::interrupted;
}

}  // namespace shmcast

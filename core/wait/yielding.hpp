// Room: wait. Whether to let others run for a moment before going to sleep.
// Knows: what a yield has cost.
// Does not know: what is waited for.
#pragma once

#include <sched.h>

#include <algorithm>
#include <cstdint>

#include "wait/gate.hpp"
#include "wait/pace.hpp"

namespace shmcast {

// Where there are too few CPUs to spin, who is waited for needs this one. To be woken costs tens of
// microseconds all the same, most of them where a virtual CPU halts in between. So a waiter first
// gives way to whoever wants to run, again and again, for as long as a wake-up may cost.
//
// Who yields is not preferred as who sleeps is: beside a thread that computes, a yield ends with
// that thread's slice, milliseconds later. After one of these, the next waits don't yield.
class Yielding {
 public:
  // Yield until ready() or stop(), the deadline, or for kMostNs. Returns ready().
  template <class Ready, class Stop>
  bool until(std::int64_t deadline_ns, Ready ready, Stop stop) {
    if (pause_ > 0) {
      --pause_;
      return false;
    }
    std::int64_t before = monotonic_ns();
    const std::int64_t end = std::min(deadline_ns, before + kMostNs);
    while (before < end && !stop()) {
      sched_yield();
      const std::int64_t now = monotonic_ns();
      if (now - before > kLongNs) {
        pause_ = next_pause_;
        next_pause_ = std::min(kLongestPause, next_pause_ * kMorePause);
        return ready();
      }
      if (ready()) {
        good_ = (good_ + 1) % kGood;
        if (good_ == 0) next_pause_ = std::max(kShortestPause, next_pause_ / kMorePause);
        return true;
      }
      before = now;
    }
    return false;
  }

 private:
  static constexpr std::int64_t kMostNs = 200 * kMicrosecond;
  static constexpr std::int64_t kLongNs = 200 * kMicrosecond;
  // In waits.
  static constexpr int kShortestPause = 64;
  static constexpr int kLongestPause = 4096;
  static constexpr int kMorePause = 4;
  static constexpr int kGood = 1024;  // yields that ended well, until the next pause is shorter

  int pause_ = 0;
  int next_pause_ = kShortestPause;
  int good_ = 0;
};

}  // namespace shmcast

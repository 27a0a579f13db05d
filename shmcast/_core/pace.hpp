// What a waiter learns: the gaps between its messages, and how often it loses its core.
//
// Times are nanoseconds of CLOCK_MONOTONIC, given by the caller: nothing here reads a clock.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace shmcast {

inline constexpr std::int64_t kMicrosecond = 1'000;
inline constexpr std::int64_t kMillisecond = 1'000'000;

// The last gaps between *beats*: messages that were waited for, and that came more than a moment
// after the one before. A burst is one beat; what lies between two bursts is a gap.
//
// A decode loop's gaps cluster (jitter of +-10 %), now and then one is far off (a prefill, a
// pause), and the cluster moves (the batch grows). So the picture is the last 16 gaps as they are,
// and a prediction is the window of time that would have served *them* best. Only gaps longer than
// the time that has already passed are asked: after a short cluster, the next longer one has its
// turn.
class Pace {
 public:
  // When to be awake, counted from the last beat.
  struct Window {
    std::int64_t from_ns;
    std::int64_t to_ns;
  };

  // A message that was waited for has come.
  void arrived(std::int64_t now) {
    if (last_arrival_ == 0 || now - last_arrival_ > kOneBeatNs) {
      if (last_arrival_ != 0) {
        gaps_[next_] = now - beat_;
        next_ = (next_ + 1) % kGaps;
        count_ = std::min(count_ + 1, kGaps);
      }
      beat_ = now;
    }
    last_arrival_ = now;
  }

  std::int64_t last_beat() const { return beat_; }
  bool is_known() const { return count_ >= kLeastGaps; }

  // The median gap; 0 while it is not known.
  std::int64_t gap_ns() const {
    if (!is_known()) return 0;
    Sorted gaps = sorted(-1);
    return gaps.values[gaps.count / 2];
  }

  // The window in which to spin for the next message, or {0, 0} if it is better to be woken.
  //
  // Of all windows that hold at least half of the gaps in question, the one that would have cost
  // least, where a gap costs the time spun in it, or the price of a wake-up if the window missed
  // it.
  Window predict(std::int64_t elapsed_ns) const {
    const Sorted gaps = sorted(elapsed_ns);
    Window best{0, 0};
    const std::size_t n = gaps.count;
    if (n < kLeastGaps) return best;
    const std::int64_t price = wake_up_price(gaps.values[n / 2]);
    std::int64_t least = static_cast<std::int64_t>(n) * price;
    for (std::size_t i = 0; i < n; ++i) {
      const std::int64_t from = gaps.values[i];
      std::int64_t spun = 0;  // in the gaps that the window holds
      for (std::size_t j = i; j < n; ++j) {
        const std::int64_t to = gaps.values[j];
        spun += to - from;
        const auto after = static_cast<std::int64_t>(n - 1 - j);
        const std::int64_t cost =
            spun + after * (to - from) + (static_cast<std::int64_t>(i) + after) * price;
        if (2 * (j - i + 1) >= n && cost < least) {
          least = cost;
          best = {from, to};
        }
      }
    }
    return best;
  }

 private:
  static constexpr std::size_t kGaps = 16;
  static constexpr std::size_t kLeastGaps = 4;
  static constexpr std::int64_t kOneBeatNs = 100 * kMicrosecond;

  struct Sorted {
    std::array<std::int64_t, kGaps> values;
    std::size_t count = 0;
  };

  // Gaps longer than `elapsed_ns`.
  Sorted sorted(std::int64_t elapsed_ns) const {
    Sorted gaps;
    for (std::size_t i = 0; i < count_; ++i) {
      if (gaps_[i] > elapsed_ns) gaps.values[gaps.count++] = gaps_[i];
    }
    std::sort(gaps.values.begin(), gaps.values.begin() + gaps.count);
    return gaps;
  }

  // How long spinning may take to save one wake-up. A wake-up costs tens of microseconds of latency
  // and as much CPU time on the writer's side; a quarter of the gap keeps a core three quarters
  // idle, a millisecond makes it worth while to spin through the gaps of a fast loop.
  static std::int64_t wake_up_price(std::int64_t gap) {
    return std::clamp(gap / 4, kMillisecond, 12 * kMillisecond);
  }

  std::array<std::int64_t, kGaps> gaps_{};
  std::size_t count_ = 0;
  std::size_t next_ = 0;
  std::int64_t beat_ = 0;
  std::int64_t last_arrival_ = 0;
};

// How late a timed sleep ends, mostly: near the 90th percentile, because a step upwards is nine
// times as large as one downwards (a stochastic quantile estimate, Robbins and Monro 1951). Steps
// are in proportion: it is 60 us on a quiet machine, and a millisecond where a guest waits for its
// CPU.
class Oversleep {
 public:
  void slept(std::int64_t late_ns) {
    const std::int64_t step = late_ns > typical_ns_ ? 9 : -1;
    typical_ns_ = std::clamp(typical_ns_ + step * (typical_ns_ / 32), kLeastNs, kMostNs);
  }
  std::int64_t typical_ns() const { return typical_ns_; }

  // Whether a nap of that length is worth it: much longer than what it may oversleep. If not, the
  // next one is a little likelier to be, so that a bad minute is not remembered for ever.
  bool allows(std::int64_t nap_ns) {
    if (nap_ns >= std::max(kLeastNapNs, 8 * typical_ns_)) return true;
    if (nap_ns >= kLeastNapNs) slept(0);
    return false;
  }

 private:
  static constexpr std::int64_t kLeastNapNs = 500 * kMicrosecond;
  static constexpr std::int64_t kLeastNs = 20 * kMicrosecond;
  static constexpr std::int64_t kMostNs = 1 * kMillisecond;
  std::int64_t typical_ns_ = 100 * kMicrosecond;
};

// Whether this thread can have its core for itself, by what happened when it tried.
//
// A spinner that loses its core for longer than an interrupt takes shares it with somebody: another
// thread, or (in a virtual machine) another guest. It then stays off for a while, and for twice as
// long if that happens again soon.
class Contention {
 public:
  // `took_ns` is how long a few microseconds' worth of looks took. True: the core was taken away.
  bool spun(std::int64_t now, std::int64_t took_ns) {
    if (took_ns < kPreemptedNs) return false;
    const bool again = now - until_ < 4 * pause_ns_;
    pause_ns_ = again ? std::min(2 * pause_ns_, kMostNs) : kLeastNs;
    until_ = now + pause_ns_;
    return true;
  }
  // Until when to stay off; in the past if there is no reason to.
  std::int64_t until_ns() const { return until_; }

 private:
  static constexpr std::int64_t kPreemptedNs = 500 * kMicrosecond;
  static constexpr std::int64_t kLeastNs = 4 * kMillisecond;
  static constexpr std::int64_t kMostNs = 1'000 * kMillisecond;
  std::int64_t pause_ns_ = 0;
  std::int64_t until_ = 0;
};

}  // namespace shmcast

// Room: wait. The pace: what a waiter learns from the gaps between messages, and about its core.
// Knows: durations, in nanoseconds of the caller's CLOCK_MONOTONIC.
// Does not know: how to spin or sleep. Nothing here reads a clock.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

namespace shmcast {

inline constexpr std::int64_t kMicrosecond = 1'000;
inline constexpr std::int64_t kMillisecond = 1'000'000;

// An interval in which to be awake; {0, 0}: being woken is cheaper.
struct WakeInterval {
  std::int64_t from_ns = 0;
  std::int64_t to_ns = 0;
};

// The last 16 durations of one kind, and the interval that would have served *them* best. Kept as
// they are rather than as mean and deviation: durations cluster, now and then one is far off, and
// the cluster moves.
class History {
 public:
  struct Forecast {
    WakeInterval interval;
    std::int64_t cost_ns;  // the average cost of a duration with this interval
  };

  void record(std::int64_t duration_ns) {
    durations_[next_] = duration_ns;
    next_ = (next_ + 1) % kSize;
    count_ = std::min(count_ + 1, kSize);
  }

  bool is_known() const { return count_ >= kLeast; }

  // Return the median, or 0 while it is unknown.
  std::int64_t median_ns() const {
    if (!is_known()) return 0;
    const Sorted all = sorted(-1);
    return all.values[all.count / 2];
  }

  // Return the interval that would have cost least, of all that hold at least half of the durations
  // longer than `elapsed_ns`. A duration costs the time spun in the interval or, if the interval
  // misses it, the price of a wake-up. Shorter durations no longer count: after a short cluster,
  // the next longer one gets its turn.
  Forecast predict(std::int64_t elapsed_ns, std::int64_t price_ns) const {
    const Sorted longer = sorted(elapsed_ns);
    const std::size_t n = longer.count;
    WakeInterval best;
    if (n < kLeast) return {best, price_ns};
    std::int64_t least = static_cast<std::int64_t>(n) * price_ns;
    for (std::size_t i = 0; i < n; ++i) {
      const std::int64_t from = longer.values[i];
      std::int64_t spun = 0;  // over the durations inside the interval
      for (std::size_t j = i; j < n; ++j) {
        const std::int64_t to = longer.values[j];
        spun += to - from;
        const auto after = static_cast<std::int64_t>(n - 1 - j);
        const std::int64_t cost =
            spun + after * (to - from) + (static_cast<std::int64_t>(i) + after) * price_ns;
        if (2 * (j - i + 1) >= n && cost < least) {
          least = cost;
          best = {from, to};
        }
      }
    }
    return {best, least / static_cast<std::int64_t>(n)};
  }

 private:
  static constexpr std::size_t kSize = 16;
  static constexpr std::size_t kLeast = 4;

  struct Sorted {
    std::array<std::int64_t, kSize> values;
    std::size_t count = 0;
  };

  // Return the durations longer than `elapsed_ns`, sorted.
  Sorted sorted(std::int64_t elapsed_ns) const {
    Sorted longer;
    auto* const first = longer.values.data();
    for (std::size_t i = 0; i < count_; ++i) {
      if (durations_[i] <= elapsed_ns) continue;
      // (Each in its place: what std::sort does with so few. Of it, g++ 16 warns without reason.)
      auto* const last = first + longer.count++;
      *last = durations_[i];
      std::rotate(std::upper_bound(first, last, durations_[i]), last, last + 1);
    }
    return longer;
  }

  std::array<std::int64_t, kSize> durations_{};
  std::size_t count_ = 0;
  std::size_t next_ = 0;
};

// What a waiter knows about its *beats*: messages that it waited for and that came more than a
// moment after the one before. A burst is one beat; the time between two bursts is a gap.
//
// In a loop driven by the source, the gaps between beats are steady. In a loop driven by the
// readers' own work, the waits are steady: the source answers when they are done. Both are recorded
// and the better forecast is used.
class Pace {
 public:
  // Record a message that was waited for since `began_ns`.
  void arrived(std::int64_t now, std::int64_t began_ns) {
    if (last_arrival_ == 0 || now - last_arrival_ > kOneBeatNs) {
      if (last_arrival_ != 0) {
        gaps_.record(now - beat_);
        waits_.record(now - began_ns);
      }
      beat_ = now;
    }
    last_arrival_ = now;
  }

  bool is_known() const { return gaps_.is_known(); }
  std::int64_t gap_ns() const { return gaps_.median_ns(); }

  // Return the interval, on the clock, in which to spin in a wait that began at `began_ns`.
  WakeInterval predict(std::int64_t now, std::int64_t began_ns) const {
    const std::int64_t price = wake_up_price(gap_ns());
    const History::Forecast by_gap = gaps_.predict(now - beat_, price);
    const History::Forecast by_wait = waits_.predict(now - began_ns, price);
    const bool is_gap = by_gap.cost_ns <= by_wait.cost_ns;
    const WakeInterval& interval = is_gap ? by_gap.interval : by_wait.interval;
    if (interval.to_ns == 0) return {};
    const std::int64_t start = is_gap ? beat_ : began_ns;
    return {start + interval.from_ns, start + interval.to_ns};
  }

 private:
  static constexpr std::int64_t kOneBeatNs = 100 * kMicrosecond;

  // Return how much spinning one saved wake-up is worth. A wake-up costs tens of microseconds of
  // latency, and as much CPU time on the writer's side. A quarter of the gap keeps a core three
  // quarters idle; a millisecond makes it worthwhile to spin through the gaps of a fast loop.
  static std::int64_t wake_up_price(std::int64_t gap) {
    return std::clamp(gap / 4, kMillisecond, 12 * kMillisecond);
  }

  History gaps_;
  History waits_;
  std::int64_t beat_ = 0;
  std::int64_t last_arrival_ = 0;
};

// How late timed sleeps end: an estimate near the 90th percentile, because a step upwards is nine
// times as large as one downwards (a stochastic quantile estimate, Robbins and Monro 1951). Steps
// are proportional: the estimate is 60 us on a quiet machine, and a millisecond where a guest waits
// for its CPU.
class Oversleep {
 public:
  void slept(std::int64_t late_ns) {
    const std::int64_t step = late_ns > typical_ns_ ? 9 : -1;
    typical_ns_ = std::clamp(typical_ns_ + step * (typical_ns_ / 32), kLeastNs, kMostNs);
  }
  std::int64_t typical_ns() const { return typical_ns_; }

  // Return whether a nap of this length is worth it: much longer than it may oversleep. A refusal
  // lowers the estimate a little, so that one bad minute is not remembered for ever.
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

// Whether this thread has its core for itself, judged by what happened when it spun. (Another one
// tells whether it was woken late.)
//
// A spinner that loses its core for longer than an interrupt takes shares the core with another
// thread or, in a virtual machine, with another guest. It then parks, for as many messages as make
// up for what it has lost, and for four times as many if it soon loses its core again: a loss makes
// each message late that comes while it lasts, so there must be many on time between two of them.
// Not for a time: in a slow loop, a time is over by the next message. A spinner has also used up
// its share of the CPU, so that the scheduler lets it come back a slice late, whereas a woken
// thread preempts.
class Contention {
 public:
  static constexpr std::int64_t kPreemptedNs = 500 * kMicrosecond;

  // Record that the time from one look to the next, at `now`, was `took_ns`. Returns true if the
  // core was taken away meanwhile.
  bool looked(std::int64_t took_ns, std::int64_t now) {
    if (took_ns < kPreemptedNs) return false;
    pause_ = since_pause_ < 4 * pause_ ? std::min(kGrowth * pause_, kMost)
                                       : std::clamp(took_ns / kGainNs, kLeast, kMostAtFirst);
    left_ = pause_;
    until_ns_ = now + kLongestNs;
    forgotten_ns_ = now + kRememberedNs;
    since_pause_ = 0;
    return true;
  }

  // Record that a message has come that was waited for.
  void arrived() {
    if (left_ > 0) {
      --left_;
    } else {
      ++since_pause_;
    }
  }

  // Return whether to park now. The neighbour may have gone long before so many messages have come:
  // to find out now and then costs one late message.
  bool is_on(std::int64_t now) {
    if (now >= until_ns_) left_ = 0;
    return left_ > 0;
  }

  // Return whether the core was lost in the last seconds: there may be more threads than cores.
  bool is_remembered(std::int64_t now) const { return now < forgotten_ns_; }

 private:
  // Spinning saves a message about a wake-up.
  static constexpr std::int64_t kGainNs = 30 * kMicrosecond;
  // In messages.
  static constexpr std::int64_t kLeast = 8;
  static constexpr std::int64_t kMostAtFirst = 64;
  static constexpr std::int64_t kMost = 4096;
  static constexpr std::int64_t kGrowth = 4;  // from one pause to the next
  // And no longer than this, if that is at least a few messages.
  static constexpr std::int64_t kLongestNs = 2'000 * kMillisecond;
  static constexpr std::int64_t kRememberedNs = 10'000 * kMillisecond;
  std::int64_t pause_ = 0;
  std::int64_t left_ = 0;
  std::int64_t until_ns_ = 0;
  std::int64_t forgotten_ns_ = 0;
  std::int64_t since_pause_ = 0;
};

}  // namespace shmcast

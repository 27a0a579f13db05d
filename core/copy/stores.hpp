// Room: copy. Which stores to use: learnt from how long both kinds take.
// Knows: durations, and which copies are trials.
// Does not know: how a copy is made. Nothing here reads a clock.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "copy/copies.hpp"

namespace shmcast {

// Shorter copies have ordinary stores: whoever reads one has it in the cache before it is through.
inline constexpr std::size_t kLeastNonTemporal = 16 * 1024;

// Longer copies are made in parts: the C library has good stores for as much as a cache of the core
// holds, and others for more.
inline constexpr std::size_t kCopyPart = 64 * 1024;

// Return the stores that the copy with this number, one of many of the same size, tries out.
// nullopt: it is no trial. Both sides of a ring know a fragment's number.
inline std::optional<Stores> trial(std::uint64_t number) {
  constexpr std::uint64_t every = 128;
  if (number % every < every - 2 || !has_non_temporal()) return std::nullopt;
  return number % 2 == 0 ? Stores::ordinary : Stores::non_temporal;
}

// The last durations of one kind, of which some may be far off: where a core was taken away.
class RecentNs {
 public:
  void record(std::int64_t ns) {
    values_[next_] = static_cast<std::uint64_t>(ns);
    next_ = (next_ + 1) % values_.size();
    count_ = std::min(count_ + 1, values_.size());
  }

  // Return the median, or 0 while it is unknown.
  std::uint64_t median() const {
    if (count_ < kLeast) return 0;
    auto sorted = values_;
    const auto middle = sorted.begin() + count_ / 2;
    std::nth_element(sorted.begin(), middle, sorted.begin() + count_);
    return *middle;
  }

 private:
  static constexpr std::size_t kLeast = 3;
  std::array<std::uint64_t, 5> values_{};
  std::size_t count_ = 0;
  std::size_t next_ = 0;
};

// Where the readers are decides which stores are faster, and may change: a host moves the CPUs of
// its guests. So both kinds are tried all the time, and the choice changes when the other one is
// faster by a margin.
class StoreChoice {
 public:
  Stores stores() const { return stores_; }

  // Compare what copies of the same size take with either kind; 0: not known.
  void compare(std::uint64_t ordinary_ns, std::uint64_t non_temporal_ns) {
    if (ordinary_ns == 0 || non_temporal_ns == 0) return;
    const bool is_ordinary = stores_ == Stores::ordinary;
    const std::uint64_t mine = is_ordinary ? ordinary_ns : non_temporal_ns;
    const std::uint64_t other = is_ordinary ? non_temporal_ns : ordinary_ns;
    if (mine > other + other / 4) stores_ = is_ordinary ? Stores::non_temporal : Stores::ordinary;
  }

 private:
  Stores stores_ = Stores::ordinary;
};

}  // namespace shmcast

// Room: arena. How an extent is filled.
// Knows: which stores the writer uses, and how long its copies have taken.
// Does not know: who reads the extent, or when. The caller has the clock.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "copy/copies.hpp"
#include "copy/stores.hpp"

namespace shmcast {

class Filling {
 public:
  // Copy into an extent. Returns how many of the bytes went past the caches. `now_ns` is a clock.
  template <class NowNs>
  std::uint64_t copy(std::byte* to, const std::byte* from, std::size_t size, NowNs now_ns) {
    if (size >= kNoCacheHolds && has_non_temporal()) {
      copy_in(to, from, size, Stores::non_temporal);
      return size;
    }
    std::uint64_t non_temporal = 0;
    while (size != 0) {
      const std::size_t part = std::min(size, kCopyPart);
      if (copy_part(to, from, part, now_ns) == Stores::non_temporal) non_temporal += part;
      to += part;
      from += part;
      size -= part;
    }
    return non_temporal;
  }

 private:
  // Measured from 1 to 128 MiB (docs/architecture/arena.md).
  static constexpr std::size_t kNoCacheHolds = 32 * 1024 * 1024;

  template <class NowNs>
  Stores copy_part(std::byte* to, const std::byte* from, std::size_t size, NowNs now_ns) {
    const auto tried = size == kCopyPart ? trial(parts_++) : std::nullopt;
    const Stores stores = tried.value_or(choice_.stores());
    const std::int64_t began = tried ? now_ns() : 0;
    copy_in(to, from, size, stores);
    if (tried) {
      times_[static_cast<std::size_t>(stores)].record(now_ns() - began);
      choose();
    }
    return stores;
  }

  // What readers do with a view is theirs, so that nobody knows how long they read; and what the
  // ring knows is of smaller messages, if there are any. So the writer's own time decides, with
  // what readers may lose added to it: near, they take up to 1.7 times as long to read what is in
  // no cache. There, the writer gains nothing; far, it gains a factor of 3, and readers lose
  // nothing.
  void choose() {
    const std::uint64_t non_temporal = times_[1].median();
    choice_.compare(times_[0].median(), non_temporal + non_temporal / 2);
  }

  StoreChoice choice_;
  std::array<RecentNs, 2> times_;  // by Stores
  std::uint64_t parts_ = 0;        // whole ones, so far
};

}  // namespace shmcast

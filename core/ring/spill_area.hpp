// Room: ring. The spill's memory: taken when it is needed, and given back when it is not.
// Knows: how much may be taken, and for how long it is kept.
// Does not know: messages; who says how much memory there is, or calls give_back().
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>

#include "arena/mapping.hpp"
#include "layout.hpp"
#include "ring/spill.hpp"
#include "wait/gate.hpp"

namespace shmcast {

// Used by the writer's thread, and by another one that calls give_back(). Nobody waits for anything
// but system calls while the mutex is held.
class SpillArea {
 public:
  SpillArea(Mapping& mapping, const Segment& segment)
      : mapping_(mapping), segment_(segment), queue_(mapping.bytes().size()) {}

  // See Spill. `room` returns how many bytes of memory a limit leaves; it is called if more is
  // needed, and what it throws is thrown.
  template <class Room>
  SpillPlace take(std::uint64_t bytes, Room room) {
    bytes = round_up(bytes, kPage);
    SpillOffset offset;
    {
      const std::lock_guard lock(mutex_);
      used_ns_ = monotonic_ns();
      const auto found = queue_.take(bytes, consumed_by_all(segment_));
      if (!found) return {};
      offset = *found;
    }
    // (What is in use is not given back.)
    if (offset + bytes > mapping_.reserved() && !grow(offset + bytes, room)) return {};
    return {mapping_.bytes().data() + offset, offset};
  }

  void settle(std::uint64_t end) {
    const std::lock_guard lock(mutex_);
    queue_.settle(end);
  }

  // Take memory for the first `bytes` bytes, if there is enough; `room`: what a limit leaves.
  void prepare(std::uint64_t bytes, std::uint64_t room) {
    const std::lock_guard lock(mutex_);
    used_ns_ = monotonic_ns();
    mapping_.reserve(std::min<std::uint64_t>(bytes, mapping_.bytes().size()), allowance(room));
  }

  // Give a part of the memory back if it was not needed for a while. Returns whether there is more.
  bool give_back(std::int64_t now) {
    const std::lock_guard lock(mutex_);
    if (now - used_ns_ > kKeptNs && queue_.is_free(consumed_by_all(segment_))) {
      mapping_.release(kGivenBackAtOnce);
    }
    return mapping_.reserved() != 0;
  }

 private:
  static constexpr std::int64_t kKeptNs = 10'000'000'000;
  // A few milliseconds, for which a writer may have to wait.
  static constexpr std::uint64_t kGivenBackAtOnce = 64 * 1024 * 1024;

  template <class Room>
  bool grow(std::uint64_t bytes, Room room) {
    bool has_grown = false;
    const Untaking undo(*this, has_grown);
    const std::uint64_t most = allowance(room());  // without the mutex: it may take a while
    const std::lock_guard lock(mutex_);
    has_grown = mapping_.reserve(bytes, most);
    return has_grown;
  }

  // What may be taken now: others keep half of what there would be without the spill.
  std::uint64_t allowance(std::uint64_t room) const {
    const std::uint64_t have = mapping_.reserved();
    const std::uint64_t left = std::min(room, mapping_.free_bytes());
    return left > have ? (left - have) / 2 : 0;
  }

  // Takes back what was taken, unless there is memory for it.
  class Untaking {
   public:
    Untaking(SpillArea& area, const bool& has_grown) : area_(area), has_grown_(has_grown) {}
    Untaking(const Untaking&) = delete;
    Untaking& operator=(const Untaking&) = delete;
    ~Untaking() {
      if (has_grown_) return;
      const std::lock_guard lock(area_.mutex_);
      area_.queue_.untake();
    }

   private:
    SpillArea& area_;
    const bool& has_grown_;
  };

  Mapping& mapping_;
  Segment segment_;
  std::mutex mutex_;
  SpillQueue queue_;          // guarded by the mutex, as what follows
  std::int64_t used_ns_ = 0;  // when a message was spilled last
};

}  // namespace shmcast

// The arena: large frames that readers use where they lie. This is the writer's side of it, which
// knows what is handed out and when it may be used again; the readers' is Segment::held().
//
// An extent is free again when it is not lent to the writer's own program and every reader
// - has consumed all messages that speak of it  (acquire Member::consumed, as for the slots), and
// - holds no view of it                          (acquire Segment::held()),
// or is known to be dead. A reader counts its views in `held` before it gives back the fragment
// that the message ends in, and takes a view out (release) when its last use of the memory is over.
// Nothing here waits.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <optional>
#include <vector>

#include "arena/mapping.hpp"
#include "layout.hpp"

namespace shmcast {

class Arena {
 public:
  static constexpr std::uint32_t kExtents = 256;
  static_assert(kExtents <= 1u << FrameEntry::kExtentBits);

  Arena(Mapping& mapping, const Segment& segment)
      : mapping_(mapping), segment_(segment), is_dead_(segment.geometry().readers) {
    for (std::uint32_t id = kExtents; id-- > 0;) unused_.push_back(id);
  }

  // An extent of at least `bytes` bytes, the lowest that is free: that memory was used before, and
  // is warm. It is lent to the caller. nullopt: no room. `reserve` is called as Mapping::reserve()
  // is, when the arena has to grow, which takes a while.
  template <class Reserve>
  std::optional<std::uint32_t> allocate(std::uint64_t bytes, Reserve reserve) {
    bytes = round_up(std::max<std::uint64_t>(bytes, 1), kPage);
    if (bytes > mapping_.bytes().size()) return std::nullopt;
    reclaim();
    if (unused_.empty()) return std::nullopt;
    std::uint64_t at = 0;
    auto next = used_.begin();
    for (; next != used_.end() && extents_[*next].offset - at < bytes; ++next) {
      at = extents_[*next].offset + extents_[*next].bytes;
    }
    if (at + bytes > mapping_.bytes().size()) return std::nullopt;
    if (at + bytes > mapping_.reserved() && !reserve(at + bytes)) return std::nullopt;
    const std::uint32_t id = unused_.back();
    unused_.pop_back();
    extents_[id].offset = at;
    extents_[id].bytes = bytes;
    extents_[id].last = 0;
    extents_[id].is_lent.store(true, std::memory_order_relaxed);
    used_.insert(next, id);
    return id;
  }

  std::optional<std::uint32_t> allocate(std::uint64_t bytes) {
    return allocate(bytes, [this](std::uint64_t all) { return mapping_.reserve(all); });
  }

  // The caller is through with it; what was sent() of it still counts. From any thread, and after
  // the ring is gone: it touches this process's memory only.
  // release: pairs with is_free(); what was done in the memory is over.
  void give_back(std::uint32_t id) { extents_[id].is_lent.store(false, std::memory_order_release); }

  // A message speaks of the extent which ends before fragment `end`.
  void sent(std::uint32_t id, std::uint64_t end) { extents_[id].last = end; }

  // The extent that holds these bytes, all of them. nullopt: they are elsewhere.
  std::optional<std::uint32_t> find(const std::byte* data, std::size_t size) const {
    const auto memory = mapping_.bytes();
    if (data < memory.data() || data >= memory.data() + memory.size()) return std::nullopt;
    const auto offset = static_cast<std::uint64_t>(data - memory.data());
    for (const std::uint32_t id : used_) {
      const Extent& extent = extents_[id];
      if (offset >= extent.offset && offset + size <= extent.offset + extent.bytes) return id;
    }
    return std::nullopt;
  }

  // Every reader is through with what was sent of it.
  bool is_done(std::uint32_t id) const {
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      if (is_dead_[i]) continue;
      // acquire: pairs with RingReader::release_slot(); what it had counted in `held` is seen.
      const auto consumed =
          std::atomic_ref(segment_.member(i).consumed).load(std::memory_order_acquire);
      if (consumed < extents_[id].last) return false;
      // acquire: pairs with the release of a reader's view; its last look at the memory is over.
      if (std::atomic_ref(segment_.held(i, id)).load(std::memory_order_acquire) != 0) return false;
    }
    return true;
  }

  // A reader's process has ended: it holds nothing any more.
  void mark_dead(std::uint32_t reader) { is_dead_[reader] = true; }
  // Another has taken its place, as RingWriter::admit() found.
  void mark_alive(std::uint32_t reader) { is_dead_[reader] = false; }

  std::byte* data(std::uint32_t id) const { return mapping_.bytes().data() + extents_[id].offset; }
  std::uint64_t offset(const std::byte* data) const {
    return static_cast<std::uint64_t>(data - mapping_.bytes().data());
  }

 private:
  struct Extent {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
    std::uint64_t last = 0;  // who has consumed so many fragments knows what was sent of it
    std::atomic<bool> is_lent{false};
  };

  void reclaim() {
    std::erase_if(used_, [this](std::uint32_t id) {
      // acquire: pairs with give_back().
      const bool is_free = !extents_[id].is_lent.load(std::memory_order_acquire) && is_done(id);
      if (is_free) unused_.push_back(id);
      return is_free;
    });
  }

  Mapping& mapping_;
  Segment segment_;
  std::vector<bool> is_dead_;
  std::array<Extent, kExtents> extents_;
  std::vector<std::uint32_t> used_;  // by address; between them all is free
  std::vector<std::uint32_t> unused_;
};

}  // namespace shmcast

// Room: arena. The writer's allocator of extents, for large frames that readers use in place.
// Knows: which extents are in use, by whom, and when one is free again. Nothing here waits.
// Does not know: what is in an extent, or how a reader's death becomes known.
//
// An extent is free again when it is not lent to the writer's own program and every reader
// - has consumed all messages that refer to it  (acquire Member::consumed, as for the slots), and
// - holds no view of it                         (acquire Segment::held()),
// or is marked dead. A reader counts a view in `held` before it releases the message's last
// fragment, and uncounts it (release) after its last use of the memory.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <optional>
#include <vector>

#include "arena/mapping.hpp"
#include "descriptor.hpp"
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

  // Lend the caller an extent of at least `bytes` bytes: the lowest free one, whose memory is warm
  // from its last use. nullopt: no room. To grow the arena, which takes a while, `reserve` is
  // called in place of Mapping::reserve().
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

  // Give a lent extent back. It stays in use until every reader is done with what was sent() of it.
  // May be called from any thread, also after the ring is gone: it touches this process's memory
  // only. release: pairs with reclaim(); the caller's last use of the memory is over.
  void give_back(std::uint32_t id) { extents_[id].is_lent.store(false, std::memory_order_release); }

  // Record a message that refers to the extent and ends before fragment `end`.
  void sent(std::uint32_t id, std::uint64_t end) { extents_[id].last = end; }

  // Return the extent that holds all of these bytes. nullopt: they are elsewhere.
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

  // Return whether every reader is done with what was sent of the extent.
  bool is_done(std::uint32_t id) const {
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      if (is_dead_[i]) continue;
      // acquire: pairs with RingReader::release_slot(); the views counted before it are seen.
      const auto consumed =
          std::atomic_ref(segment_.member(i).consumed).load(std::memory_order_acquire);
      if (consumed < extents_[id].last) return false;
      // acquire: pairs with the release in a reader's ~Hold(); its last use of the memory is over.
      if (std::atomic_ref(segment_.held(i, id)).load(std::memory_order_acquire) != 0) return false;
    }
    return true;
  }

  // Ignore what the reader holds: its process has exited.
  void mark_dead(std::uint32_t reader) { is_dead_[reader] = true; }
  // Count the reader again: another process has taken its seat, see RingWriter::admitted().
  void mark_alive(std::uint32_t reader) { is_dead_[reader] = false; }

  std::byte* data(std::uint32_t id) const { return mapping_.bytes().data() + extents_[id].offset; }
  std::uint64_t offset(const std::byte* data) const {
    return static_cast<std::uint64_t>(data - mapping_.bytes().data());
  }

 private:
  struct Extent {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
    std::uint64_t last = 0;  // who has consumed this many fragments has all that was sent of it
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
  std::vector<std::uint32_t> used_;  // by address; all between them is free
  std::vector<std::uint32_t> unused_;
};

}  // namespace shmcast

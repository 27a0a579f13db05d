// Room: ring. How fragments get into their slots and out of them, and how long that takes.
// Knows: which stores the writer uses, and what both sides have measured.
// Does not know: which bytes these are, or when a slot is free.
//
// Trials are fragments that fill their slots, so that they compare.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "copy/copies.hpp"
#include "copy/stores.hpp"
#include "layout.hpp"
#include "ring/outgoing.hpp"
#include "wait/gate.hpp"

namespace shmcast {

// A writer's copies into the slots.
class SlotStores {
 public:
  explicit SlotStores(const Segment& segment)
      : segment_(segment), figures_(segment.writer_figures()) {}

  // Copy the next bytes of a message into the slot of this fragment. Throws MemoryChanged.
  void fill(std::uint64_t fragment, Outgoing& bytes, std::size_t size) {
    std::byte* const to = segment_.slot_of(fragment).payload();
    if (size < kLeastNonTemporal) return bytes.copy(to, size, Stores::ordinary);
    const bool fills_slot = size == segment_.geometry().slot_capacity;
    const auto tried = fills_slot ? trial(fragment) : std::nullopt;
    if (tried && bytes.is_held()) [[unlikely]] {
      try_out(*tried, to, bytes, size);
    } else {
      copy(to, bytes, size, choice_.stores());
    }
  }

  // Copy them to other memory that readers copy from once.
  void fill_beside(std::byte* to, Outgoing& bytes, std::size_t size) {
    while (size != 0) {
      const std::size_t part = std::min(size, kCopyPart);
      copy(to, bytes, part, choice_.stores());
      to += part;
      size -= part;
    }
  }

 private:
  void copy(std::byte* to, Outgoing& bytes, std::size_t size, Stores stores) {
    if (!bytes.is_held()) stores = Stores::ordinary;  // another kind of copy, see Outgoing
    bytes.copy(to, size, stores);
    if (stores == Stores::non_temporal) add(figures_.non_temporal_bytes, size);
  }

  [[gnu::noinline]] void try_out(Stores stores, std::byte* to, Outgoing& bytes, std::size_t size) {
    const std::int64_t began = monotonic_ns();
    copy(to, bytes, size, stores);
    times_[static_cast<std::size_t>(stores)].record(monotonic_ns() - began);
    // Where both are close, messages as a whole were faster with ordinary stores than trials say
    // (docs/architecture/ring.md).
    const std::uint64_t non_temporal = until_read(Stores::non_temporal);
    choice_.compare(until_read(Stores::ordinary), non_temporal + non_temporal / 4);
  }

  // Return how long it takes to store a fragment so, and the slowest reader to read it; 0: not
  // known. (relaxed: figures, they order nothing.)
  std::uint64_t until_read(Stores stores) const {
    const auto kind = static_cast<std::size_t>(stores);
    std::uint64_t slowest = 0;
    for (std::uint32_t i = 0; i < segment_.geometry().readers; ++i) {
      const Member& member = segment_.member(i);
      if (peek(member.consumed) != kNever) slowest = std::max(slowest, peek(member.read_ns[kind]));
    }
    const std::uint64_t stored = times_[kind].median();
    return slowest == 0 || stored == 0 ? 0 : stored + slowest;
  }

  Segment segment_;
  Figures& figures_;
  StoreChoice choice_;
  std::array<RecentNs, 2> times_;  // by Stores, as Member::read_ns is
};

// A reader's copies out of the slots.
class SlotReads {
 public:
  explicit SlotReads(Member& member) : member_(member) {}

  // Copy all bytes of a slot, on which these stores were tried out.
  [[gnu::noinline]] void try_out(Stores stores, std::byte* to, const std::byte* from,
                                 std::size_t size) {
    const std::int64_t began = monotonic_ns();
    copy_out(to, from, size);
    const auto kind = static_cast<std::size_t>(stores);
    times_[kind].record(monotonic_ns() - began);
    put(member_.read_ns[kind], times_[kind].median());  // relaxed: a figure, it orders nothing
  }

 private:
  Member& member_;
  std::array<RecentNs, 2> times_;
};

}  // namespace shmcast

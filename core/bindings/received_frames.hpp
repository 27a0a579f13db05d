// Room: bindings. The frames of the message that is being received, for Python.
// Knows: the memory that each of them needs, its own or a view of the arena.
// Does not know: how they are received.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <utility>
#include <vector>

#include "arena/mapping.hpp"
#include "bindings/ahead.hpp"
#include "bindings/arena_objects.hpp"
#include "bindings/frame_pool.hpp"
#include "bindings/gil.hpp"
#include "layout.hpp"
#include "ring/message.hpp"

namespace shmcast {

namespace nb = nanobind;

class ReceivedFrames {
 public:
  // Make memory for the frames of a table, and return where to put their bytes, or the offset of
  // one that is in the arena. `hold`: counts its extent as held.
  template <class HoldExtent>
  std::span<const MutablePiece> make(std::span<const std::uint64_t> entries, HoldExtent hold) {
    tick();
    payload_ = payload_bytes(entries);
    frames_.clear();
    frames_.resize(entries.size());
    pieces_.clear();
    const auto in_arena = static_cast<std::size_t>(
        std::count_if(entries.begin(), entries.end(), FrameEntry::is_in_arena));
    offsets_.resize(in_arena);
    holds_.reserve(in_arena);
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (FrameEntry::is_in_arena(entries[i])) {
        pieces_.push_back(
            {reinterpret_cast<std::byte*>(&offsets_[holds_.size()]), sizeof(ArenaOffset)});
        holds_.push_back(hold(FrameEntry::extent(entries[i])));
      } else {
        nb::object frame = own_frame(entries[i]);
        pieces_.push_back({bytes_of(frame), entries[i]});
        frames_[i] = std::move(frame);
      }
    }
    return pieces_;
  }

  // Return the bytes of all frames.
  std::uint64_t payload() const { return payload_; }
  bool are_in_arena() const { return !holds_.empty(); }

  // After the fetch, put those that are in the arena into their places. Returns how many there are.
  // `arena`: an ArenaMapping.
  std::size_t view(std::span<const std::uint64_t> entries, const nb::object& arena, bool copy) {
    const Mapping& mapping = nb::cast<ArenaMapping&>(arena);
    const std::uint64_t bound = mapping.bytes().size();
    std::size_t next = 0;
    for (std::size_t i = 0; i < entries.size(); ++i) {
      if (!FrameEntry::is_in_arena(entries[i])) continue;
      const ArenaOffset offset = offsets_[next];
      const std::uint64_t size = FrameEntry::bytes(entries[i]);
      if (offset > bound || size > bound - offset) {
        throw_corrupted("a frame's end in the arena", offset + size, "the arena's size", bound);
      }
      if (copy) {
        nb::object frame = own_frame(size);
        {
          const WithoutGil released;
          std::memcpy(bytes_of(frame), mapping.bytes().data() + offset, size);
        }
        frames_[i] = std::move(frame);
      } else {
        const nb::object lease =
            nb::cast(Lease(std::move(holds_[next]), arena, offset, size), nb::rv_policy::move);
        frames_[i] = owned(stops_at_exit([&] { return PyMemoryView_FromObject(lease.ptr()); }));
      }
      ++next;
    }
    return next;
  }

  // Return them as a list. Only here does it exist: the garbage collector shows the lists
  // that it knows to whoever asks, and one that is being filled has places without an object.
  nb::object take() {
    const auto count = static_cast<Py_ssize_t>(frames_.size());
    nb::object list = owned(stops_at_exit([count] { return PyList_New(count); }));
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyList_SET_ITEM(list.ptr(), i, frames_[static_cast<std::size_t>(i)].release().ptr());
    }
    return list;
  }

  void clear() {
    frames_.clear();
    holds_.clear();
  }

  // Count a message; and see FramePool.
  void tick() { pool_.tick(); }
  void rest(std::int64_t now) { pool_.rest(now); }
  void drop_pool() { pool_.clear(); }

  void fetch_ahead() const {
    shmcast::fetch_ahead(frames_.data(), kLine);
    shmcast::fetch_ahead(pieces_.data(), kLine);
  }

 private:
  static constexpr std::size_t kPooledFrame = 64 * 1024;

  // Return memory for a frame, uninitialised.
  nb::object own_frame(std::size_t size) {
    return size < kPooledFrame ? fresh_frame(size) : pool_.take(size);
  }

  std::vector<nb::object> frames_;  // null: in the arena
  std::vector<MutablePiece> pieces_;
  std::vector<ArenaOffset> offsets_;  // of the frames that are in the arena, in order
  std::vector<Hold> holds_;           // one for each of these, until a lease takes it over
  std::uint64_t payload_ = 0;
  FramePool pool_;
};

}  // namespace shmcast

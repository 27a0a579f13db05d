// Room: bindings. Memory for the frames that a reader receives: bytearrays, large ones pooled.
// Knows: sizes, reference counts, page faults.
// Does not know: messages.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "arena/mapping.hpp"
#include "bindings/gil.hpp"
#include "wait/gate.hpp"

namespace shmcast {

namespace nb = nanobind;

inline std::byte* bytes_of(const nb::object& frame) {
  return reinterpret_cast<std::byte*>(PyByteArray_AS_STRING(frame.ptr()));
}

// Return a new bytearray, uninitialised.
inline nb::object fresh_frame(std::size_t size) {
  // In two steps: if there is no memory for the given size, CPython 3.11 reports a half-made
  // bytearray on stderr.
  nb::object frame = owned(PyByteArray_FromStringAndSize(nullptr, 0));
  if (PyByteArray_Resize(frame.ptr(), static_cast<Py_ssize_t>(size)) != 0) {
    throw nb::python_error();
  }
  use_huge_pages(bytes_of(frame), size);
  return frame;
}

// Large frames that were received lately. A frame is reused once everything made from it is gone:
// malloc would give its memory back to the system, and page faults cost more than the copy.
class FramePool {
 public:
  // Count a message: frames that went unused for many of them are dropped.
  void tick() {
    ++now_;
    if (!kept_.empty() && now_ - kept_.front().used > kMessages) drop_oldest();
  }

  // Return a bytearray of this size that nobody else refers to, uninitialised.
  nb::object take(std::size_t size) {
    const auto found = std::find_if(kept_.begin(), kept_.end(),
                                    [size](const Kept& kept) { return kept.is_free(size); });
    if (found != kept_.end()) {
      found->used = now_;
      std::rotate(found, found + 1, kept_.end());
      return kept_.back().frame;
    }
    nb::object frame = fresh_frame(size);
    kept_.push_back({frame, size, now_});
    bytes_ += size;
    while (bytes_ > kMostBytes || kept_.size() > kMostFrames) drop_oldest();
    drop_unused();
    return frame;
  }

  // There is no message at `now`: after a second of that, drop all frames.
  void rest(std::int64_t now) {
    if (resting_ != now_) {
      resting_ = now_;
      resting_since_ = now;
    } else if (now - resting_since_ > kRestNs) {
      clear();
    }
  }

  // Drop all frames: those that nobody else refers to are given back to the system.
  void clear() {
    kept_.clear();
    bytes_ = 0;
  }

 private:
  static constexpr std::uint64_t kMessages = 100;
  static constexpr std::size_t kMostBytes = 512 * 1024 * 1024;
  static constexpr std::size_t kMostFrames = 64;
  static constexpr std::int64_t kRestNs = 1'000 * kMillisecond;
  static constexpr std::size_t kMostUnused = 64 * 1024 * 1024;

  struct Kept {
    nb::object frame;
    std::size_t size;
    std::uint64_t used;

    // Return whether it waits to be received into again, for all that can be known.
    bool is_unused() const {
#ifdef Py_GIL_DISABLED
      return true;
#else
      return Py_REFCNT(frame.ptr()) == 1;
#endif
    }

    bool is_free([[maybe_unused]] std::size_t wanted) const {
#ifdef Py_GIL_DISABLED
      return false;  // a count of 1 proves nothing without the GIL
#else
      // Whoever received it may have changed its size.
      return size == wanted && Py_REFCNT(frame.ptr()) == 1 &&
             PyByteArray_GET_SIZE(frame.ptr()) == static_cast<Py_ssize_t>(size);
#endif
    }
  };

  void drop_oldest() { drop(kept_.begin()); }

  void drop(std::vector<Kept>::iterator kept) {
    bytes_ -= kept->size;
    kept_.erase(kept);
  }

  // Keep no more memory that nobody uses than two of the largest messages need, or a little: frames
  // of sizes that don't come again would pile up.
  void drop_unused() {
    std::size_t unused = 0;
    std::size_t largest = 0;
    for (const Kept& kept : kept_) {
      if (kept.is_unused()) unused += kept.size;
      largest = std::max(largest, kept.size);
    }
    const std::size_t most = std::max(kMostUnused, 2 * largest);
    for (auto kept = kept_.begin(); unused > most && kept != kept_.end();) {
      if (kept->is_unused()) {
        unused -= kept->size;
        drop(kept);
        kept = kept_.begin();
      } else {
        ++kept;
      }
    }
  }

  std::vector<Kept> kept_;  // least recently used first
  std::size_t bytes_ = 0;
  std::uint64_t now_ = 0;           // messages so far
  std::uint64_t resting_ = 0;       // as of the first rest() since the last one
  std::int64_t resting_since_ = 0;  // when that was
};

}  // namespace shmcast

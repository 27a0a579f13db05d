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
#include "bindings/convert.hpp"

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
    return frame;
  }

 private:
  static constexpr std::uint64_t kMessages = 100;
  static constexpr std::size_t kMostBytes = 512 * 1024 * 1024;
  static constexpr std::size_t kMostFrames = 16;

  struct Kept {
    nb::object frame;
    std::size_t size;
    std::uint64_t used;

    bool is_free(std::size_t wanted) const {
#ifdef Py_GIL_DISABLED
      return false;  // a count of 1 proves nothing without the GIL
#else
      // Whoever received it may have changed its size.
      return size == wanted && Py_REFCNT(frame.ptr()) == 1 &&
             PyByteArray_GET_SIZE(frame.ptr()) == static_cast<Py_ssize_t>(size);
#endif
    }
  };

  void drop_oldest() {
    bytes_ -= kept_.front().size;
    kept_.erase(kept_.begin());
  }

  std::vector<Kept> kept_;  // least recently used first
  std::size_t bytes_ = 0;
  std::uint64_t now_ = 0;
};

}  // namespace shmcast

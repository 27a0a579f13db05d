// Room: bindings. Messages that were received and that nobody has got yet.
// Knows: their order, and that another thread may take one back.
// Does not know: why they wait.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/gil.hpp"

namespace shmcast {

namespace nb = nanobind;

// A message without frames: the object that was made of them, which its caller has not got.
class Decoded {
 public:
  explicit Decoded(nb::object object) : object_(std::move(object)) {}

  const nb::object& object() const { return object_; }

 private:
  Reference object_;
};

// A queue of messages, each a list of frames or Decoded; rarely more than one. For any thread.
class KeptFrames {
 public:
  KeptFrames() = default;
  KeptFrames(const KeptFrames&) = delete;
  KeptFrames& operator=(const KeptFrames&) = delete;
  ~KeptFrames() { drop_all(); }

  bool is_empty() const { return kept_.empty(); }

  // `number`: what is to be known of it beside its frames.
  void push(const nb::object& frames, std::uint64_t number = 0) {
    const nb::ft_lock_guard guard(mutex_);
    kept_.push_back({frames.inc_ref().ptr(), number});
  }
  // Set the number of one that was not here, and that put_back() may bring.
  void set_number(std::uint64_t number) {
    const nb::ft_lock_guard guard(mutex_);
    last_ = number;
  }
  // Return the number of the next one; nothing: there is none, or None in its place.
  std::optional<std::uint64_t> number() {
    const nb::ft_lock_guard guard(mutex_);
    if (kept_.empty() || kept_.front().frames == Py_None) return {};
    return kept_.front().number;
  }
  // Take back what pop() has returned, or set_number() was called for: it is the next one again.
  void put_back(nb::object frames) {
    const nb::ft_lock_guard guard(mutex_);
    kept_.insert(kept_.begin(), {frames.release().ptr(), last_});
  }
  // Return the next one; null: there is none.
  nb::object pop() {
    const nb::ft_lock_guard guard(mutex_);
    if (kept_.empty()) return {};
    const Kept first = kept_.front();
    kept_.erase(kept_.begin());
    last_ = first.number;
    return nb::steal(first.frames);
  }
  void drop_all() {
    std::vector<Kept> kept;
    {
      const nb::ft_lock_guard guard(mutex_);
      kept.swap(kept_);
    }
    for (const Kept& one : kept) stops_at_exit([&one] { Py_DECREF(one.frames); });
  }

 private:
  struct Kept {
    PyObject* frames;
    std::uint64_t number;
  };
  std::vector<Kept> kept_;
  std::uint64_t last_ = 0;  // the number of what pop() has returned
  nb::ft_mutex mutex_;
};

}  // namespace shmcast

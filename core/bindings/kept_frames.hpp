// Room: bindings. Messages that were received and that nobody has got yet.
// Knows: their order, and that another thread may take one back.
// Does not know: why they wait.
#pragma once

#include <nanobind/nanobind.h>

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

  void push(const nb::object& frames) {
    const nb::ft_lock_guard guard(mutex_);
    kept_.push_back(frames.inc_ref().ptr());
  }
  // Take back what pop() has returned: it is the next one again.
  void put_back(nb::object frames) {
    const nb::ft_lock_guard guard(mutex_);
    kept_.insert(kept_.begin(), frames.release().ptr());
  }
  // Return the next one; null: there is none.
  nb::object pop() {
    const nb::ft_lock_guard guard(mutex_);
    if (kept_.empty()) return {};
    PyObject* const frames = kept_.front();
    kept_.erase(kept_.begin());
    return nb::steal(frames);
  }
  void drop_all() {
    std::vector<PyObject*> kept;
    {
      const nb::ft_lock_guard guard(mutex_);
      kept.swap(kept_);
    }
    for (PyObject* const frames : kept) stops_at_exit([frames] { Py_DECREF(frames); });
  }

 private:
  std::vector<PyObject*> kept_;
  nb::ft_mutex mutex_;
};

}  // namespace shmcast

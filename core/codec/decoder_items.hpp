// Room: codec. The decoder's runs: neighbours in a container that were written together.
// Knows: what encoder_items.hpp writes.
// Does not know: the containers.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>

#include "codec/decoder.hpp"

namespace shmcast::codec {

// Put so many objects on the stack.
inline bool Decoder::items(std::uint64_t count) {
  if (!enter()) return false;
  const std::size_t end = stack().size() + count;
  while (stack().size() < end) {
    if (!in_.has(1)) return false;
    if (in_.is_run()) {
      if (!run(end - stack().size())) return false;
      continue;
    }
    PyObject* const object = any();
    if (object == nullptr) return false;
    stack().push_back(object);
  }
  return leave();
}

// Put a run of at most so many objects on the stack, and at least one.
inline bool Decoder::run(std::uint64_t most) {
  const std::uint8_t tag = in_.byte();
  std::uint64_t count = 0;
  std::uint64_t first = 0;
  if (tag == kTextRefs && !in_.count(first)) return false;
  if (!in_.count(count)) return false;
  if (count == 0 || count > most) return Input::malformed();
  if (tag == kStrings) return strings(count);
  if (tag == kTextRefs) return known_strings(first, count);
  if (tag == kRun) {
    PyObject* const object = count <= kMostRun ? any() : fail();
    if (object == nullptr) return false;
    for (std::uint64_t i = 1; i < count; ++i) Py_INCREF(object);
    stack().insert(stack().end(), count, object);
    return true;
  }
  if (count > in_.left() / (tag == kInts ? 4 : 8)) return Input::malformed();
  for (; count > 0; --count) {
    PyObject* const number = tag == kInts ? PyLong_FromLong(in_.number<std::int32_t>())
                                          : PyFloat_FromDouble(in_.number<double>());
    if (number == nullptr) return false;
    stack().push_back(number);
  }
  return true;
}

inline bool Decoder::strings(std::uint64_t count) {
  std::uint64_t size = 0;
  if (!in_.count(size) || count > in_.left() || size > in_.left() - count) return fail() != nullptr;
  const auto* const run = runs_.strings(in_.raw(count + size), count, size, held_);
  if (run == nullptr) return false;
  for (PyObject* const text : *run) Py_INCREF(text);
  stack().insert(stack().end(), run->begin(), run->end());
  table_.insert(table_.end(), run->begin(), run->end());
  return true;
}

inline bool Decoder::known_strings(std::uint64_t first, std::uint64_t count) {
  if (first > table_.size() || count > table_.size() - first) return Input::malformed();
  const auto from = table_.begin() + static_cast<std::ptrdiff_t>(first);
  for (std::uint64_t i = 0; i < count; ++i) Py_INCREF(from[static_cast<std::ptrdiff_t>(i)]);
  stack().insert(stack().end(), from, from + static_cast<std::ptrdiff_t>(count));
  return true;
}

}  // namespace shmcast::codec

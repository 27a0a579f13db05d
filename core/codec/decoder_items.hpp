// Room: codec. The decoder's runs: neighbours in a container that were written together.
// Knows: what encoder_items.hpp writes.
// Does not know: the containers.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>

#include "codec/decoder.hpp"

namespace shmcast::codec {

// Put so many objects on the stack. Returns false with an error set.
inline bool Decoder::items(std::uint64_t count) {
  const Level level(*this);
  if (!level.is_allowed() || !in_.can_hold(count)) return false;
  const std::size_t end = stack_.size() + count;
  while (stack_.size() < end) {
    if (!in_.has(1)) return false;
    const std::uint8_t tag = in_.peek();
    if (tag >= kInts8 && tag <= kTextRefs) {
      in_.byte();
      if (!run(tag, end - stack_.size())) return false;
      continue;
    }
    PyObject* const object = any();
    if (object == nullptr) return false;
    stack_.push_back(object);
  }
  return true;
}

// Put a run of at most so many objects on the stack, and at least one.
inline bool Decoder::run(std::uint8_t tag, std::uint64_t most) {
  if (tag == kStrings) return strings(most);
  std::uint64_t count = 0;
  if (!in_.count(count)) return false;
  if (tag == kTextRefs) return known_strings(count, most);
  if (count > most || count == 0) return Input::malformed();
  switch (tag) {
    case kInts8: return integers<std::uint8_t>(count);
    case kInts16: return integers<std::uint16_t>(count);
    case kInts32: return integers<std::int32_t>(count);
    case kFloats: return floats(count);
    default: return same_object(count);
  }
}

template <class Number>
bool Decoder::integers(std::uint64_t count) {
  if (!in_.has(count * sizeof(Number))) return false;
  stack_.reserve(stack_.size() + count);
  for (; count > 0; --count) {
    PyObject* const number = PyLong_FromLong(in_.number<Number>());
    if (number == nullptr) return false;
    stack_.push_back(number);
  }
  return true;
}

inline bool Decoder::floats(std::uint64_t count) {
  if (count > in_.left() / 8) return Input::malformed();
  for (; count > 0; --count) {
    PyObject* const number = PyFloat_FromDouble(in_.number<double>());
    if (number == nullptr) return false;
    stack_.push_back(number);
  }
  return true;
}

inline bool Decoder::same_object(std::uint64_t count) {
  if (count > kMostRun) return Input::malformed();
  PyObject* const object = any();
  if (object == nullptr) return false;
  for (std::uint64_t i = 1; i < count; ++i) Py_INCREF(object);
  stack_.insert(stack_.end(), count, object);
  return true;
}

inline bool Decoder::strings(std::uint64_t most) {
  if (!in_.has(8)) return false;
  const std::size_t count = in_.number<std::uint32_t>();
  const std::size_t size = in_.number<std::uint32_t>();
  if (count > most || count == 0 || !in_.has(count + size)) return Input::malformed();
  const std::vector<PyObject*>* const run =
      runs_.strings(in_.raw(count + size), count, size, held_);
  if (run == nullptr) return false;
  for (PyObject* const text : *run) Py_INCREF(text);
  stack_.insert(stack_.end(), run->begin(), run->end());
  table_.insert(table_.end(), run->begin(), run->end());
  return true;
}

inline bool Decoder::known_strings(std::uint64_t first, std::uint64_t most) {
  std::uint64_t count = 0;
  if (!in_.count(count)) return false;
  if (count > most || count == 0 || first > table_.size() || count > table_.size() - first) {
    return Input::malformed();
  }
  for (std::uint64_t i = 0; i < count; ++i) Py_INCREF(table_[first + i]);
  const auto from = table_.begin() + static_cast<std::ptrdiff_t>(first);
  stack_.insert(stack_.end(), from, from + static_cast<std::ptrdiff_t>(count));
  return true;
}

}  // namespace shmcast::codec

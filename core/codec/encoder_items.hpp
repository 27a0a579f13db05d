// Room: codec. The encoder's runs: neighbours in a container that are written together.
// Knows: what lists, tuples and the columns of dicts often hold.
// Does not know: the containers.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "codec/encoder.hpp"

namespace shmcast::codec {

inline void fetch_ahead(PyObject* const* items, std::size_t i, std::size_t count) {
  if (i + 8 >= count) return;
  __builtin_prefetch(items[i + 8]);
  __builtin_prefetch(reinterpret_cast<const char*>(items[i + 8]) + 64);
}

inline bool Encoder::items(PyObject* const* items, std::size_t count) {
  const Level level(*this);
  if (!level.is_allowed()) return false;
  cursor_ = 0;
  for (std::size_t i = 0; i < count;) {
    fetch_ahead(items, i, count);
    const Py_ssize_t written = run(items + i, count - i);
    if (written < 0) return false;
    if (written == 0 && !any(items[i])) return false;
    i += written == 0 ? 1 : static_cast<std::size_t>(written);
  }
  return true;
}

// The items of a container that code of others may change meanwhile.
inline bool Encoder::held_items(PyObject* const* items, std::size_t count) {
  const Refs held(items, count);
  return this->items(held.data(), count);
}

// Write items together, from the first on. Returns how many; 0: none; -1: failed.
inline Py_ssize_t Encoder::run(PyObject* const* items, std::size_t count) {
  PyObject* const first = *items;
  if (cursor_ < table_.size() && table_[cursor_] == first) return known_strings(items, count);
  const PyTypeObject* const type = Py_TYPE(first);
  if (type == &PyUnicode_Type) return strings(items, count);
  if (count < 3) return 0;
  if (items[1] == first && items[2] == first) return same_object(items, count);
  if (Py_TYPE(items[1]) != type || Py_TYPE(items[2]) != type) return 0;
  if (type == &PyLong_Type) return integers(items, count);
  if (type == &PyFloat_Type) return floats(items, count);
  return 0;
}

inline Py_ssize_t Encoder::same_object(PyObject* const* items, std::size_t count) {
  const std::size_t most = std::min(count, kMostRun);
  std::size_t same = 3;
  while (same < most && items[same] == *items) ++same;
  if (!out_.room(11)) return -1;
  out_.byte(kRun);
  out_.count(same);
  return any(*items) ? static_cast<Py_ssize_t>(same) : -1;
}

// As 32 bits first, behind where they will be; then as narrow as they are.
inline Py_ssize_t Encoder::integers(PyObject* const* items, std::size_t count) {
  count = std::min<std::size_t>(count, 1U << 26);
  if (!out_.room(4 * count + 16)) return -1;
  std::uint8_t* const wide = out_.place() + 10;
  std::uint32_t bits = 0;
  std::size_t many = 0;
  for (; many < count; ++many) {
    if (many + 8 < count) __builtin_prefetch(items[many + 8]);
    std::int64_t value = 0;
    if (Py_TYPE(items[many]) != &PyLong_Type || !small_int(items[many], value)) break;
    const auto narrow = static_cast<std::int32_t>(value);
    if (narrow != value) break;
    std::memcpy(wide + 4 * many, &narrow, 4);
    bits |= static_cast<std::uint32_t>(narrow);
  }
  if (many < 3) return 0;
  const std::size_t width = bits >= 1U << 16 ? 4 : bits >= 1U << 8 ? 2 : 1;  // (4: the sign's bit)
  out_.byte(width == 4 ? kInts32 : width == 2 ? kInts16 : kInts8);
  out_.count(many);
  std::uint8_t* const to = out_.place();
  if (width == 1) {
    for (std::size_t i = 0; i < many; ++i) to[i] = wide[4 * i];
  } else if (width == 2) {
    for (std::size_t i = 0; i < many; ++i) std::memcpy(to + 2 * i, wide + 4 * i, 2);
  } else {
    std::memmove(to, wide, 4 * many);
  }
  out_.skip(width * many);
  return static_cast<Py_ssize_t>(many);
}

inline Py_ssize_t Encoder::floats(PyObject* const* items, std::size_t count) {
  std::size_t many = 3;
  while (many < count && Py_TYPE(items[many]) == &PyFloat_Type) ++many;
  if (!out_.room(8 * many + 11)) return -1;
  out_.byte(kFloats);
  out_.count(many);
  for (std::size_t i = 0; i < many; ++i) {
    if (i + 8 < many) __builtin_prefetch(items[i + 8]);
    out_.number(PyFloat_AS_DOUBLE(items[i]));
  }
  return static_cast<Py_ssize_t>(many);
}

// Strings that have numbers, from the cursor on: where the first one is.
inline Py_ssize_t Encoder::known_strings(PyObject* const* items, std::size_t count) {
  const std::size_t first = cursor_;
  const std::size_t most = std::min({count, table_.size() - first, kMostRun});
  std::size_t many = 1;
  while (many < most && table_[first + many] == items[many]) ++many;
  cursor_ = first + many;
  if (many == 1) return text_by_number(first) ? 1 : -1;
  if (!out_.room(21)) return -1;
  out_.byte(kTextRefs);
  out_.count(first);
  out_.count(many);
  return static_cast<Py_ssize_t>(many);
}

inline Py_ssize_t Encoder::strings(PyObject* const* items, std::size_t count) {
  // Some that come next may have been left out.
  const std::size_t end = std::min(table_.size(), cursor_ + 9);
  for (std::size_t next = cursor_ + 1; next < end; ++next) {
    if (table_[next] == *items) {
      cursor_ = next;
      return known_strings(items, count);
    }
  }
  const SentRun* const run = runs_.find(items, count);
  if (run == nullptr) return 0;
  const std::size_t many = run->strings.size();
  if (!out_.room(many + run->characters.size() + 9)) return -1;
  out_.byte(kStrings);
  out_.number(static_cast<std::uint32_t>(many));
  out_.number(static_cast<std::uint32_t>(run->characters.size()));
  out_.raw(run->lengths.data(), many);
  out_.raw(run->characters.data(), run->characters.size());
  table_.insert(table_.end(), run->strings.begin(), run->strings.end());
  if (is_careful_) {
    for (PyObject* const text : run->strings) kept_.hold(text);
  }
  return static_cast<Py_ssize_t>(many);
}

}  // namespace shmcast::codec

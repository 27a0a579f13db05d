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

inline bool Encoder::items(PyObject* const* items, std::size_t count) {
  if (!enter()) return false;
  cursor_ = 0;
  for (std::size_t i = 0; i < count;) {
    if (i + 8 < count) {
      __builtin_prefetch(items[i + 8]);
      __builtin_prefetch(reinterpret_cast<const char*>(items[i + 8]) + 64);
    }
    const Py_ssize_t written = run(items + i, count - i);
    if (written < 0 || (written == 0 && !any(items[i]))) return false;
    i += written == 0 ? 1 : static_cast<std::size_t>(written);
  }
  return leave();
}

// Write items together, from the first on. Returns how many; 0: none; -1: failed.
inline Py_ssize_t Encoder::run(PyObject* const* items, std::size_t count) {
  PyObject* const first = *items;
  if (is_at_cursor(first)) return known_strings(items, count);
  const PyTypeObject* const type = Py_TYPE(first);
  if (type == &PyUnicode_Type) return strings(items, count);
  if (count < 3) return 0;
  if (items[1] == first && items[2] == first) {
    std::size_t many = 3;
    while (many < std::min(count, kMostRun) && items[many] == first) ++many;
    return tag(kRun, many) && any(first) ? static_cast<Py_ssize_t>(many) : -1;
  }
  if (Py_TYPE(items[1]) != type || Py_TYPE(items[2]) != type) return 0;
  if (type == &PyLong_Type) return integers(items, count);
  return type == &PyFloat_Type ? floats(items, count) : 0;
}

inline Py_ssize_t Encoder::integers(PyObject* const* items, std::size_t count) {
  if (!out_.room(4 * count)) return -1;
  std::uint8_t* const data = out_.place() + 10;  // behind the tag and the largest count
  std::size_t many = 0;
  for (; many < count; ++many) {
    if (many + 8 < count) __builtin_prefetch(items[many + 8]);
    std::int64_t value = 0;
    if (Py_TYPE(items[many]) != &PyLong_Type || !small_int(items[many], value)) break;
    const auto narrow = static_cast<std::int32_t>(value);
    if (narrow != value) break;
    std::memcpy(data + 4 * many, &narrow, 4);
  }
  if (many < 3) return 0;
  out_.byte(kInts);
  out_.count(many);
  std::memmove(out_.place(), data, 4 * many);
  out_.skip(4 * many);
  return static_cast<Py_ssize_t>(many);
}

inline Py_ssize_t Encoder::floats(PyObject* const* items, std::size_t count) {
  std::size_t many = 3;
  while (many < count && Py_TYPE(items[many]) == &PyFloat_Type) ++many;
  if (!out_.room(8 * many)) return -1;
  out_.byte(kFloats);
  out_.count(many);
  for (std::size_t i = 0; i < many; ++i) out_.number(PyFloat_AS_DOUBLE(items[i]));
  return static_cast<Py_ssize_t>(many);
}

// Strings that have numbers, from the cursor on: where the first one is.
inline Py_ssize_t Encoder::known_strings(PyObject* const* items, std::size_t count) {
  const std::size_t first = cursor_;
  const std::size_t most = std::min({count, table_.size() - first, kMostRun});
  std::size_t many = 1;
  while (many < most && table_[first + many] == items[many]) ++many;
  cursor_ = first + many;
  if (!tag(many == 1 ? kTextRef : kTextRefs, first)) return -1;
  if (many > 1) out_.count(many);
  return static_cast<Py_ssize_t>(many);
}

inline Py_ssize_t Encoder::strings(PyObject* const* items, std::size_t count) {
  // Some that come next may have been left out.
  const std::size_t end = std::min(table_.size(), cursor_ + 9);
  for (std::size_t next = cursor_ + 1; next < end; ++next) {
    if (table_[next] != *items) continue;
    cursor_ = next;
    return known_strings(items, count);
  }
  SentRuns::Run* const run = runs_.find(items, count);
  if (run == nullptr) return 0;
  const std::vector<PyObject*>& strings = run->strings.list();
  if (!out_.room(strings.size() + run->characters.size())) return -1;
  out_.byte(kStrings);
  out_.count(strings.size());
  out_.count(run->characters.size());
  out_.raw(run->lengths.data(), strings.size());
  out_.raw(run->characters.data(), run->characters.size());
  table_.insert(table_.end(), strings.begin(), strings.end());
  for (std::size_t i = 0; is_careful_ && i < strings.size(); ++i) kept_.hold(strings[i]);
  return static_cast<Py_ssize_t>(strings.size());
}

}  // namespace shmcast::codec

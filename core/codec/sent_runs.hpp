// Room: codec. Runs of strings as they were written last: most are written again.
// Knows: strings of a message, one after the other.
// Does not know: where in a message they stand.
#pragma once

#include <Python.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "codec/python.hpp"
#include "codec/wire.hpp"

namespace shmcast::codec {

// Strings, their lengths and their characters. A run whose strings are the same objects is copied
// as it is, and no string is looked at.
struct SentRun {
  std::vector<PyObject*> strings;  // owned, so that a pointer stands for the same characters
  std::vector<std::uint8_t> lengths;
  std::string characters;

  SentRun() = default;
  SentRun(const SentRun&) = delete;
  SentRun& operator=(const SentRun&) = delete;
  ~SentRun() { clear(); }
  void clear() {
    for (PyObject* const text : strings) Py_XDECREF(text);
    strings.clear();
    lengths.clear();
    characters.clear();
  }
  void swap(SentRun& other) {
    strings.swap(other.strings);
    lengths.swap(other.lengths);
    characters.swap(other.characters);
  }
};

class SentRuns {
 public:
  void begin_message() { next_ = 0; }

  // Return a run of the strings from items[0] on, at least 4; null: there is none.
  const SentRun* find(PyObject* const* items, std::size_t count) {
    SentRun& run = runs_[next_ % kRuns];
    const std::size_t known = run.strings.size();
    const bool is_same = known >= kFewest && known <= count &&
                         std::equal(run.strings.begin(), run.strings.end(), items) &&
                         (known == count || Py_TYPE(items[known]) != &PyUnicode_Type);
    if (!is_same) {
      if (count < kFewest || !std::all_of(items, items + kFewest, fits)) return nullptr;
      merge(run, items, count);
    }
    ++next_;
    return &run;
  }

 private:
  static constexpr std::size_t kFewest = 4;
  static constexpr std::size_t kAhead = 8;

  static bool fits(PyObject* text) {
    return Py_TYPE(text) == &PyUnicode_Type && is_ready(text) && PyUnicode_IS_COMPACT_ASCII(text) &&
           PyUnicode_GET_LENGTH(text) < 256;
  }

  // Make a run of these strings, with what the last one has of them.
  [[gnu::noinline]] void merge(SentRun& run, PyObject* const* items, std::size_t count) {
    SentRun& made = spare_;
    std::size_t at = 0;     // in the last run
    std::size_t where = 0;  // in its characters
    for (std::size_t i = 0; i < count && made.characters.size() < kRunBytes;) {
      std::size_t found = at;
      std::size_t from = where;
      const std::size_t end = std::min(run.strings.size(), at + kAhead);
      while (found < end && run.strings[found] != items[i]) from += run.lengths[found++];
      if (found < end) {
        at = found;
        std::size_t size = 0;
        while (at < run.strings.size() && i < count && run.strings[at] == items[i]) {
          made.strings.push_back(std::exchange(run.strings[at], nullptr));  // (moved)
          made.lengths.push_back(run.lengths[at]);
          size += run.lengths[at++];
          ++i;
        }
        made.characters.append(run.characters, from, size);
        where = from + size;
        continue;
      }
      if (!fits(items[i])) break;
      const auto size = static_cast<std::size_t>(PyUnicode_GET_LENGTH(items[i]));
      made.strings.push_back(Py_NewRef(items[i]));
      made.lengths.push_back(static_cast<std::uint8_t>(size));
      made.characters.append(static_cast<const char*>(PyUnicode_DATA(items[i])), size);
      ++i;
    }
    run.clear();
    run.swap(made);
  }

  std::array<SentRun, kRuns> runs_;
  SentRun spare_;
  unsigned next_ = 0;
};

}  // namespace shmcast::codec

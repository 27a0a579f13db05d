// Room: codec. What a decoder remembers of the messages before: it is likely to come again.
// Knows: strings, classes, and dicts of one value. All of it is bounded, and losing it costs time.
// Does not know: where in a message they stand.
#pragma once

#include <Python.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "codec/names.hpp"
#include "codec/python.hpp"
#include "codec/wire.hpp"

namespace shmcast::codec {

inline bool is_ascii(const std::uint8_t* data, std::size_t size) {
  std::uint64_t bits = 0;
  for (; size >= 8; data += 8, size -= 8) {
    std::uint64_t word;
    std::memcpy(&word, data, 8);
    bits |= word;
  }
  for (; size > 0; ++data, --size) bits |= *data;
  return (bits & 0x8080808080808080U) == 0;
}

inline PyObject* new_ascii(const std::uint8_t* data, std::size_t size) {
  if (!is_ascii(data, size)) return Input::malformed(), nullptr;
  PyObject* const text = PyUnicode_New(static_cast<Py_ssize_t>(size), 127);
  if (text != nullptr && size > 0) std::memcpy(PyUnicode_1BYTE_DATA(text), data, size);
  return text;
}

// Runs of strings, by their place among the message's runs. Equal bytes make the same objects.
class ReceivedRuns {
 public:
  ~ReceivedRuns() {
    for (Run& run : runs_) drop_all(run.strings);
  }
  void begin_message() { next_ = 0; }

  // Return the strings of a run, borrowed: until the next message, or as long as `held`. Null with
  // an error set.
  const std::vector<PyObject*>* strings(const std::uint8_t* lengths, std::size_t count,
                                        std::size_t size, Refs& held) {
    Run& run = runs_[next_++ % kRuns];
    const std::string_view raw(reinterpret_cast<const char*>(lengths), count + size);
    if (run.strings.size() != count || run.raw != raw) {
      if (!merge(run, lengths, count, size, held)) return nullptr;
      run.raw = raw;
    }
    return &run.strings;
  }

 private:
  static constexpr std::size_t kAhead = 8;
  struct Run {
    std::string raw;  // lengths and characters
    std::vector<PyObject*> strings;
  };

  static void drop_all(std::vector<PyObject*>& strings) {
    for (PyObject* const text : strings) Py_DECREF(text);
    strings.clear();
  }

  // Make a run of these bytes, with the strings that the last one has of them.
  [[gnu::noinline]] static bool merge(Run& run, const std::uint8_t* lengths, std::size_t count,
                                      std::size_t size, Refs& held) {
    const std::size_t total = std::accumulate(lengths, lengths + count, std::size_t{0});
    if (total != size) return Input::malformed();
    std::vector<PyObject*> made;
    made.reserve(count);
    const std::size_t known = run.strings.size();
    const auto* const known_lengths = reinterpret_cast<const std::uint8_t*>(run.raw.data());
    const std::uint8_t* known_text = known_lengths + known;
    const std::uint8_t* text = lengths + count;
    std::size_t at = 0;  // in the last run
    for (std::size_t i = 0; i < count; text += lengths[i++]) {
      const std::uint8_t* candidate = known_text;
      std::size_t found = at;
      const std::size_t end = std::min(known, at + kAhead);
      while (found < end && (known_lengths[found] != lengths[i] ||
                             std::memcmp(candidate, text, lengths[i]) != 0)) {
        candidate += known_lengths[found++];
      }
      if (found < end) {
        made.push_back(Py_NewRef(run.strings[found]));
        at = found + 1;
        known_text = candidate + lengths[i];
      } else if (PyObject* const fresh = new_ascii(text, lengths[i]); fresh != nullptr) {
        made.push_back(fresh);
      } else {
        drop_all(made);
        return false;
      }
    }
    for (PyObject* const old : run.strings) held.take(old);  // this message may have some by number
    run.strings = std::move(made);
    return true;
  }

  std::array<Run, kRuns> runs_;
  unsigned next_ = 0;
};

// Dicts of one value: a copy of such a dict costs less than its keys do one by one.
class ReceivedDicts {
 public:
  // Return a new dict of these keys. They are the same objects as in the message before, or not.
  PyObject* of(PyObject* const* keys, std::size_t count, PyObject* value) {
    Template& last = templates_[count % templates_.size()];
    const bool is_same = last.keys.size() == count && last.value == value &&
                         std::equal(last.keys.begin(), last.keys.end(), keys);
    if (is_same && last.dict) return PyDict_Copy(last.dict.get());
    Ref dict(new_dict(count));
    for (std::size_t i = 0; i < count && dict; ++i) {
      if (PyDict_SetItem(dict.get(), keys[i], value) != 0) dict = Ref();
    }
    if (!dict) return nullptr;
    if (is_same) {  // the second time; the copy is only ours
      last.dict = Ref(PyDict_Copy(dict.get()));
      PyErr_Clear();
    } else {
      last.dict = Ref();
      last.keys.assign(keys, keys + count);
      last.value = value;
    }
    return dict.release();
  }

 private:
  struct Template {
    std::vector<PyObject*> keys;  // to compare only, unless there is a dict
    PyObject* value = nullptr;
    Ref dict;
  };
  std::array<Template, 8> templates_;
};

// What a message names by bytes that explain it, found again by these bytes.
template <class Thing>
class ReceivedNames {
 public:
  Thing* find(std::string_view blob) const {
    Thing* const found = things_[place_of(blob)].get();
    return found != nullptr && found->blob == blob ? found : nullptr;
  }
  Thing* put(std::unique_ptr<Thing> thing) {
    std::unique_ptr<Thing>& place = things_[place_of(thing->blob)];
    if (place != nullptr) retired_.push_back(std::move(place));
    place = std::move(thing);
    return place.get();
  }
  // Between messages.
  void tidy() { retired_.clear(); }

 private:
  static std::size_t place_of(std::string_view blob) {
    std::uint64_t head = 0;
    std::uint64_t tail = 0;
    const std::size_t size = std::min<std::size_t>(blob.size(), 8);
    std::memcpy(&head, blob.data(), size);
    std::memcpy(&tail, blob.data() + (blob.size() - size) / 2, size);
    const std::uint64_t mixed = head ^ (tail << 1) ^ blob.size() * 0x9E3779B97F4A7C15U;
    return mixed * 0xD6E8FEB86659FD93U >> 56;
  }

  std::array<std::unique_ptr<Thing>, 256> things_;
  std::vector<std::unique_ptr<Thing>> retired_;  // this message may have them by number
};

}  // namespace shmcast::codec

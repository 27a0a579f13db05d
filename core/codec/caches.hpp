// Room: codec. What both ends remember: within a message by pointer, across messages to be faster.
// Knows: strings, dicts of one value. All is bounded, and to lose it costs only time.
// Does not know: where in a message they stand.
#pragma once

#include <Python.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "codec/wire.hpp"
#include "python/python.hpp"

namespace shmcast::codec {

// Numbers by pointer. It is emptied by counting up: most messages need few of its entries.
class PointerMap {
 public:
  void clear() {
    used_ = 0;
    ++era_;
  }
  // Return the number of a pointer; null: it has none. Valid until put().
  std::uint32_t* find(const void* key) {
    Entry& entry = at(key);
    return entry.era == era_ ? &entry.number : nullptr;
  }
  void put(const void* key, std::uint32_t number) {
    at(key) = {key, era_, number};
    if (++used_ * 2 <= entries_.size()) return;
    std::vector<Entry> before(entries_.size() * 2);
    before.swap(entries_);
    --shift_;
    for (const Entry& entry : before) {
      if (entry.era == era_) at(entry.key) = entry;
    }
  }

 private:
  struct Entry {
    const void* key = nullptr;
    std::uint64_t era = 0;
    std::uint32_t number = 0;
  };
  Entry& at(const void* key) {
    std::size_t i = (reinterpret_cast<std::uintptr_t>(key) >> 4) * 0x9E3779B97F4A7C15U >> shift_;
    while (entries_[i].era == era_ && entries_[i].key != key) i = (i + 1) % entries_.size();
    return entries_[i];
  }

  unsigned shift_ = 64 - 7;
  std::vector<Entry> entries_ = std::vector<Entry>(128);
  std::uint64_t era_ = 1;
  std::size_t used_ = 0;
};

// Descriptions of classes and functions, by what they are known by.
template <class Key, class Thing>
class Descriptions {
 public:
  Thing* find(Key key) const {
    const auto found = things_.find(key);
    return found == things_.end() ? nullptr : found->second.get();
  }
  Thing* put(Key key, std::unique_ptr<Thing> thing) {
    if (auto before = things_.extract(key)) retired_.push_back(std::move(before.mapped()));
    return (things_[key] = std::move(thing)).get();
  }
  bool is_full() const { return things_.size() >= kMostKnown; }
  // Between messages: drop what was replaced, and all if it has become too much.
  void tidy() {
    retired_.clear();
    if (is_full()) things_.clear();
  }

 private:
  std::unordered_map<Key, std::unique_ptr<Thing>> things_;
  std::vector<std::unique_ptr<Thing>> retired_;  // this message may have them
};

inline PyObject* new_text(const void* utf8, std::size_t size) {
  return PyUnicode_DecodeUTF8(static_cast<const char*>(utf8), static_cast<Py_ssize_t>(size),
                              "surrogatepass");
}

// Runs of strings as they were read last, by their place in a message: equal bytes make the same
// objects.
class ReceivedRuns {
 public:
  void begin_message() { next_ = 0; }

  // Return the strings of a run, borrowed: until the next message, or as long as `held`. Null with
  // an error set. `bytes`: so many sizes, then the characters.
  const std::vector<PyObject*>* strings(std::string_view bytes, std::size_t count, Refs& held) {
    Run& run = runs_[next_++ % runs_.size()];
    if (run.strings.list().size() == count && run.bytes == bytes) return &run.strings.list();
    Refs made;
    std::string_view text = bytes.substr(count);
    for (const char size : bytes.substr(0, count)) {
      const std::size_t length = static_cast<std::uint8_t>(size);
      PyObject* const string = length <= text.size() ? new_text(text.data(), length) : nullptr;
      if (string == nullptr) return Input::malformed(), nullptr;
      made.take(string);
      text.remove_prefix(length);
    }
    if (!text.empty() || bytes.size() > 3 * kRunBytes) return Input::malformed(), nullptr;
    for (PyObject* const old : run.strings.list()) held.hold(old);  // this message may have them
    run.strings.list().swap(made.list());
    run.bytes = bytes;
    return &run.strings.list();
  }

 private:
  struct Run {
    std::string bytes;
    Refs strings;
  };
  std::array<Run, 8> runs_;
  unsigned next_ = 0;
};

// Integers of earlier messages. One that nobody else has any more is written anew: to make an
// object, and to free it, costs several times as much.
class ReceivedInts {
 public:
  // (In turn: the program may have the last message's still.)
  void begin_message() {
    pool_ = &pools_[++turn_ % pools_.size()].list();
    next_ = 0;
  }
  // Return a new reference; null with an error set.
  PyObject* of(std::int32_t value) {
    if (next_ == kMost || !can_rewrite_int(value)) return PyLong_FromLong(value);
    if (next_ == pool_->size()) pool_->push_back(nullptr);
    PyObject*& place = (*pool_)[next_++];
    if (place != nullptr && Py_REFCNT(place) == 1) {
      rewrite_int(place, value);
    } else {
      Ref(std::exchange(place, PyLong_FromLong(value)));
    }
    return Py_XNewRef(place);
  }

 private:
  static constexpr std::size_t kMost = 8192;

  std::array<Refs, 3> pools_;
  std::vector<PyObject*>* pool_ = &pools_[0].list();
  unsigned turn_ = 0;
  std::size_t next_ = 0;
};

}  // namespace shmcast::codec

// Room: codec. The decoder: frames as an object.
// Knows: Python's own types, and what makes their objects.
// Does not know: where frames come from. It trusts no byte of them.
#pragma once

#include <Python.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "codec/python.hpp"
#include "codec/received.hpp"
#include "codec/received_classes.hpp"
#include "codec/wire.hpp"

namespace shmcast::codec {

class Decoder {
 public:
  // `find`: returns what a module has by a name, or raises; null: whatever can be imported.
  Decoder(const Known& known, PyObject* find) : known_(known), find_(Ref::to(find)) {}

  // Return the object of a message. `frames`: a list; its first is the bytes given. Null with an
  // error set.
  PyObject* decode(const std::uint8_t* data, std::size_t size, PyObject* frames) {
    PyObject* object = nullptr;
    if (size < 3 || data[0] != kMagic) {
      Input::malformed();
    } else {
      in_ = Input(data + 2, size - 2);
      is_careful_ = runs_code_ = (data[1] & kRunsCode) != 0;
      frames_ = frames;
      next_frame_ = 1;
      object = any();
      if (object != nullptr && !in_.is_at_end()) {
        Input::malformed();
        drop(std::exchange(object, nullptr));
      }
    }
    forget();
    return object;
  }

  // Whether the last message may have run the code of others.
  bool ran_code() const { return runs_code_; }

 private:
  // Counts a level of values in values, as long as it exists.
  class Level {
   public:
    explicit Level(Decoder& decoder) : decoder_(decoder) { ++decoder_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    ~Level() { --decoder_.depth_; }
    // (Twice as deep as an encoder goes, which counts otherwise.)
    bool is_allowed() const { return decoder_.depth_ <= 2 * kDeepest || Input::malformed(); }

   private:
    Decoder& decoder_;
  };

  // The stack's objects from here on: dropped at the end, unless they are moved elsewhere.
  class Items {
   public:
    explicit Items(Decoder& decoder) : decoder_(decoder), base_(decoder.stack_.size()) {}
    Items(const Items&) = delete;
    Items& operator=(const Items&) = delete;
    ~Items() {
      while (decoder_.stack_.size() > base_) {
        PyObject* const last = decoder_.stack_.back();
        decoder_.stack_.pop_back();
        drop(last);
      }
    }
    // Valid until the next object is decoded.
    PyObject** data() const { return decoder_.stack_.data() + base_; }
    // Move them elsewhere.
    void move_to(PyObject** place) {
      std::memcpy(place, data(), (decoder_.stack_.size() - base_) * sizeof(PyObject*));
      decoder_.stack_.resize(base_);
    }

   private:
    Decoder& decoder_;
    std::size_t base_;
  };

  void forget() {
    for (ReceivedShape* const shape : shapes_) shape->forget_last();
    shapes_.clear();
    globals_.clear();
    table_.clear();
    memo_.clear();
    held_.clear();
    runs_.begin_message();
    known_shapes_.tidy();
    known_globals_.tidy();
    depth_ = 0;
  }

  // Give an object the next number, if it has one.
  PyObject* kept(PyObject* object, bool is_numbered) {
    if (is_numbered && object != nullptr) memo_.push_back(Ref::to(object));
    return object;
  }

  PyObject* any(bool numbered = false) {
    if (!in_.has(1)) return nullptr;
    const std::uint8_t tag = in_.byte();
    if (tag < kNone) return PyLong_FromLong(tag + kSmallest);
    std::uint64_t count = 0;
    switch (tag) {
      case kNone: return Py_NewRef(Py_None);
      case kFalse: return Py_NewRef(Py_False);
      case kTrue: return Py_NewRef(Py_True);
      case kU8: return in_.has(1) ? PyLong_FromLong(in_.byte()) : nullptr;
      case kI16: return in_.has(2) ? PyLong_FromLong(in_.number<std::int16_t>()) : nullptr;
      case kI32: return in_.has(4) ? PyLong_FromLong(in_.number<std::int32_t>()) : nullptr;
      case kI64: return in_.has(8) ? PyLong_FromLongLong(in_.number<std::int64_t>()) : nullptr;
      case kBig:
        if (!in_.count(count) || !in_.has(count)) return nullptr;
        return _PyLong_FromByteArray(in_.raw(count), count, 1, 1);
      case kFloat: return in_.has(8) ? PyFloat_FromDouble(in_.number<double>()) : nullptr;
      case kText8:
      case kText32:
      case kWide: return text(tag - kText8);
      case kNamed8:
      case kNamed32:
      case kNamedWide: return named(text(tag - kNamed8));
      case kTextRef8: return in_.has(1) ? text_by_number(in_.byte()) : nullptr;
      case kTextRef16: return in_.has(2) ? text_by_number(in_.number<std::uint16_t>()) : nullptr;
      case kTextRef32: return in_.has(4) ? text_by_number(in_.number<std::uint32_t>()) : nullptr;
      case kBytes8: return in_.has(1) ? kept(bytes(tag, in_.byte()), numbered) : nullptr;
      case kBytes64:
      case kBytearray:
        if (!in_.has(8)) return nullptr;
        return kept(bytes(tag, in_.number<std::uint64_t>()), numbered);
      case kList8: return in_.has(1) ? list(in_.byte(), numbered) : nullptr;
      case kList: return in_.count(count) ? list(count, numbered) : nullptr;
      case kTuple8: return in_.has(1) ? kept(tuple(in_.byte()), numbered) : nullptr;
      case kTuple: return in_.count(count) ? kept(tuple(count), numbered) : nullptr;
      case kDict8: return in_.has(1) ? dict(in_.byte(), numbered) : nullptr;
      case kDict: return in_.count(count) ? dict(count, numbered) : nullptr;
      case kSet: return set(numbered);
      case kFrozenset: return kept(frozenset(), numbered);
      case kMemo: return numbered ? (Input::malformed(), nullptr) : any(true);
      case kRef:
        if (!in_.count(count)) return nullptr;
        if (count >= memo_.size() || !memo_[count]) return Input::malformed(), nullptr;
        return Py_NewRef(memo_[count].get());
      case kNewShape:
      case kSame:
      case kShaped: return instance(tag, numbered);
      default: return other(tag, numbered);
    }
  }

  PyObject* text(int kind) {  // 0: kText8, 1: kText32, 2: kWide
    if (kind < 2) {
      if (!in_.has(kind == 0 ? 1 : 4)) return nullptr;
      const std::size_t size = kind == 0 ? in_.byte() : in_.number<std::uint32_t>();
      return in_.has(size) ? new_ascii(in_.raw(size), size) : nullptr;
    }
    if (!in_.has(5)) return nullptr;
    const std::size_t width = in_.byte();
    const std::size_t size = in_.number<std::uint32_t>();
    if (width != 1 && width != 2 && width != 4) return Input::malformed(), nullptr;
    if (!in_.has(width * size)) return nullptr;
    const std::uint8_t* const data = in_.raw(width * size);
    for (std::size_t i = 3; width == 4 && i < 4 * size; i += 4) {
      if (data[i] != 0 || data[i - 1] > 0x10) return Input::malformed(), nullptr;
    }
    return PyUnicode_FromKindAndData(static_cast<int>(width), data, static_cast<Py_ssize_t>(size));
  }
  PyObject* named(PyObject* text) {
    if (text == nullptr) return nullptr;
    table_.push_back(text);
    held_.hold(text);
    return text;
  }
  PyObject* text_by_number(std::size_t number) {
    if (number >= table_.size()) return Input::malformed(), nullptr;
    return Py_NewRef(table_[number]);
  }

  PyObject* bytes(std::uint8_t tag, std::uint64_t size) {
    if (!in_.has(size)) return nullptr;
    const auto* const data = reinterpret_cast<const char*>(in_.raw(size));
    const auto count = static_cast<Py_ssize_t>(size);
    return tag == kBytearray ? PyByteArray_FromStringAndSize(data, count)
                             : PyBytes_FromStringAndSize(data, count);
  }

  PyObject* list(std::uint64_t count, bool is_numbered) {
    // Others may see a list that has a number: it is filled at once, when all is there.
    Ref early(is_numbered ? kept(PyList_New(0), true) : nullptr);
    if (is_numbered && !early) return nullptr;
    Items items(*this);
    if (!this->items(count)) return nullptr;
    Ref list(PyList_New(static_cast<Py_ssize_t>(count)));
    if (!list) return nullptr;
    if (count > 0) items.move_to(reinterpret_cast<PyListObject*>(list.get())->ob_item);
    if (!is_numbered) return list.release();
    const Py_ssize_t size = PyList_GET_SIZE(early.get());
    if (stops_at_exit([&] { return PyList_SetSlice(early.get(), size, size, list.get()); }) != 0) {
      return nullptr;
    }
    return early.release();
  }

  PyObject* tuple(std::uint64_t count) {
    Items items(*this);
    if (!this->items(count)) return nullptr;
    PyObject* const tuple = PyTuple_New(static_cast<Py_ssize_t>(count));
    if (tuple != nullptr && count > 0) {
      items.move_to(reinterpret_cast<PyTupleObject*>(tuple)->ob_item);
    }
    return tuple;
  }

  PyObject* dict(std::uint64_t count, bool is_numbered) {
    if (!in_.can_hold(count)) return nullptr;
    if (!is_numbered && count > 8 && in_.left() > 0 && in_.peek() == kTextRefs) {
      PyObject* const made = dict_of_one_value(count);
      if (made != nullptr || PyErr_Occurred() != nullptr) return made;
    }
    Ref dict(is_numbered ? kept(PyDict_New(), true) : nullptr);
    if (is_numbered && !dict) return nullptr;
    Items both(*this);
    if (!items(count) || !items(count)) return nullptr;
    if (!dict) dict = Ref(new_dict(count));
    if (!dict) return nullptr;
    for (std::uint64_t i = 0; i < count; ++i) {
      PyObject* const key = both.data()[i];
      PyObject* const value = both.data()[count + i];
      if (stops_at_exit([&] { return PyDict_SetItem(dict.get(), key, value); }) != 0) {
        return nullptr;
      }
    }
    return dict.release();
  }
  // Return null without an error if it is another one, and nothing of it has been read.
  PyObject* dict_of_one_value(std::uint64_t count) {
    const Input before = in_;
    std::uint64_t first = 0;
    std::uint64_t keys = 0;
    std::uint64_t values = 0;
    in_.byte();
    if (in_.count(first) && in_.count(keys) && keys == count && first <= table_.size() &&
        keys <= table_.size() - first && in_.left() > 0 && in_.byte() == kRun &&
        in_.count(values) && values == count && in_.left() > 0 && in_.peek() <= kTrue) {
      const Ref value(any());
      return value ? dicts_.of(&table_[first], count, value.get()) : nullptr;
    }
    PyErr_Clear();
    in_ = before;
    return nullptr;
  }

  PyObject* set(bool is_numbered) {
    Ref set(kept(PySet_New(nullptr), is_numbered));
    return set && add_items(set.get()) ? set.release() : nullptr;
  }
  PyObject* frozenset() {
    Ref set(PyFrozenSet_New(nullptr));
    return set && add_items(set.get()) ? set.release() : nullptr;
  }
  // `set` may be a frozenset that only this has.
  bool add_items(PyObject* set) {
    std::uint64_t count = 0;
    if (!in_.count(count)) return false;
    Items items(*this);
    if (!this->items(count)) return false;
    for (std::uint64_t i = 0; i < count; ++i) {
      PyObject* const item = items.data()[i];
      if (stops_at_exit([&] { return PySet_Add(set, item); }) != 0) return false;
    }
    return true;
  }

  // In decoder_items.hpp:
  bool items(std::uint64_t count);
  bool run(std::uint8_t tag, std::uint64_t most);
  template <class Number>
  bool integers(std::uint64_t count);
  bool floats(std::uint64_t count);
  bool same_object(std::uint64_t count);
  bool strings(std::uint64_t most);
  bool known_strings(std::uint64_t first, std::uint64_t most);

  // In decoder_instances.hpp:
  PyObject* instance(std::uint8_t tag, bool is_numbered);
  bool fields(std::uint8_t tag, ReceivedShape& shape, PyObject* object);
  bool field(PyObject*& value);
  bool same_but_for(ReceivedShape& shape, PyObject* object);
  bool set_fields(PyObject* object, const ReceivedShape& shape, PyObject* const* values,
                  PyObject* dict);
  bool give_state(PyObject* object, const ReceivedShape& shape, PyObject* const* values);
  bool build(PyObject* object, PyObject* state);
  PyObject* other(std::uint8_t tag, bool is_numbered);
  PyObject* member(bool is_numbered);
  PyObject* named_tuple();
  PyObject* new_object(PyTypeObject* type, Items& items, std::uint64_t count);
  PyObject* array();
  PyObject* frame(std::uint8_t tag);
  PyObject* reduced(std::uint8_t tag, bool is_numbered);
  PyObject* made(std::uint8_t tag);
  bool add_list_items(PyObject* object);
  bool add_pairs(PyObject* object);
  ReceivedShape* shape(std::uint8_t tag);
  ReceivedGlobal* global(std::uint8_t tag);
  ReceivedGlobal* global() { return in_.has(1) ? global(in_.byte()) : nullptr; }
  bool blob(std::string_view& blob);

  const Known& known_;
  const Ref find_;
  ReceivedRuns runs_;
  ReceivedDicts dicts_;
  ReceivedNames<ReceivedShape> known_shapes_;
  ReceivedNames<ReceivedGlobal> known_globals_;

  // Of this message:
  Input in_{nullptr, 0};
  bool is_careful_ = false;  // it was written so: fields that are the same are written again
  bool runs_code_ = false;
  PyObject* frames_ = nullptr;
  Py_ssize_t next_frame_ = 1;
  int depth_ = 0;
  std::vector<PyObject*> stack_;  // owned: the parts of containers that are not complete
  std::vector<PyObject*> table_;  // strings by number
  Refs held_;                     // those that nothing else keeps
  std::vector<Ref> memo_;         // objects by number
  std::vector<ReceivedShape*> shapes_;
  std::vector<ReceivedGlobal*> globals_;
};

}  // namespace shmcast::codec

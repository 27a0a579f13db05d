// Room: codec. The decoder: frames as an object.
// Knows: Python's own types, and what makes their objects.
// Does not know: where frames come from. It trusts no byte of them.
//
// The parts of a container are put on a stack until all are there, so that nobody can see a
// container with places that are empty. A function that returns null or false has set an error;
// what it has left on the stack, decode() drops.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "codec/caches.hpp"
#include "codec/classes.hpp"
#include "codec/wire.hpp"
#include "python/python.hpp"

namespace shmcast::codec {

class Decoder {
 public:
  // `find`: returns what a module has by a name, or raises.
  Decoder(const Known& known, PyObject* find) : known_(known), find_(Ref::to(find)) {}

  // Return the object of a message. `frames`: a list; its first is the bytes given.
  PyObject* decode(const std::uint8_t* data, std::size_t size, PyObject* frames) {
    if (size < 2 || data[0] != kMagic) return Input::malformed(), nullptr;
    in_ = Input(data + 2, size - 2);
    is_careful_ = ran_code_ = (data[1] & kCareful) != 0;
    frames_ = frames;
    next_frame_ = 1;
    Ref object(any());
    if (object && in_.left() > 0) object = Ref(fail());
    forget();
    return object.release();
  }

  // Whether the last message, or dropping its object, may run code of others.
  bool ran_code() const { return ran_code_; }

 private:
  static PyObject* fail() { return Input::malformed(), nullptr; }

  void forget() {
    for (ReceivedShape* const shape : shapes_) shape->forget_last();
    shapes_.clear();
    globals_.clear();
    table_.clear();
    memo_.drop_to(0);
    parts_.drop_to(0);
    held_.drop_to(0);
    runs_.begin_message();
    ints_.begin_message();
    known_shapes_.tidy();
    known_names_.tidy();
    depth_ = 0;
  }

  // (Twice as deep as an encoder goes, which counts otherwise.)
  bool enter() { return ++depth_ <= 2 * kDeepest || Input::malformed(); }
  bool leave() { return --depth_ >= 0; }

  // Give an object the next number, if it has one.
  PyObject* kept(PyObject* object, bool is_numbered) {
    if (is_numbered && object != nullptr) memo_.hold(object);
    return object;
  }

  // To hash anything but a string or a number may run code of others.
  void note_hashing(PyObject* key) {
    if (!PyUnicode_CheckExact(key) && !PyLong_CheckExact(key)) ran_code_ = true;
  }

  std::vector<PyObject*>& stack() { return parts_.list(); }
  // Move the stack's objects from `base` on to another place.
  void move_from(std::size_t base, PyObject** place) {
    const std::size_t count = stack().size() - base;
    if (count > 0) std::memcpy(place, stack().data() + base, count * sizeof(PyObject*));
    stack().resize(base);
  }
  PyObject* tuple_from(std::size_t base) {
    PyObject* const tuple = PyTuple_New(static_cast<Py_ssize_t>(stack().size() - base));
    if (tuple != nullptr) move_from(base, reinterpret_cast<PyTupleObject*>(tuple)->ob_item);
    return tuple;
  }

  PyObject* any(bool is_numbered = false) {
    if (!in_.has(1)) return nullptr;
    const std::uint8_t tag = in_.byte();
    if (tag < kNone) return PyLong_FromLong(tag + kSmallest);
    std::uint64_t count = 0;
    switch (tag) {
      case kNone: return Py_NewRef(Py_None);
      case kFalse: return Py_NewRef(Py_False);
      case kTrue: return Py_NewRef(Py_True);
      case kI16: return in_.has(2) ? PyLong_FromLong(in_.number<std::int16_t>()) : nullptr;
      case kI32: return in_.has(4) ? PyLong_FromLong(in_.number<std::int32_t>()) : nullptr;
      case kI64: return in_.has(8) ? PyLong_FromLongLong(in_.number<std::int64_t>()) : nullptr;
      case kFloat: return in_.has(8) ? PyFloat_FromDouble(in_.number<double>()) : nullptr;
      case kBig:
        return in_.size(count) ? _PyLong_FromByteArray(in_.raw(count), count, 1, 1) : nullptr;
      case kText: return in_.size(count) ? new_ascii(in_.raw(count), count) : nullptr;
      case kWide: return wide_text();
      case kNamed: return named(in_.size(count) ? new_ascii(in_.raw(count), count) : nullptr);
      case kNamedWide: return named(wide_text());
      case kTextRef:
        if (!in_.count(count)) return nullptr;
        return count < table_.size() ? Py_NewRef(table_[count]) : fail();
      case kBytes:
      case kBytearray: {
        if (!in_.size(count)) return nullptr;
        const auto make = tag == kBytes ? PyBytes_FromStringAndSize : PyByteArray_FromStringAndSize;
        const auto* const data = reinterpret_cast<const char*>(in_.raw(count));
        return kept(make(data, static_cast<Py_ssize_t>(count)), is_numbered);
      }
      case kList: return list(is_numbered);
      case kTuple: return kept(tuple(), is_numbered);
      case kDict: return dict(is_numbered);
      case kSet: return set(kept(PySet_New(nullptr), is_numbered));
      case kFrozenset: return kept(set(PyFrozenSet_New(nullptr)), is_numbered);
      case kMemo: return is_numbered ? fail() : any(true);
      case kRef:
        if (!in_.count(count)) return nullptr;
        return count < memo_.list().size() ? Py_NewRef(memo_.list()[count]) : fail();
      case kNewShape:
      case kSame:
      case kShaped: return instance(tag, is_numbered);
      default: return other(tag, is_numbered);
    }
  }

  PyObject* wide_text() {
    std::uint64_t count = 0;
    if (!in_.has(1)) return nullptr;
    const unsigned width = in_.byte();
    if (!in_.count(count) || (width != 1 && width != 2 && width != 4)) return fail();
    if (count > in_.left() / width) return fail();
    const std::uint8_t* const data = in_.raw(width * count);
    for (std::size_t i = 3; width == 4 && i < 4 * count; i += 4) {
      if (data[i] != 0 || data[i - 1] > 0x10) return fail();
    }
    return PyUnicode_FromKindAndData(static_cast<int>(width), data, static_cast<Py_ssize_t>(count));
  }
  PyObject* named(PyObject* text) {
    if (text == nullptr) return nullptr;
    table_.push_back(text);
    held_.hold(text);
    return text;
  }

  PyObject* list(bool is_numbered) {
    // Others may see a list that has a number: it is filled at once.
    Ref early(is_numbered ? kept(PyList_New(0), true) : nullptr);
    const std::size_t base = stack().size();
    if ((is_numbered && !early) || !counted_items()) return nullptr;
    Ref list(PyList_New(static_cast<Py_ssize_t>(stack().size() - base)));
    if (!list) return nullptr;
    move_from(base, reinterpret_cast<PyListObject*>(list.get())->ob_item);
    if (!is_numbered) return list.release();
    const int failed = stops_at_exit([&] {
      const Py_ssize_t size = PyList_GET_SIZE(early.get());
      return PyList_SetSlice(early.get(), size, size, list.get());
    });
    return failed == 0 ? early.release() : nullptr;
  }

  PyObject* tuple() {
    const std::size_t base = stack().size();
    return counted_items() ? tuple_from(base) : nullptr;
  }

  PyObject* dict(bool is_numbered) {
    std::uint64_t count = 0;
    if (!in_.items(count)) return nullptr;
    if (!is_numbered && count > 8 && in_.is_next(kTextRefs)) {
      PyObject* const made = dict_of_one_value(count);
      if (made != nullptr || PyErr_Occurred() != nullptr) return made;
    }
    Ref dict(is_numbered ? kept(PyDict_New(), true) : nullptr);
    const std::size_t base = stack().size();
    if ((is_numbered && !dict) || !items(count) || !items(count)) return nullptr;
    if (!dict) dict = Ref(new_dict(count));
    if (!dict) return nullptr;
    for (std::size_t i = base; i < base + count; ++i) {
      PyObject* const key = stack()[i];
      PyObject* const value = stack()[i + count];
      note_hashing(key);
      if (stops_at_exit([&] { return PyDict_SetItem(dict.get(), key, value); }) != 0) {
        return nullptr;
      }
    }
    parts_.drop_to(base);
    return dict.release();
  }
  // Return null without an error if it is another dict; then nothing of it has been read.
  PyObject* dict_of_one_value(std::uint64_t count) {
    const Input before = in_;
    std::uint64_t first = 0;
    std::uint64_t keys = 0;
    std::uint64_t values = 0;
    in_.byte();
    const bool has_keys = in_.count(first) && in_.count(keys) && keys == count &&
                          first <= table_.size() && keys <= table_.size() - first;
    if (has_keys && in_.is_next(kRun) && in_.byte() == kRun && in_.count(values) &&
        values == count && in_.left() > 0 && *in_.raw(0) <= kTrue) {
      const Ref value(any());
      return value ? dicts_.of(&table_[first], count, value.get()) : nullptr;
    }
    PyErr_Clear();
    in_ = before;
    return nullptr;
  }

  // `made`: a set, owned; or a frozenset that nobody else has.
  PyObject* set(PyObject* made) {
    Ref set(made);
    const std::size_t base = stack().size();
    if (!set || !counted_items()) return nullptr;
    for (std::size_t i = base; i < stack().size(); ++i) {
      PyObject* const item = stack()[i];
      note_hashing(item);
      if (stops_at_exit([&] { return PySet_Add(set.get(), item); }) != 0) return nullptr;
    }
    parts_.drop_to(base);
    return set.release();
  }

  // In decoder_items.hpp:
  bool counted_items() {
    std::uint64_t count = 0;
    return in_.items(count) && items(count);
  }
  bool items(std::uint64_t count);
  bool run(std::uint64_t most);
  bool strings(std::uint64_t count);
  bool known_strings(std::uint64_t first, std::uint64_t count);

  // In decoder_instances.hpp:
  PyObject* instance(std::uint8_t tag, bool is_numbered);
  bool fields(std::uint8_t tag, ReceivedShape& shape, PyObject* object);
  bool set_fields(PyObject* object, const ReceivedShape& shape, PyObject* const* values,
                  PyObject* dict);
  bool restore(PyObject* object, const ReceivedShape& shape, PyObject* const* values);
  PyObject* other(std::uint8_t tag, bool is_numbered);
  PyObject* frame(std::uint8_t tag);
  PyObject* called(PyObject* function, std::size_t base);
  PyObject* new_object(PyTypeObject* type, std::size_t base);
  PyObject* named_tuple();
  PyObject* reduced(bool is_numbered);
  bool items_to_end();
  ReceivedName* global(std::uint8_t tag);
  ReceivedName* cls();
  template <class Thing>
  Thing* described(Descriptions<std::string_view, Thing, HashOfPart>& known,
                   std::vector<Thing*>& numbered, bool is_new);

  const Known& known_;
  const Ref find_;
  ReceivedRuns runs_;
  ReceivedDicts dicts_;
  ReceivedInts ints_;
  Descriptions<std::string_view, ReceivedShape, HashOfPart> known_shapes_;
  Descriptions<std::string_view, ReceivedName, HashOfPart> known_names_;

  // Of this message:
  Input in_{nullptr, 0};
  bool is_careful_ = false;
  bool ran_code_ = false;
  PyObject* frames_ = nullptr;
  Py_ssize_t next_frame_ = 1;
  int depth_ = 0;
  Refs parts_;                    // the stack
  std::vector<PyObject*> table_;  // strings by number
  Refs held_;                     // those that nothing else keeps
  Refs memo_;                     // objects by number
  std::vector<ReceivedShape*> shapes_;
  std::vector<ReceivedName*> globals_;
};

}  // namespace shmcast::codec

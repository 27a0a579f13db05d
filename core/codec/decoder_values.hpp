// Room: codec. What the decoder reads in one piece: values without parts, and runs of such.
// Knows: what encoder_values.hpp writes. It trusts no byte of it.
// Does not know: containers.
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

// A message that is being read. A function that returns null or false has set an error.
class ValueReader {
 protected:
  ValueReader(const Known& known, PyObject* find) : known_(known), find_(Ref::to(find)) {}

  static PyObject* fail() { return Input::malformed(), nullptr; }

  // To be asked before code of others may run.
  bool may_run_code() {
    ran_code_ = true;
    return !is_practice_ || Input::malformed();
  }

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
  }

  // Give an object the next number, if it has one.
  PyObject* kept(PyObject* object, bool is_numbered) {
    if (is_numbered && object != nullptr) memo_.hold(object);
    return object;
  }

  std::vector<PyObject*>& stack() { return parts_.list(); }
  // Move the stack's objects from `base` on to another place.
  void move_from(std::size_t base, PyObject** place) {
    const std::size_t count = stack().size() - base;
    if (count > 0) std::memcpy(place, stack().data() + base, count * sizeof(PyObject*));
    stack().resize(base);
  }
  PyObject* list_from(std::size_t base) {
    PyObject* const list = PyList_New(static_cast<Py_ssize_t>(stack().size() - base));
    if (list != nullptr) move_from(base, reinterpret_cast<PyListObject*>(list)->ob_item);
    return list;
  }
  PyObject* tuple_from(std::size_t base) {
    PyObject* const tuple = PyTuple_New(static_cast<Py_ssize_t>(stack().size() - base));
    if (tuple != nullptr) move_from(base, reinterpret_cast<PyTupleObject*>(tuple)->ob_item);
    return tuple;
  }

  PyObject* named(PyObject* text) {
    if (text == nullptr) return nullptr;
    table_.push_back(text);
    held_.hold(text);
    return text;
  }

  bool strings(std::uint64_t count) {
    std::uint64_t size = 0;
    if (!in_.count(size) || count > in_.left() || size > in_.left() - count) {
      return Input::malformed();
    }
    const std::string_view bytes(reinterpret_cast<const char*>(in_.raw(count + size)),
                                 count + size);
    const auto* const run = runs_.strings(bytes, count, held_);
    if (run == nullptr) return false;
    const std::size_t first = table_.size();
    table_.insert(table_.end(), run->begin(), run->end());
    return known_strings(first, count);
  }

  bool known_strings(std::uint64_t first, std::uint64_t count) {
    if (first > table_.size() || count > table_.size() - first) return Input::malformed();
    for (std::uint64_t i = first; i < first + count; ++i) parts_.hold(table_[i]);
    return true;
  }

  // Read what describes a class, a function or a shape; or the number of one that was described.
  template <class Thing>
  Thing* described(Descriptions<std::string_view, Thing>& known, std::vector<Thing*>& numbered,
                   bool is_new) {
    std::uint64_t count = 0;
    if (!in_.count(count)) return nullptr;
    if (!is_new) {
      if (count < numbered.size()) return numbered[count];
      return Input::malformed(), nullptr;
    }
    if (!in_.has(count)) return nullptr;
    const std::string_view text(reinterpret_cast<const char*>(in_.raw(count)), count);
    Thing* thing = known.find(text);
    if (thing == nullptr || !thing->is_current()) {
      if (is_practice_) return Input::malformed(), nullptr;  // (to learn it runs code)
      auto made = std::make_unique<Thing>();
      made->text = text;
      if (!made->learn(find_, known_)) return nullptr;
      const std::string_view key = made->text;
      thing = known.put(key, std::move(made));
    }
    numbered.push_back(thing);
    return thing;
  }

  ReceivedName* global(std::uint8_t tag) {
    if (tag != kNewGlobal && tag != kGlobal) return Input::malformed(), nullptr;
    return described(known_names_, globals_, tag == kNewGlobal);
  }

  PyObject* frame(std::uint8_t tag) {
    if (frames_ == nullptr || next_frame_ >= PyList_GET_SIZE(frames_)) return fail();
    PyObject* const frame = PyList_GET_ITEM(frames_, next_frame_++);
    if (tag == kBytesFrame) return PyBytes_FromObject(frame);
    if (tag == kBytearrayFrame && !PyByteArray_CheckExact(frame)) {
      return PyByteArray_FromObject(frame);
    }
    if (tag != kReadOnlyFrame) return Py_NewRef(frame);
    const Ref view(PyMemoryView_FromObject(frame));
    if (!view) return nullptr;
    const bool is_read_only = PyMemoryView_GET_BUFFER(view.get())->readonly != 0;
    return is_read_only ? Py_NewRef(frame)
                        : PyObject_CallMethodNoArgs(view.get(), known_.toreadonly);
  }

  const Known& known_;
  const Ref find_;
  ReceivedRuns runs_;
  ReceivedInts ints_;
  Descriptions<std::string_view, ReceivedShape> known_shapes_;
  Descriptions<std::string_view, ReceivedName> known_names_;

  // Of this message:
  bool is_practice_ = false;
  bool ran_code_ = false;
  Input in_{nullptr, 0};
  PyObject* frames_ = nullptr;
  Py_ssize_t next_frame_ = 1;
  Refs parts_;                    // the stack
  std::vector<PyObject*> table_;  // strings by number
  Refs held_;                     // those that nothing else keeps
  Refs memo_;                     // objects by number
  std::vector<ReceivedShape*> shapes_;
  std::vector<ReceivedName*> globals_;
};

}  // namespace shmcast::codec

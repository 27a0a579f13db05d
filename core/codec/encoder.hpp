// Room: codec. The encoder: an object as frames.
// Knows: Python's own types, and how their objects can be met again in a message.
// Does not know: where frames go.
//
// It has two ways. The plain one runs no code but ours, so that nothing changes meanwhile. An
// object that only one other refers to can't be met twice there, and is not remembered. The first
// object that needs code of others ends that way before any of it has run. The careful way then
// begins from scratch: it remembers and keeps every object, and copies containers before it walks
// through them.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "codec/caches.hpp"
#include "codec/classes.hpp"
#include "codec/wire.hpp"
#include "python/python.hpp"

namespace shmcast::codec {

class Encoder {
 public:
  // `own_reducer`: returns how to reduce the instances of a class, or None: pickle's own way.
  // Buffers of `frame_bytes` or more become frames.
  Encoder(const Known& known, PyObject* own_reducer, Py_ssize_t frame_bytes)
      : known_(known), own_reducer_(Ref::to(own_reducer)), frame_bytes_(frame_bytes) {}

  // Return the frames of an object, a new list. Null without an error: leave it to pickle.
  PyObject* encode(PyObject* object) {
    is_careful_ = careful_left_ > 0;
    if (is_careful_) --careful_left_;
    for (int attempt = 0; attempt < 256; ++attempt) {  // (each has learned something)
      PyObject* const list = attempt_to(object) ? end() : nullptr;
      const Ref unknown = std::move(unknown_);
      forget();
      if (list != nullptr || PyErr_Occurred() != nullptr || is_for_pickle_) return list;
      if (unknown) {
        if (!learn(unknown.get())) return nullptr;
      } else {
        if (is_careful_) return nullptr;
        is_careful_ = true;
        careful_left_ = 64;
      }
    }
    return nullptr;
  }

  // Whether the last message was written in the plain way.
  bool was_plain() const { return !is_careful_; }

  // Return what encode() would, or null if that would run code of others: never with an error.
  PyObject* practise(PyObject* object) {
    is_careful_ = false;
    PyObject* const list = attempt_to(object) ? end() : nullptr;
    unknown_ = Ref();
    forget();
    PyErr_Clear();
    return list;
  }

 private:
  static constexpr std::uint32_t kOpen = 0xFFFFFFFF;  // an object whose parts are being written

  bool attempt_to(PyObject* object) {
    ++message_;
    is_for_pickle_ = false;
    if (!out_.begin()) return false;
    out_.byte(kMagic);
    out_.byte(is_careful_ ? kCareful : 0);
    if (is_careful_) return any(object);
    const WithoutCollection nothing_else_runs;
    return any(object);
  }

  PyObject* end() {
    const auto count = static_cast<Py_ssize_t>(frames_.list().size());
    Ref message(out_.take());
    PyObject* const list = message ? PyList_New(1 + count) : nullptr;
    if (list == nullptr) return nullptr;
    PyList_SET_ITEM(list, 0, message.release());
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyList_SET_ITEM(list, 1 + i, Py_NewRef(frames_.list()[static_cast<std::size_t>(i)]));
    }
    return list;
  }

  void forget() {
    objects_.clear();
    strings_.clear();
    globals_.clear();
    table_.clear();
    runs_.begin_message();
    object_count_ = shape_count_ = global_count_ = 0;
    cursor_ = 0;
    depth_ = 0;
    scratch_.clear();
    classes_.tidy();
    names_.tidy();
    kept_.drop_to(0);
    frames_.drop_to(0);
  }

  // These return false, so that encode() goes on otherwise.
  bool leave_to_pickle() {
    is_for_pickle_ = true;
    return false;
  }
  bool be_careful() { return false; }

  bool enter() { return ++depth_ <= kDeepest || leave_to_pickle(); }
  bool leave() { return --depth_ >= 0; }

  bool any(PyObject* object) {
    const PyTypeObject* const type = Py_TYPE(object);
    if (type == &PyUnicode_Type) return text(object);
    if (type == &PyLong_Type) return integer(object);
    if (object == Py_None) return tag(kNone);
    if (type == &PyBool_Type) return tag(object == Py_True ? kTrue : kFalse);
    if (type == &PyFloat_Type) {
      if (!tag(kFloat)) return false;
      out_.number(PyFloat_AS_DOUBLE(object));
      return true;
    }
    if (type == &PyPickleBuffer_Type) return buffer(object);
    if (may_return(object)) {
      if (const std::uint32_t* const number = objects_.find(object); number != nullptr) {
        return *number == kOpen ? leave_to_pickle() : tag(kRef, *number);
      }
    }
    if (type == &PyList_Type) {
      const auto count = static_cast<std::size_t>(PyList_GET_SIZE(object));
      return remember(object) && tag(kList, count) &&
             copied_items(reinterpret_cast<PyListObject*>(object)->ob_item, count);
    }
    if (type == &PyDict_Type) return dict(object);
    if (type == &PyTuple_Type) {
      const auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(object));
      if (count == 0) return tag(kTuple, 0);
      return numbered_after(object, [&] { return tag(kTuple, count) && tuple_items(object, 0); });
    }
    return other(object);
  }

  bool tag(Tag tag) {
    if (!out_.room()) return false;
    out_.byte(tag);
    return true;
  }
  bool tag(Tag tag, std::uint64_t count) {
    if (!out_.room()) return false;
    out_.byte(tag);
    out_.count(count);
    return true;
  }

  bool integer(PyObject* object) {
    std::int64_t value = 0;
    if (!out_.room()) return false;
    if (!small_int(object, value)) [[unlikely]] {
      int overflow = 0;
      value = PyLong_AsLongLongAndOverflow(object, &overflow);
      if (overflow != 0) return big(object);
    }
    if (value >= kSmallest && value < kNone + kSmallest) {
      out_.byte(static_cast<unsigned>(value - kSmallest));
    } else if (value == static_cast<std::int16_t>(value)) {
      out_.byte(kI16);
      out_.number(static_cast<std::int16_t>(value));
    } else if (value == static_cast<std::int32_t>(value)) {
      out_.byte(kI32);
      out_.number(static_cast<std::int32_t>(value));
    } else {
      out_.byte(kI64);
      out_.number(value);
    }
    return true;
  }
  [[gnu::cold]] bool big(PyObject* object) {
    const std::size_t size = _PyLong_NumBits(object) / 8 + 1;
    if (!out_.room(size)) return false;
    out_.byte(kBig);
    out_.count(size);
    auto* const number = reinterpret_cast<PyLongObject*>(object);
#if PY_VERSION_HEX >= 0x030D0000
    const int failed = _PyLong_AsByteArray(number, out_.place(), size, 1, 1, 1);
#else
    const int failed = _PyLong_AsByteArray(number, out_.place(), size, 1, 1);
#endif
    out_.skip(size);
    return failed == 0;
  }

  // A string that may be met again gets a number. Columns of one message often have the same
  // strings in the same order: the next one is tried first.
  bool text(PyObject* object) {
    if (!is_ready(object)) return false;
    const bool is_named = may_return(object);
    if (is_named) {
      const std::uint32_t* const number = is_at_cursor(object) ? nullptr : strings_.find(object);
      if (number != nullptr) cursor_ = *number;
      if (is_at_cursor(object)) return tag(kTextRef, cursor_++);
      strings_.put(object, static_cast<std::uint32_t>(table_.size()));
      table_.push_back(object);
      if (is_careful_) kept_.hold(object);
    }
    const auto size = static_cast<std::size_t>(PyUnicode_GET_LENGTH(object));
    const bool is_ascii = PyUnicode_IS_COMPACT_ASCII(object) != 0;
    const std::size_t width = is_ascii ? 1 : PyUnicode_KIND(object);
    if (!out_.room(size * width)) return false;
    const Tag tag = is_ascii ? kText : kWide;
    out_.byte(static_cast<unsigned>(tag) + (is_named ? kNamed - kText : 0U));
    if (!is_ascii) out_.byte(static_cast<unsigned>(width));
    out_.count(size);
    out_.raw(PyUnicode_DATA(object), size * width);
    return true;
  }
  bool is_at_cursor(PyObject* object) const {
    return cursor_ < table_.size() && table_[cursor_] == object;
  }

  // Whether an object may be met more than once.
  bool may_return(PyObject* object) const { return Py_REFCNT(object) != 1 || is_careful_; }
  // Remember a new object that is numbered before its parts.
  bool remember(PyObject* object) {
    if (!may_return(object)) return true;
    objects_.put(object, object_count_++);
    if (is_careful_) kept_.hold(object);
    return tag(kMemo);
  }
  // Write a new object that is numbered after its parts. If it is one of them, pickle is needed.
  template <class Write>
  bool numbered_after(PyObject* object, Write write) {
    if (!may_return(object)) return write();
    objects_.put(object, kOpen);
    if (is_careful_) kept_.hold(object);
    if (!tag(kMemo) || !write()) return false;
    *objects_.find(object) = object_count_++;
    return true;
  }

  // Return memory for so many pointers, to the end of the message.
  PyObject** scratch(std::size_t count) {
    return scratch_.emplace_back(new PyObject*[count]).get();
  }

  bool dict(PyObject* object) {
    const auto count = static_cast<std::size_t>(PyDict_GET_SIZE(object));
    if (!remember(object) || !tag(kDict, count)) return false;
    if (count == 0) return true;
    PyObject* few[32];
    PyObject** const columns = 2 * count <= std::size(few) ? few : scratch(2 * count);
    Py_ssize_t at = 0;
    std::size_t i = 0;
    while (i < count && PyDict_Next(object, &at, &columns[i], &columns[count + i]) != 0) ++i;
    const Refs held(columns, is_careful_ ? 2 * count : 0);
    return items(columns, count) && items(columns + count, count);
  }

  bool set(PyObject* object, Tag kind) {
    const Ref list(PySequence_List(object));
    return list && tag(kind, static_cast<std::size_t>(PyList_GET_SIZE(list.get()))) &&
           items(reinterpret_cast<PyListObject*>(list.get())->ob_item,
                 static_cast<std::size_t>(PyList_GET_SIZE(list.get())));
  }

  bool bytes(PyObject* object, Tag kind, const char* data, Py_ssize_t size) {
    if (size >= kFrameBytes) {
      // (A bytearray may change before it is sent.)
      const Ref apart(kind == kBytes ? Py_NewRef(object) : PyBytes_FromStringAndSize(data, size));
      return apart && frame(apart.get(), kind == kBytes ? kBytesFrame : kBytearrayFrame);
    }
    if (!out_.room(static_cast<std::size_t>(size))) return false;
    out_.byte(kind);
    out_.count(static_cast<std::size_t>(size));
    out_.raw(data, static_cast<std::size_t>(size));
    return true;
  }
  // Add a frame. A reader takes them in the same order.
  bool frame(PyObject* buffer, Tag kind) {
    frames_.hold(buffer);
    return tag(kind);
  }

  // In encoder_items.hpp:
  bool items(PyObject* const* items, std::size_t count);
  bool copied_items(PyObject* const* items, std::size_t count) {
    const Refs held(items, is_careful_ ? count : 0);
    return this->items(is_careful_ ? const_cast<Refs&>(held).list().data() : items, count);
  }
  bool tuple_items(PyObject* tuple, std::size_t first) {
    const auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(tuple));
    return items(reinterpret_cast<PyTupleObject*>(tuple)->ob_item + first, count - first);
  }
  Py_ssize_t run(PyObject* const* items, std::size_t count);
  Py_ssize_t integers(PyObject* const* items, std::size_t count);
  Py_ssize_t floats(PyObject* const* items, std::size_t count);
  Py_ssize_t strings(PyObject* const* items, std::size_t count);
  Py_ssize_t known_strings(PyObject* const* items, std::size_t count);

  // In encoder_instances.hpp:
  bool other(PyObject* object);
  bool instance(PyObject* object, SentClass& cls);
  bool fields(Shape& shape, PyObject* const* values, std::size_t count);
  bool called(PyObject* object, const SentClass& cls);
  bool buffer(PyObject* object);
  bool global(const void* object, const Name& name);
  bool global(PyObject* object, PyObject* name = nullptr);
  bool reduced(PyObject* object, const Ref& reducer);
  bool reduction(PyObject* object, PyObject* reduction);
  bool learn(PyObject* object);
  const Name* learn_name(PyObject* object, PyObject* name = nullptr);

  const Known& known_;
  const Ref own_reducer_;
  const Py_ssize_t frame_bytes_;
  Descriptions<PyTypeObject*, SentClass> classes_;
  Descriptions<PyObject*, std::pair<Ref, Name>> names_;  // of what is written by name
  SentRuns runs_;
  int careful_left_ = 0;  // messages that begin in the careful way

  // Of this message:
  std::uint64_t message_ = 0;
  bool is_careful_ = false;
  bool is_for_pickle_ = false;
  Ref unknown_;  // what is to be learned before it can be written
  Output out_;
  PointerMap objects_;
  PointerMap strings_;
  PointerMap globals_;
  std::vector<PyObject*> table_;  // strings by number
  std::size_t cursor_ = 0;        // the string that may come next
  std::uint32_t object_count_ = 0;
  std::uint32_t shape_count_ = 0;
  std::uint32_t global_count_ = 0;
  int depth_ = 0;
  std::vector<std::unique_ptr<PyObject*[]>> scratch_;
  Refs frames_;  // all but the first
  Refs kept_;    // objects that were met, in the careful way
};

}  // namespace shmcast::codec

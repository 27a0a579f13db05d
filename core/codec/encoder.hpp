// Room: codec. The encoder: an object as frames.
// Knows: containers and instances, what pickle takes for a reduction.
// Does not know: which classes are known, or where frames go.
//
// It has two ways. The plain one runs no code but ours, so that nothing changes meanwhile. An
// object that only one other refers to can't be met twice there, and is not remembered. The first
// object that needs code of others ends that way before any of it has run. The careful way then
// begins from scratch: it remembers and keeps every object, and copies containers before it walks
// through them.
#pragma once

#include <Python.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "codec/classes.hpp"
#include "codec/encoder_values.hpp"
#include "codec/wire.hpp"
#include "python/python.hpp"

namespace shmcast::codec {

class Encoder : private ValueWriter {
 public:
  // `own_reducer`: returns how to reduce the instances of a class, or None: pickle's own way.
  // Buffers of `frame_bytes` or more become frames.
  Encoder(const Known& known, PyObject* own_reducer, Py_ssize_t frame_bytes)
      : ValueWriter(known, frame_bytes), own_reducer_(Ref::to(own_reducer)) {}

  // Write the message of an object, which stays until the next. False without an error: leave it to
  // pickle.
  bool write(PyObject* object) {
    is_careful_ = careful_left_ > 0;
    if (is_careful_) --careful_left_;
    for_pickle_ = Ref();
    for (int attempt = 0;; ++attempt) {
      const bool is_written = attempt_to(object);
      const Ref unknown = std::move(unknown_);
      if (is_for_pickle_ && !given_.list().empty() && PyErr_Occurred() == nullptr) list_given();
      forget();
      if (is_written && !is_careful_) careful_next_ = 0;
      if (is_written) return true;
      frames_.drop_to(0);
      if (PyErr_Occurred() != nullptr || is_for_pickle_) return false;
      if (unknown) {
        if (!learn(unknown.get())) return false;
        is_careful_ = attempt > 8;  // which finds out about all the others at once
      } else {
        if (is_careful_) return false;
        is_careful_ = true;
        careful_left_ = careful_next_;  // where most need it, trying costs more than it gives
        careful_next_ = std::min(2 * careful_next_ + 1, 63);
      }
    }
  }

  // The message that was written, if it is small and has no other frames; else none.
  std::span<const std::byte> small_message() {
    if (!frames_.list().empty() || out_.size() >= kFrameBytes) return {};
    return {reinterpret_cast<const std::byte*>(out_.data()), out_.size()};
  }

  // Return its frames, a new list; null with an error set. To be called once.
  PyObject* list() {
    const auto count = static_cast<Py_ssize_t>(frames_.list().size());
    Ref message(out_.take());
    PyObject* const list = message ? PyList_New(1 + count) : nullptr;
    if (list != nullptr) {
      PyList_SET_ITEM(list, 0, message.release());
      for (Py_ssize_t i = 0; i < count; ++i) {
        PyList_SET_ITEM(list, 1 + i, Py_NewRef(frames_.list()[static_cast<std::size_t>(i)]));
      }
    }
    frames_.drop_to(0);
    return list;
  }

  // What reductions gave in a message that was left to pickle, which must not call them again: a
  // list of tuples of the object, its reduction, and its items and pairs as they were drawn, or
  // None. Null: none was called.
  Ref take_given() { return std::move(for_pickle_); }

  // Whether the last message was written in the plain way.
  bool was_plain() const { return !is_careful_; }

  // The bytes of the arrays of which views were in the last message: who keeps those, keeps these.
  std::size_t viewed_bytes() const { return viewed_bytes_; }

  // Do what write() does, unless that would run code of others: never with an error.
  bool practise(PyObject* object) {
    is_careful_ = false;
    const bool is_written = attempt_to(object);
    unknown_ = Ref();
    forget();
    if (!is_written) frames_.drop_to(0);
    PyErr_Clear();
    return is_written;
  }

 private:
  static constexpr std::uint32_t kOpen = 0xFFFFFFFF;  // an object whose parts are being written

  bool attempt_to(PyObject* object) {
    ++message_;
    is_for_pickle_ = false;
    viewed_bytes_ = 0;
    out_.begin();
    out_.byte(kMagic);
    out_.byte(kFormat);
    if (is_careful_) return any(object);
    const WithoutCollection nothing_else_runs;
    return any(object);
  }

  void forget() {
    ValueWriter::forget();
    shape_count_ = 0;
    depth_ = 0;
    columns_used_ = 0;
    large_columns_.clear();
    classes_.tidy();
    names_.tidy();
  }

  bool enter() { return ++depth_ <= kDeepest || leave_to_pickle(); }
  bool leave() { return --depth_ >= 0; }

  bool any(PyObject* object) {
    const PyTypeObject* const type = Py_TYPE(object);
    if (type == &PyUnicode_Type) return text(object);
    if (type == &PyLong_Type) return integer(object);
    if (object == Py_None) return tag(kNone);
    if (type == &PyBool_Type) return tag(object == Py_True ? kTrue : kFalse);
    if (type == &PyFloat_Type) {
      tag(kFloat);
      out_.number(PyFloat_AS_DOUBLE(object));
      return true;
    }
    if (may_return(object)) {
      if (const std::uint32_t* const number = objects_.find(object); number != nullptr) {
        return *number == kOpen ? leave_to_pickle() : tag(kRef, *number);
      }
    }
    if (type == &PyList_Type) return remember(object) && parts(object, kList);
    if (type == &PyDict_Type) return dict(object);
    if (type == &PyTuple_Type) {
      if (PyTuple_GET_SIZE(object) == 0) return tag(kTuple, 0);
      return numbered_after(object, [&] { return parts(object, kTuple); });
    }
    return other(object);
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

  // Return memory for so many pointers, until `columns_used_` is what it was. (Not on the stack,
  // which may be small.)
  PyObject** columns(std::size_t count) {
    if (count <= columns_.size() - columns_used_) {
      return columns_.data() + std::exchange(columns_used_, columns_used_ + count);
    }
    return large_columns_.emplace_back(new PyObject*[count]).get();  // to the end of the message
  }

  bool dict(PyObject* object) {
    const auto count = static_cast<std::size_t>(PyDict_GET_SIZE(object));
    if (!remember(object) || !tag(kDict, count)) return false;
    if (count == 0) return true;
    const std::size_t mark = columns_used_;
    PyObject** const keys = columns(2 * count);
    Py_ssize_t at = 0;
    std::size_t i = 0;
    while (i < count && PyDict_Next(object, &at, &keys[i], &keys[count + i]) != 0) ++i;
    const Refs held(keys, is_careful_ ? 2 * count : 0);
    if (!items(keys, count) || !items(keys + count, count)) return false;
    columns_used_ = mark;
    return true;
  }

  // The items of a list, tuple or set; of a copy, if it may change meanwhile.
  bool parts(PyObject* object, Tag kind) {
    const bool is_fixed = PyTuple_Check(object) || (PyList_Check(object) && !is_careful_);
    const Ref list(is_fixed ? Py_NewRef(object) : PySequence_List(object));
    return list && tag(kind) && counted(list.get());
  }
  bool counted(PyObject* list) {
    return counted(PySequence_Fast_ITEMS(list),
                   static_cast<std::size_t>(PySequence_Fast_GET_SIZE(list)));
  }
  bool counted(PyObject* const* objects, std::size_t count) {
    out_.count(count);
    return items(objects, count);
  }

  bool items(PyObject* const* items, std::size_t count) {
    if (!enter()) return false;
    cursor_ = 0;
    for (std::size_t i = 0; i < count;) {
      const Py_ssize_t written = run(items + i, count - i);
      if (written < 0 || (written == 0 && !any(items[i]))) return false;
      i += written == 0 ? 1 : static_cast<std::size_t>(written);
    }
    return leave();
  }

  // Write items together, from the first on. Returns how many; 0: none; -1: failed.
  Py_ssize_t run(PyObject* const* items, std::size_t count) {
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
    return type == &PyLong_Type ? integers(items, count) : 0;
  }

  bool other(PyObject* object) {
    PyTypeObject* const type = Py_TYPE(object);
    if (type == &PyBytes_Type) {
      const Py_ssize_t size = PyBytes_GET_SIZE(object);
      if (size > 16 && !remember(object)) return false;
      return bytes(object, kBytes, PyBytes_AS_STRING(object), size);
    }
    if (type == &PyByteArray_Type) {
      const Py_ssize_t size = PyByteArray_GET_SIZE(object);
      return remember(object) && bytes(object, kBytearray, PyByteArray_AS_STRING(object), size);
    }
    if (type == &PyPickleBuffer_Type) return buffer(object);
    if (type == &PySet_Type) return remember(object) && parts(object, kSet);
    if (type == &PyFrozenSet_Type) {
      return numbered_after(object, [&] { return parts(object, kFrozenset); });
    }
    SentClass* cls = classes_.find(type);
    if (cls == nullptr || !cls->is_current(message_, known_)) [[unlikely]] {
      if (!is_careful_) {
        unknown_ = Ref::to(object);
        return false;
      }
      if (!learn(object)) return PyErr_Occurred() == nullptr && leave_to_pickle();
      cls = classes_.find(type);
    }
    switch (cls->kind) {
      case Kind::pickled: return leave_to_pickle();
      case Kind::plain: return instance(object, *cls);
      case Kind::named: return global(object);
      case Kind::called:
      case Kind::member: return called(object, *cls);
      case Kind::named_tuple:
        return numbered_after(
            object, [&] { return tag(kNamedTuple) && global(type, cls->name) && counted(object); });
      case Kind::array: return array(object, *cls);
      case Kind::tensor: return tensor(object, *cls);
      case Kind::reduced: break;
    }
    return reduced(object, cls->reducer);
  }

  // The values of the dict, then of the slots.
  bool instance(PyObject* object, SentClass& cls) {
    Ref dict;
    if (cls.has_dict) {
      dict = Ref(PyObject_GenericGetDict(object, nullptr));
      if (!dict) return false;
      // Someone else has it: what it holds may be met by way of it, too.
      if (Py_REFCNT(dict.get()) != 2 && !is_careful_) return be_careful();
      if (!PyDict_CheckExact(dict.get())) return reduced(object, cls.reducer);
    }
    const std::size_t attributes = dict ? static_cast<std::size_t>(PyDict_GET_SIZE(dict.get())) : 0;
    const std::size_t count = attributes + cls.offsets.size();
    const std::size_t mark = columns_used_;
    PyObject** const values = columns(2 * count);
    PyObject** const keys = values + count;
    Py_ssize_t at = 0;
    std::size_t i = 0;
    while (i < attributes && PyDict_Next(dict.get(), &at, &keys[i], &values[i]) != 0) ++i;
    Shape* const shape = cls.shape_of(keys, attributes, known_);
    // (A reader may remember no more.)
    const bool is_one_more = shape != nullptr && shape->message != message_;
    if (shape == nullptr || (is_one_more && shape_count_ == kMostKnown)) {
      columns_used_ = mark;
      return reduced(object, cls.reducer);
    }
    for (const Py_ssize_t offset : cls.offsets) {
      values[i] = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
      if (values[i++] == nullptr && cls.needs_all_slots) return leave_to_pickle();
    }
    const Refs held(values, is_careful_ ? count : 0);
    if (!remember(object) || !fields(*shape, values, count)) return false;
    columns_used_ = mark;
    return true;
  }

  // Fields that are the same objects as in the last instance of this shape are not written, while
  // objects can be known by their addresses.
  bool fields(Shape& shape, PyObject* const* values, std::size_t count) {
    if (!enter()) return false;
    const bool is_new = shape.message != message_;
    if (is_new) {
      shape.message = message_;
      shape.number = shape_count_++;
      shape.is_open = false;
      shape.last.clear();
      data(kNewShape, shape.text.data(), shape.text.size());
    }
    const bool is_nested = std::exchange(shape.is_open, true);
    const bool has_same = !shape.last.empty() && !is_nested;
    std::uint64_t others = 0;
    if (has_same) {
      for (std::size_t i = 0; i < count; ++i) {
        others |= std::uint64_t{values[i] != shape.last[i]} << i;
      }
    }
    if (!is_new) tag(has_same ? kSame : kShaped, shape.number);
    if (has_same) out_.raw(&others, (count + 7) / 8);
    for (std::size_t i = 0; i < count; ++i) {
      if (has_same && (others >> i & 1) == 0) continue;
      if (!(values[i] == nullptr ? tag(kUnset) : any(values[i]))) return false;
    }
    shape.is_open = is_nested;
    if (!is_nested && !is_careful_ && count <= kBitmapFields) {
      shape.last.assign(values, values + count);
    }
    return leave();
  }

  // As what its class is called with; or as what a reduction says that runs no code of others.
  bool called(PyObject* object, const SentClass& cls) {
    const bool is_member = cls.kind == Kind::member;
    const Ref found(is_member
                        ? PyObject_GetAttr(object, known_.value)
                        : PyObject_CallMethodOneArg(object, known_.reduce_ex, known_.protocol));
    if (!found) {  // such as a field that is not set
      PyErr_Clear();
      return leave_to_pickle();
    }
    PyObject* const value = found.get();
    return numbered_after(object, [&] {
      tag(kCall);
      if (is_member) return global(cls.type, cls.name) && counted(&value, 1);
      PyObject* const function = PyTuple_GET_ITEM(value, 0);
      const bool is_class = function == reinterpret_cast<PyObject*>(cls.type);
      return (is_class ? global(cls.type, cls.name) : global(function)) &&
             counted(PyTuple_GET_ITEM(value, 1));
    });
  }

  // In encoder_reductions.hpp:
  bool learn(PyObject* object);
  const Name* learn_name(PyObject* object, PyObject* name = nullptr);
  using ValueWriter::global;
  bool global(PyObject* object, PyObject* name = nullptr);
  bool reduced(PyObject* object, const Ref& reducer);
  bool array(PyObject* object, const SentClass& cls);
  bool tensor(PyObject* object, const SentClass& cls);
  void list_given();
  bool as_copyreg(PyObject*& function, PyObject* arguments, PyObject* object, bool& is_new);
  bool reduction(PyObject* object, PyObject* reduction);

  const Ref own_reducer_;
  Descriptions<PyTypeObject*, SentClass> classes_;
  Descriptions<PyObject*, std::pair<Ref, Name>> names_;  // of what is written by name
  int careful_left_ = 0;                                 // messages that begin in the careful way
  int careful_next_ = 0;  // how many will, after the next that has to change

  // Of this message:
  std::uint64_t message_ = 0;
  Ref unknown_;     // what is to be learned before it can be written
  Ref for_pickle_;  // see take_given()
  std::uint32_t shape_count_ = 0;
  int depth_ = 0;
  std::size_t viewed_bytes_ = 0;
  std::array<PyObject*, 2048> columns_;
  std::size_t columns_used_ = 0;
  std::vector<std::unique_ptr<PyObject*[]>> large_columns_;
};

}  // namespace shmcast::codec

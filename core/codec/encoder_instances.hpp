// Room: codec. The encoder's instances: of classes that are known, and by reduction.
// Knows: attributes, slots, and what pickle makes of a reduction.
// Does not know: which classes are known, or why.
#pragma once

#include <Python.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "codec/encoder.hpp"
#include "codec/encoder_items.hpp"

namespace shmcast::codec {

inline bool Encoder::other(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  if (type == &PyPickleBuffer_Type) return buffer(object);
  if (const int known = met(object); known != 0) return known > 0;
  if (type == &PyBytes_Type) {
    const Py_ssize_t size = PyBytes_GET_SIZE(object);
    if (size > 16 && !remember(object)) return false;
    return bytes(object, kBytes8, kBytes64, kBytesFrame, PyBytes_AS_STRING(object), size);
  }
  if (type == &PyByteArray_Type) {
    return remember(object) && bytes(object, kBytearray, kBytearray, kBytearrayFrame,
                                     PyByteArray_AS_STRING(object), PyByteArray_GET_SIZE(object));
  }
  if (type == &PySet_Type) return remember(object) && set(object, kSet);
  if (type == &PyFrozenSet_Type) {
    return numbered_after(object, [&] { return set(object, kFrozenset); });
  }
  ClassInfo* info = classes_.find(type);
  if (info == nullptr || !info->is_current_in(message_, known_)) [[unlikely]] {
    if (!is_careful_) {
      unknown_ = Ref::to(object);
      return false;
    }
    info = learn(object);
    if (info == nullptr) return false;
  }
  switch (info->kind) {
    case Kind::plain: return instance(object, *info);
    case Kind::global: return global(object);
    case Kind::array: return array(object, *info);
    case Kind::structure: return structure(object, *info);
    case Kind::member: {
      const Ref value(PyObject_GetAttr(object, known_.value));  // (in the member's own dict)
      return value && remember(object) && tag(kMember) && class_by_name(*info) && any(value.get());
    }
    case Kind::named_tuple:
      return numbered_after(object, [&] {
        const auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(object));
        if (!tag(kNamedTuple) || !class_by_name(*info) || !out_.room(10)) return false;
        out_.count(count);
        return items(reinterpret_cast<PyTupleObject*>(object)->ob_item, count);
      });
    case Kind::pickled: return leave(Stop::pickle);
    case Kind::reduced: break;
  }
  return reduced(object, *info);
}

// The dict's values, then the slots'.
inline bool Encoder::instance(PyObject* object, ClassInfo& info) {
  Ref dict;
  if (info.has_dict) {
    dict = Ref(PyObject_GenericGetDict(object, nullptr));
    if (!dict) return false;
    // Someone else has it: what it holds may be met by way of it, too.
    if (Py_REFCNT(dict.get()) != 2 && !is_careful_) return leave(Stop::careful);
  }
  const std::size_t attributes = dict ? static_cast<std::size_t>(PyDict_GET_SIZE(dict.get())) : 0;
  const std::size_t count = attributes + info.offsets.size();
  std::array<PyObject*, kBitmapFields> few;
  std::unique_ptr<PyObject*[]> many;
  PyObject** values = few.data();
  if (count > few.size()) {
    many.reset(new PyObject*[count]);
    values = many.get();
  }
  Shape* shape = info.recent;
  if (shape != nullptr && shape->keys.size() != attributes) shape = nullptr;
  Py_ssize_t at = 0;
  std::size_t i = 0;
  PyObject* key = nullptr;
  while (i < attributes && PyDict_Next(dict.get(), &at, &key, &values[i]) != 0) {
    if (shape != nullptr && shape->keys[i].get() != key) shape = nullptr;
    ++i;
  }
  if (shape == nullptr) {
    shape = info.shape_of(dict.get(), known_);
    if (shape == nullptr) return reduced(object, info);
    info.recent = shape;
  }
  for (const Py_ssize_t offset : info.offsets) {
    PyObject* const value = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
    if (value == nullptr && info.is_frozen) return leave(Stop::pickle);
    values[i++] = value;
  }
  if (!remember(object)) return false;
  if (!is_careful_) return fields(*shape, values, count);
  const Refs held(values, count);
  return fields(*shape, values, count);
}

// Fields that are the same objects as in the last instance of this shape are not written, while
// objects can be known by their addresses.
inline bool Encoder::fields(Shape& shape, PyObject* const* values, std::size_t count) {
  const Level level(*this);
  if (!level.is_allowed() || !out_.room(shape.blob.size() + kBitmapFields / 8 + 16)) return false;
  const bool is_new = shape.message != message_;
  if (is_new) {
    shape.message = message_;
    shape.number = shape_count_++;
    shape.is_open = shape.has_last = false;
    out_.byte(kNewShape);
    out_.number(static_cast<std::uint32_t>(shape.blob.size()));
    out_.raw(shape.blob.data(), shape.blob.size());
  }
  const bool is_nested = shape.is_open;
  shape.is_open = true;
  if (shape.has_last && !is_nested) {
    out_.byte(kSame);
    out_.count(shape.number);
    std::uint64_t others = 0;
    for (std::size_t i = 0; i < count; ++i) {
      others |= std::uint64_t{values[i] != shape.last[i]} << i;
    }
    std::memcpy(out_.place(), &others, 8);
    out_.skip((count + 7) / 8);
    for (; others != 0; others &= others - 1) {
      const auto i = static_cast<std::size_t>(std::countr_zero(others));
      if (!field(values[i])) return false;
    }
  } else {
    if (!is_new) {
      out_.byte(kShaped);
      out_.count(shape.number);
    }
    for (std::size_t i = 0; i < count; ++i) {
      if (!field(values[i])) return false;
    }
  }
  if (is_nested) return true;
  shape.is_open = false;
  if (!is_careful_ && count <= kBitmapFields) {
    shape.last.assign(values, values + count);
    shape.has_last = true;
  }
  return true;
}

inline bool Encoder::structure(PyObject* object, const ClassInfo& info) {
  const std::size_t count = info.offsets.size();
  std::vector<PyObject*> values;
  values.reserve(count);
  for (const Py_ssize_t offset : info.offsets) {
    values.push_back(*reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset));
    if (values.back() == nullptr) return leave(Stop::pickle);
  }
  return numbered_after(object, [&] {
    if (!tag(kCall) || !class_by_name(info) || !out_.room(10)) return false;
    out_.count(count);
    return is_careful_ ? held_items(values.data(), count) : items(values.data(), count);
  });
}

inline bool Encoder::array(PyObject* object, const ClassInfo& info) {
  const Ref typecode(PyObject_GetAttr(object, known_.typecode));
  if (!typecode) return false;
  const Py_UCS4 letter = PyUnicode_READ_CHAR(typecode.get(), 0);
  if (letter == 'u' || letter == 'w') return reduced(object, info);
  if (!remember(object)) return false;
  Py_buffer view;
  if (PyObject_GetBuffer(object, &view, PyBUF_ND) != 0) return false;
  const auto size = static_cast<std::size_t>(view.len);
  const bool has_room = out_.room(size + 11);
  if (has_room) {
    out_.byte(kArray);
    out_.byte(letter);
    out_.byte(static_cast<unsigned>(view.itemsize));
    out_.number(std::uint64_t{size});
    out_.raw(view.buf, size);
  }
  PyBuffer_Release(&view);
  return has_room;
}

// Not remembered: pickle writes a buffer each time that it meets it.
inline bool Encoder::buffer(PyObject* object) {
  const Py_buffer* const view = PyPickleBuffer_GetBuffer(object);
  if (view == nullptr || PyBuffer_IsContiguous(view, 'A') == 0) {
    PyErr_Clear();
    return leave(Stop::pickle);
  }
  if (view->len >= frame_bytes_) {
    const Ref raw(PyObject_CallMethodNoArgs(object, known_.raw));
    return raw && frame(raw.get(), view->readonly != 0 ? kReadOnlyFrame : kFrame);
  }
  const auto* const data = static_cast<const char*>(view->buf);
  if (view->readonly != 0) return bytes(object, kBytes8, kBytes64, kBytesFrame, data, view->len);
  return bytes(object, kBytearray, kBytearray, kBytearrayFrame, data, view->len);
}

inline bool Encoder::global(const void* object, const std::string& blob) {
  if (!out_.room(blob.size() + 6)) return false;
  PointerMap::Entry& entry = globals_.at(object);
  if (globals_.has(entry)) {
    out_.byte(kGlobal);
    out_.count(entry.number);
    return true;
  }
  globals_.put(entry, object, global_count_++);
  out_.byte(kNewGlobal);
  out_.number(static_cast<std::uint32_t>(blob.size()));
  out_.raw(blob.data(), blob.size());
  return true;
}

// A class or function by name; `name`: the one that its reduction gives.
inline bool Encoder::global(PyObject* object, PyObject* name) {
  const std::string* blob = names_.find(object);
  if (blob == nullptr) {
    Ref qualname = Ref::to(name);
    if (!qualname) qualname = Ref(attribute(object, known_.qualname));
    Ref module(qualname ? attribute(object, known_.module) : nullptr);
    if (qualname && (!module || module.get() == Py_None)) {
      PyErr_Clear();
      if (!is_careful_) return leave(Stop::careful);
      module = Ref(call(known_.whichmodule, object, qualname.get()));
    }
    if (module && PyUnicode_CheckExact(module.get()) && PyUnicode_CheckExact(qualname.get())) {
      blob = names_.add(object, module.get(), qualname.get());
    }
    if (blob == nullptr) {
      PyErr_Clear();
      return leave(Stop::pickle);  // which will say what is wrong, if it is
    }
  }
  if (is_careful_) kept_.hold(object);
  return global(static_cast<const void*>(object), *blob);
}

inline bool Encoder::reduced(PyObject* object, const ClassInfo& info) {
  if (!is_careful_) return leave(Stop::careful);
  if (PyType_Check(object)) return global(object);
  Ref reducer = Ref::to(info.reducer.get());
  PyObject* made = nullptr;
  if (reducer) {
    made = call(reducer.get(), object);
  } else {
    reducer = Ref(attribute(object, known_.reduce_ex));
    made = reducer ? call(reducer.get(), known_.protocol) : nullptr;
  }
  if (made == nullptr) return false;
  kept_.take(made);
  return PyUnicode_Check(made) ? global(object, made) : reduction(object, made);
}

inline bool Encoder::reduction(PyObject* object, PyObject* reduction) {
  const Level level(*this);
  const Py_ssize_t count = PyTuple_Check(reduction) ? PyTuple_GET_SIZE(reduction) : 0;
  if (!level.is_allowed() || count < 2 || count > 6) return leave(Stop::pickle);
  std::array<PyObject*, 6> part{};
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* const value = PyTuple_GET_ITEM(reduction, i);
    if (value != Py_None) part[static_cast<std::size_t>(i)] = value;
  }
  const auto [function, arguments, state, items, pairs, setter] = part;
  if (function == nullptr || arguments == nullptr || PyCallable_Check(function) == 0 ||
      !PyTuple_Check(arguments) || (items != nullptr && PyIter_Check(items) == 0) ||
      (pairs != nullptr && PyIter_Check(pairs) == 0) ||
      (setter != nullptr && PyCallable_Check(setter) == 0)) {
    return leave(Stop::pickle);  // which will say what is wrong
  }
  const unsigned parts = (items != nullptr ? kItems : 0U) | (pairs != nullptr ? kPairs : 0U) |
                         (state != nullptr ? kState : 0U) |
                         (state != nullptr && setter != nullptr ? kSetter : 0U);
  const std::size_t where = out_.size();
  if (!tag(kMemo) || !maker(object, function, arguments, parts)) return false;
  PointerMap::Entry& entry = objects_.at(object);
  if (objects_.has(entry)) {  // by way of its own arguments
    out_.change(where, kDrop);
    out_.change(where + 2, 0);
    return by_number(entry.number);
  }
  objects_.put(entry, object, object_count_++);
  kept_.hold(object);
  return this->parts(part.data());
}

// What makes the object: its class's __new__, or a function.
inline bool Encoder::maker(PyObject* object, PyObject* function, PyObject* arguments,
                           unsigned parts) {
  const Ref name(attribute(function, known_.name));
  if (!name) PyErr_Clear();
  const bool is_text = name && PyUnicode_Check(name.get());
  const bool is_new = is_text && PyUnicode_Compare(name.get(), known_.newobj) == 0;
  const bool is_new_ex = is_text && PyUnicode_Compare(name.get(), known_.newobj_ex) == 0;
  PyObject* const* const argument = reinterpret_cast<PyTupleObject*>(arguments)->ob_item;
  auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(arguments));
  if (!out_.room(2)) return false;
  out_.byte(is_new ? kNewObject : is_new_ex ? kNewObjectEx : kReduced);
  out_.byte(parts);
  if (!is_new && !is_new_ex) {
    if (!any(function) || !out_.room(10)) return false;
    out_.count(count);
    return items(argument, count);
  }
  if (count < 1 || !PyType_Check(argument[0])) return leave(Stop::pickle);
  const Ref cls(attribute(object, known_.class_));
  if (!cls) return false;
  if (cls.get() != argument[0] || !global(argument[0])) return leave(Stop::pickle);
  if (is_new_ex) {
    const bool is_valid = count == 3 && PyTuple_Check(argument[1]) && PyDict_Check(argument[2]);
    return is_valid ? any(argument[1]) && any(argument[2]) : leave(Stop::pickle);
  }
  if (!out_.room(10)) return false;
  out_.count(--count);
  return items(argument + 1, count);
}

// What is done to the object once it is made.
inline bool Encoder::parts(PyObject* const* part) {
  PyObject* const state = part[2];
  PyObject* const setter = part[5];
  for (int i = 3; i <= 4; ++i) {
    if (part[i] == nullptr) continue;
    while (PyObject* const item = stops_at_exit([&] { return PyIter_Next(part[i]); })) {
      kept_.take(item);
      if (i == 3) {
        if (!any(item)) return false;
      } else if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
        return leave(Stop::pickle);
      } else if (!any(PyTuple_GET_ITEM(item, 0)) || !any(PyTuple_GET_ITEM(item, 1))) {
        return false;
      }
    }
    if (PyErr_Occurred() != nullptr || !tag(kEnd)) return false;
  }
  if (state == nullptr) return true;
  return (setter == nullptr || any(setter)) && any(state);
}

}  // namespace shmcast::codec

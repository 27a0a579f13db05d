// Room: codec. The encoder's instances: of classes that are known, and by reduction.
// Knows: attributes, slots, names, and what pickle takes for a reduction.
// Does not know: which classes are known, or why.
#pragma once

#include <Python.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "codec/encoder.hpp"
#include "codec/encoder_items.hpp"

namespace shmcast::codec {

inline bool Encoder::other(PyObject* object) {
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
  if (type == &PySet_Type) return remember(object) && set(object, kSet);
  if (type == &PyFrozenSet_Type) {
    return numbered_after(object, [&] { return set(object, kFrozenset); });
  }
  SentClass* cls = classes_.find(type);
  if (cls == nullptr || !cls->is_current(message_, known_)) [[unlikely]] {
    if (!is_careful_) {
      unknown_ = Ref::to(object);
      return false;
    }
    if (!learn(object)) return false;
    cls = classes_.find(type);
  }
  switch (cls->kind) {
    case Kind::pickled: return leave_to_pickle();
    case Kind::plain: return instance(object, *cls);
    case Kind::named: return global(object);
    case Kind::called:
    case Kind::member:
    case Kind::array: return called(object, *cls);
    case Kind::named_tuple:
      return numbered_after(object, [&] {
        return tag(kNamedTuple) && global(type, cls->name) && out_.room() &&
               (out_.count(static_cast<std::size_t>(PyTuple_GET_SIZE(object))), true) &&
               tuple_items(object, 0);
      });
    case Kind::reduced: break;
  }
  return reduced(object, cls->reducer);
}

// Find out how an object is written. Code of others may run, and so it does between two attempts.
// Returns false with an error set, or without one: leave it to pickle.
[[gnu::cold]] inline bool Encoder::learn(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  SentClass* const known = classes_.find(type);
  const bool is_by_name = known != nullptr && known->kind == Kind::named;
  if (is_by_name && known->is_current(message_, known_)) return learn_name(object) != nullptr;
  auto cls = std::make_unique<SentClass>(type);
  if (!cls->learn(object, own_reducer_, known_)) return false;
  classes_.put(type, std::move(cls));
  return true;
}

// `name`: the one that its reduction gives, or null.
[[gnu::cold]] inline const Name* Encoder::learn_name(PyObject* object, PyObject* name) {
  const Ref found(call(known_.name_of, object, name == nullptr ? Py_None : name));
  auto made = std::make_unique<std::pair<Ref, Name>>(Ref::to(object), Name());
  const bool is_found = found && made->second.set(found.get()) && made->second.is_of(object);
  return is_found ? &names_.put(object, std::move(made))->second : nullptr;
}

// The values of the dict, then of the slots.
inline bool Encoder::instance(PyObject* object, SentClass& cls) {
  Ref dict;
  if (cls.has_dict) {
    dict = Ref(PyObject_GenericGetDict(object, nullptr));
    if (!dict) return false;
    // Someone else has it: what it holds may be met by way of it, too.
    if (Py_REFCNT(dict.get()) != 2 && !is_careful_) return be_careful();
  }
  const std::size_t attributes = dict ? static_cast<std::size_t>(PyDict_GET_SIZE(dict.get())) : 0;
  const std::size_t count = attributes + cls.offsets.size();
  std::array<PyObject*, kBitmapFields> few;
  PyObject** const values = count <= few.size() ? few.data() : scratch(count);
  Shape* shape = cls.recent;
  if (shape != nullptr && shape->keys.size() != attributes) shape = nullptr;
  Py_ssize_t at = 0;
  std::size_t i = 0;
  PyObject* key = nullptr;
  for (; i < attributes && PyDict_Next(dict.get(), &at, &key, &values[i]) != 0; ++i) {
    if (shape != nullptr && shape->keys[i].get() != key) shape = nullptr;
  }
  if (shape == nullptr) {
    shape = cls.recent = cls.shape_of(dict.get(), known_);
    if (shape == nullptr) return reduced(object, cls.reducer);
  }
  for (const Py_ssize_t offset : cls.offsets) {
    values[i] = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset);
    if (values[i++] == nullptr && cls.needs_all_slots) return leave_to_pickle();
  }
  const Refs held(values, is_careful_ ? count : 0);
  return remember(object) && fields(*shape, values, count);
}

// Fields that are the same objects as in the last instance of this shape are not written, while
// objects can be known by their addresses.
inline bool Encoder::fields(Shape& shape, PyObject* const* values, std::size_t count) {
  if (!enter() || !out_.room(shape.text.size())) return false;
  const bool is_new = shape.message != message_;
  if (is_new) {
    shape.message = message_;
    shape.number = shape_count_++;
    shape.is_open = shape.has_last = false;
    out_.byte(kNewShape);
    out_.count(shape.text.size());
    out_.raw(shape.text.data(), shape.text.size());
  }
  const bool is_nested = std::exchange(shape.is_open, true);
  const bool has_same = shape.has_last && !is_nested;
  std::uint64_t others = 0;
  if (has_same) {
    for (std::size_t i = 0; i < count; ++i) {
      others |= std::uint64_t{values[i] != shape.last[i]} << i;
    }
  }
  if (!is_new && !tag(has_same ? kSame : kShaped, shape.number)) return false;
  if (has_same) out_.raw(&others, (count + 7) / 8);
  for (std::size_t i = 0; i < count; ++i) {
    if (has_same && (others >> i & 1) == 0) continue;
    if (!(values[i] == nullptr ? tag(kUnset) : any(values[i]))) return false;
  }
  shape.is_open = is_nested;
  if (!is_nested && !is_careful_ && count <= kBitmapFields) {
    shape.last.assign(values, values + count);
    shape.has_last = true;
  }
  return leave();
}

// What its class is called with: the value of an Enum's member, the fields of a Struct, what an
// array is made of.
inline bool Encoder::called(PyObject* object, const SentClass& cls) {
  Refs values;
  if (cls.kind != Kind::called) {
    const Ref& name = cls.kind == Kind::member ? known_.value : known_.typecode;
    PyObject* const value = PyObject_GetAttr(object, name.get());  // (which runs no code of others)
    if (value == nullptr) return false;
    values.take(value);
    const bool is_text = cls.kind == Kind::array && PyUnicode_READ_CHAR(value, 0) >= 'u';
    if (is_text) return reduced(object, cls.reducer);  // (arrays of 'u' and 'w')
    if (cls.kind == Kind::array) values.take(PyBytes_FromObject(object));
  }
  for (const Py_ssize_t offset : cls.offsets) {
    values.take(
        Py_XNewRef(*reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset)));
  }
  for (PyObject* const value : values.list()) {
    if (value == nullptr) return leave_to_pickle();
  }
  return numbered_after(object, [&] {
    if (!tag(kCall) || !global(cls.type, cls.name) || !out_.room()) return false;
    out_.count(values.list().size());
    return items(values.list().data(), values.list().size());
  });
}

// Not remembered: pickle writes a buffer each time that it meets it.
inline bool Encoder::buffer(PyObject* object) {
  const Py_buffer* const view = PyPickleBuffer_GetBuffer(object);
  if (view == nullptr || PyBuffer_IsContiguous(view, 'A') == 0) {
    PyErr_Clear();
    return leave_to_pickle();
  }
  const bool is_read_only = view->readonly != 0;
  if (view->len < frame_bytes_) {
    const auto* const data = static_cast<const char*>(view->buf);
    return bytes(object, is_read_only ? kBytes : kBytearray, data, view->len);
  }
  const Ref raw(PyObject_CallMethodNoArgs(object, known_.raw.get()));
  return raw && frame(raw.get(), is_read_only ? kReadOnlyFrame : kFrame);
}

inline bool Encoder::global(const void* object, const Name& name) {
  if (const std::uint32_t* const number = globals_.find(object); number != nullptr) {
    return tag(kGlobal, *number);
  }
  globals_.put(object, global_count_++);
  if (!out_.room(name.text.size())) return false;
  out_.byte(kNewGlobal);
  out_.count(name.text.size());
  out_.raw(name.text.data(), name.text.size());
  return true;
}

// A class or function by name.
inline bool Encoder::global(PyObject* object, PyObject* name) {
  const auto* const known = names_.find(object);
  const Name* found = known == nullptr ? nullptr : &known->second;
  if (found == nullptr || !found->is_of(object)) {
    if (!is_careful_) {
      unknown_ = Ref::to(object);
      return false;
    }
    found = learn_name(object, name);
    if (found == nullptr) return PyErr_Occurred() == nullptr && leave_to_pickle();
  }
  return global(static_cast<const void*>(object), *found);
}

inline bool Encoder::reduced(PyObject* object, const Ref& reducer) {
  if (!is_careful_) return be_careful();
  if (PyType_Check(object)) return global(object);
  const Ref own(reducer ? nullptr : attribute(object, known_.reduce_ex.get()));
  if (!reducer && !own) return false;
  PyObject* const made = reducer ? call(reducer, object) : call(own, known_.protocol.get());
  if (made == nullptr) return false;
  kept_.take(made);
  return PyUnicode_Check(made) ? global(object, made) : reduction(object, made);
}

inline bool Encoder::reduction(PyObject* object, PyObject* reduction) {
  const Py_ssize_t count = PyTuple_Check(reduction) ? PyTuple_GET_SIZE(reduction) : 0;
  if (!enter() || count < 2 || count > 6) return leave_to_pickle();  // which will say what is wrong
  std::array<PyObject*, 6> part{};
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    PyObject* const value = PyTuple_GET_ITEM(reduction, static_cast<Py_ssize_t>(i));
    part[i] = value == Py_None ? nullptr : value;
  }
  const auto& [function, arguments, state, items, pairs, setter] = part;
  if (function == nullptr || arguments == nullptr || PyCallable_Check(function) == 0 ||
      !PyTuple_Check(arguments) || (items != nullptr && PyIter_Check(items) == 0) ||
      (pairs != nullptr && PyIter_Check(pairs) == 0) ||
      (setter != nullptr && PyCallable_Check(setter) == 0)) {
    return leave_to_pickle();
  }
  if (function == known_.newobj.get()) {
    const Ref cls(attribute(object, known_.class_.get()));
    if (!cls) return false;
    if (PyTuple_GET_SIZE(arguments) < 1 || PyTuple_GET_ITEM(arguments, 0) != cls.get()) {
      return leave_to_pickle();
    }
  }
  objects_.put(object, kOpen);
  kept_.hold(object);
  if (!out_.room()) return false;
  out_.byte(kMemo);
  out_.byte(kReduced);
  out_.byte((items != nullptr ? kItems : 0U) | (pairs != nullptr ? kPairs : 0U) |
            (state != nullptr && setter != nullptr ? kSetter : 0U) |
            (state != nullptr ? kState : 0U));
  if (!any(function) || !out_.room()) return false;
  out_.count(static_cast<std::size_t>(PyTuple_GET_SIZE(arguments)));
  if (!tuple_items(arguments, 0)) return false;
  *objects_.find(object) = object_count_++;
  for (PyObject* const iterator : {items, pairs}) {
    if (iterator == nullptr) continue;
    while (PyObject* const item = stops_at_exit([&] { return PyIter_Next(iterator); })) {
      kept_.take(item);
      if (iterator == items) {
        if (!any(item)) return false;
      } else if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
        return leave_to_pickle();
      } else if (!any(PyTuple_GET_ITEM(item, 0)) || !any(PyTuple_GET_ITEM(item, 1))) {
        return false;
      }
    }
    if (PyErr_Occurred() != nullptr || !tag(kEnd)) return false;
  }
  if (state == nullptr) return leave();
  return (setter == nullptr || any(setter)) && any(state) && leave();
}

}  // namespace shmcast::codec

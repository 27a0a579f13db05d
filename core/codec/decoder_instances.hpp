// Room: codec. The decoder's instances: of classes that are known, and by reduction.
// Knows: attributes, slots, and what pickle does with a reduction.
// Does not know: which classes are known, or why.
#pragma once

#include <Python.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "codec/decoder.hpp"
#include "codec/decoder_items.hpp"

namespace shmcast::codec {

inline bool Decoder::blob(std::string_view& blob) {
  if (!in_.has(4)) return false;
  const std::size_t size = in_.number<std::uint32_t>();
  if (size == 0 || !in_.has(size)) return Input::malformed();
  blob = {reinterpret_cast<const char*>(in_.raw(size)), size};
  return true;
}

inline ReceivedGlobal* Decoder::global(std::uint8_t tag) {
  if (tag == kGlobal) {
    std::uint64_t number = 0;
    if (!in_.count(number)) return nullptr;
    return number < globals_.size() ? globals_[number] : (Input::malformed(), nullptr);
  }
  std::string_view text;
  if (tag != kNewGlobal || !blob(text)) return Input::malformed(), nullptr;
  ReceivedGlobal* global = known_globals_.find(text);
  if (global == nullptr || !global->is_current()) {
    auto found = ReceivedGlobal::of(text, find_.get());
    if (found == nullptr) return nullptr;
    global = known_globals_.put(std::move(found));
  }
  globals_.push_back(global);
  return global;
}

inline ReceivedShape* Decoder::shape(std::uint8_t tag) {
  if (tag != kNewShape) {
    std::uint64_t number = 0;
    if (!in_.count(number)) return nullptr;
    return number < shapes_.size() ? shapes_[number] : (Input::malformed(), nullptr);
  }
  std::string_view text;
  if (!blob(text)) return nullptr;
  ReceivedShape* shape = known_shapes_.find(text);
  if (shape == nullptr || !shape->is_current()) {
    auto found = ReceivedShape::of(text, find_.get(), known_);
    if (found == nullptr) return nullptr;
    shape = known_shapes_.put(std::move(found));
  }
  shapes_.push_back(shape);
  return shape;
}

inline PyObject* Decoder::instance(std::uint8_t tag, bool is_numbered) {
  ReceivedShape* const shape = this->shape(tag);
  if (shape == nullptr) return nullptr;
  Ref object(kept(shape->new_instance(known_), is_numbered));
  if (!object || !fields(tag, *shape, object.get())) return nullptr;
  return object.release();
}

// Read a field, which may be a slot without a value. Returns false with an error set.
inline bool Decoder::field(PyObject*& value) {
  value = nullptr;
  if (in_.left() > 0 && in_.peek() == kUnset) return in_.byte() == kUnset;
  value = any();
  return value != nullptr;
}

inline bool Decoder::fields(std::uint8_t tag, ReceivedShape& shape, PyObject* object) {
  const Level level(*this);
  if (!level.is_allowed()) return false;
  if (tag == kSame) return same_but_for(shape, object);
  const std::size_t count = shape.keys.size();
  const bool is_first = tag == kNewShape && count <= kBitmapFields && !is_careful_;
  Items items(*this);
  for (std::size_t i = 0; i < count; ++i) {
    PyObject* value = nullptr;
    if (!field(value)) return false;
    if (value == nullptr && i < shape.attributes) return Input::malformed();
    stack_.push_back(value);
  }
  if (!set_fields(object, shape, items.data(), nullptr)) return false;
  if (!is_first) return true;
  for (std::size_t i = 0; i < count; ++i) shape.last[i] = Ref::to(items.data()[i]);
  shape.has_last = true;
  return true;
}

// The fields of the last instance of this shape, but for some.
inline bool Decoder::same_but_for(ReceivedShape& shape, PyObject* object) {
  const std::size_t count = shape.keys.size();
  if (!shape.has_last || !in_.has((count + 7) / 8)) return Input::malformed();
  std::uint64_t others = 0;
  std::memcpy(&others, in_.raw((count + 7) / 8), (count + 7) / 8);
  if (count < 64 && others >> count != 0) return Input::malformed();
  for (; others != 0; others &= others - 1) {
    const auto i = static_cast<std::size_t>(std::countr_zero(others));
    PyObject* value = nullptr;
    if (!field(value)) return false;
    shape.last[i] = Ref(value);
    if (i >= shape.attributes) continue;
    if (value == nullptr) return Input::malformed();
    if (!shape.last_dict) continue;
    if (PyDict_SetItem(shape.last_dict.get(), shape.keys[i].get(), value) != 0) return false;
  }
  std::array<PyObject*, kBitmapFields> values{};
  for (std::size_t i = 0; i < count; ++i) values[i] = shape.last[i].get();
  if (!shape.last_dict && shape.is_plain && shape.attributes > 0) {
    shape.last_dict = Ref(shape.dict_of(values.data()));
    if (!shape.last_dict) return false;
  }
  return set_fields(object, shape, values.data(), shape.last_dict.get());
}

// Give an instance its fields. `dict`: a dict of its attributes to copy, or null.
inline bool Decoder::set_fields(PyObject* object, const ReceivedShape& shape,
                                PyObject* const* values, PyObject* dict) {
  if (!shape.is_plain) return give_state(object, shape, values);
  if (shape.attributes > 0) {
    const Ref own(dict != nullptr ? PyDict_Copy(dict) : shape.dict_of(values));
    if (!own || !shape.set_dict(object, own.get())) return false;
  }
  for (std::size_t i = 0; i < shape.offsets.size(); ++i) {
    char* const place = reinterpret_cast<char*>(object) + shape.offsets[i];
    PyObject* const before = std::exchange(*reinterpret_cast<PyObject**>(place),
                                           Py_XNewRef(values[shape.attributes + i]));
    Py_XDECREF(before);
  }
  return true;
}

// Let an instance take its state in pickle's way.
[[gnu::cold]] inline bool Decoder::give_state(PyObject* object, const ReceivedShape& shape,
                                              PyObject* const* values) {
  runs_code_ = true;
  const std::size_t count = shape.keys.size();
  Ref state;
  if (shape.is_list_state) {
    state = Ref(PyList_New(0));
    for (std::size_t i = 0; i < count && state; ++i) {
      if (values[i] == nullptr) return Input::malformed();
      if (PyList_Append(state.get(), values[i]) != 0) return false;
    }
    return state && build(object, state.get());
  }
  Ref slots;
  for (std::size_t i = 0; i < count; ++i) {
    Ref& part = i < shape.attributes ? state : slots;
    if (values[i] == nullptr) continue;
    if (!part) part = Ref(PyDict_New());
    if (!part || PyDict_SetItem(part.get(), shape.keys[i].get(), values[i]) != 0) return false;
  }
  if (slots) {
    state = Ref(PyTuple_Pack(2, state ? state.get() : Py_None, slots.get()));
    if (!state) return false;
  }
  return !state || build(object, state.get());
}

// What pickle does to give an object its state.
[[gnu::cold]] inline bool Decoder::build(PyObject* object, PyObject* state) {
  const Ref setstate(attribute(object, known_.setstate));
  if (setstate) return static_cast<bool>(Ref(call(setstate.get(), state)));
  if (PyErr_ExceptionMatches(PyExc_AttributeError) == 0) return false;
  PyErr_Clear();
  PyObject* slots = Py_None;
  if (PyTuple_Check(state) && PyTuple_GET_SIZE(state) == 2) {
    slots = PyTuple_GET_ITEM(state, 1);
    state = PyTuple_GET_ITEM(state, 0);
  }
  const Ref dict(state == Py_None ? nullptr : attribute(object, known_.dict));
  if (state != Py_None && !dict) return false;
  for (PyObject* const part : {state, slots}) {
    if (part == Py_None) continue;
    if (!PyDict_Check(part)) return Input::malformed();
    const Ref pairs(PyDict_Items(part));  // a copy: what follows may run code
    if (!pairs) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(pairs.get()); ++i) {
      PyObject* const pair = PyList_GET_ITEM(pairs.get(), i);
      PyObject* key = Py_NewRef(PyTuple_GET_ITEM(pair, 0));
      if (part == state && PyUnicode_CheckExact(key)) PyUnicode_InternInPlace(&key);
      const Ref held(key);
      PyObject* const value = PyTuple_GET_ITEM(pair, 1);
      const int failed = stops_at_exit([&] {
        return part == state ? PyObject_SetItem(dict.get(), key, value)
                             : PyObject_SetAttr(object, key, value);
      });
      if (failed != 0) return false;
    }
  }
  return true;
}

inline PyObject* Decoder::other(std::uint8_t tag, bool is_numbered) {
  const Level level(*this);
  if (!level.is_allowed()) return nullptr;
  switch (tag) {
    case kNewGlobal:
    case kGlobal: {
      const ReceivedGlobal* const found = global(tag);
      return found == nullptr ? nullptr : Py_NewRef(found->object.get());
    }
    case kMember: return member(is_numbered);
    case kNamedTuple: return kept(named_tuple(), is_numbered);
    case kArray: return kept(array(), is_numbered);
    case kDrop: return Ref(any()) ? any() : nullptr;
    case kFrame:
    case kReadOnlyFrame:
    case kBytesFrame:
    case kBytearrayFrame: return kept(frame(tag), is_numbered);
    case kCall: return kept(made(kCall), is_numbered);
    case kNewObject:
    case kNewObjectEx:
    case kReduced: return reduced(tag, is_numbered);
    default: return Input::malformed(), nullptr;
  }
}

inline PyObject* Decoder::member(bool is_numbered) {
  const std::size_t number = memo_.size();
  if (is_numbered) memo_.emplace_back();
  ReceivedGlobal* const cls = global();
  if (cls == nullptr) return nullptr;
  const Ref value(any());
  if (!value) return nullptr;
  PyObject* const members = cls->members(known_);
  Ref object;
  if (members != nullptr) {
    object = Ref::to(stops_at_exit([&] { return PyDict_GetItemWithError(members, value.get()); }));
    PyErr_Clear();
  }
  if (!object) {
    runs_code_ = true;
    object = Ref(call(cls->object.get(), value.get()));
  }
  if (is_numbered) memo_[number] = Ref::to(object.get());
  return object.release();
}

inline PyObject* Decoder::named_tuple() {
  ReceivedGlobal* const cls = global();
  std::uint64_t count = 0;
  if (cls == nullptr || !in_.count(count)) return nullptr;
  if (!PyType_Check(cls->object.get())) return Input::malformed(), nullptr;
  Items items(*this);
  if (!this->items(count)) return nullptr;
  PyTypeObject* const type = cls->type();
  if (count > 0 && cls->makes_tuples_of(count, known_)) {
    PyObject* const tuple = type->tp_alloc(type, static_cast<Py_ssize_t>(count));
    if (tuple != nullptr) items.move_to(reinterpret_cast<PyTupleObject*>(tuple)->ob_item);
    return tuple;
  }
  return new_object(type, items, count);
}

// Call a class's __new__ with the items.
inline PyObject* Decoder::new_object(PyTypeObject* type, Items& items, std::uint64_t count) {
  runs_code_ = true;
  const Ref arguments(PyTuple_New(static_cast<Py_ssize_t>(count)));
  if (!arguments) return nullptr;
  if (count > 0) items.move_to(reinterpret_cast<PyTupleObject*>(arguments.get())->ob_item);
  if (type->tp_new == nullptr) return Input::malformed(), nullptr;
  return stops_at_exit([&] { return type->tp_new(type, arguments.get(), nullptr); });
}

inline PyObject* Decoder::array() {
  if (!in_.has(10)) return nullptr;
  const char typecode = static_cast<char>(in_.byte());
  const std::uint8_t itemsize = in_.byte();
  const auto size = in_.number<std::uint64_t>();
  if (itemsize == 0 || size % itemsize != 0 || !in_.has(size)) return Input::malformed(), nullptr;
  const Ref one(PyObject_CallFunction(known_.array, "C(i)", typecode, 0));
  if (!one) return nullptr;
  Ref array(PySequence_Repeat(one.get(), static_cast<Py_ssize_t>(size / itemsize)));
  Py_buffer view;
  if (!array || PyObject_GetBuffer(array.get(), &view, PyBUF_WRITABLE) != 0) return nullptr;
  const bool fits = static_cast<std::uint64_t>(view.len) == size;
  if (fits && size > 0) std::memcpy(view.buf, in_.raw(size), size);
  PyBuffer_Release(&view);
  return fits ? array.release() : (Input::malformed(), nullptr);
}

inline PyObject* Decoder::frame(std::uint8_t tag) {
  if (frames_ == nullptr || next_frame_ >= PyList_GET_SIZE(frames_)) {
    return Input::malformed(), nullptr;
  }
  PyObject* const frame = PyList_GET_ITEM(frames_, next_frame_++);
  if (tag == kBytesFrame) return PyBytes_FromObject(frame);
  const bool is_own = tag == kFrame || (tag == kBytearrayFrame && PyByteArray_CheckExact(frame));
  if (is_own) return Py_NewRef(frame);
  if (tag == kBytearrayFrame) return PyByteArray_FromObject(frame);
  const Ref view(PyMemoryView_FromObject(frame));
  if (!view) return nullptr;
  const bool is_read_only = PyMemoryView_GET_BUFFER(view.get())->readonly != 0;
  return is_read_only ? Py_NewRef(frame) : PyObject_CallMethodNoArgs(view.get(), known_.toreadonly);
}

// Read what makes an object, and make it.
[[gnu::cold]] inline PyObject* Decoder::made(std::uint8_t tag) {
  runs_code_ = true;
  Ref function;
  if (tag == kReduced) {
    function = Ref(any());
  } else if (const ReceivedGlobal* const cls = global(); cls != nullptr) {
    function = Ref::to(cls->object.get());
    if (!PyType_Check(function.get())) return Input::malformed(), nullptr;
  }
  if (!function) return nullptr;
  auto* const type = reinterpret_cast<PyTypeObject*>(function.get());
  if (tag == kNewObjectEx) {
    const Ref arguments(any());
    const Ref keywords(arguments ? any() : nullptr);
    if (!keywords) return nullptr;
    if (!PyTuple_Check(arguments.get()) || !PyDict_Check(keywords.get()) ||
        type->tp_new == nullptr) {
      return Input::malformed(), nullptr;
    }
    return stops_at_exit([&] { return type->tp_new(type, arguments.get(), keywords.get()); });
  }
  std::uint64_t count = 0;
  if (!in_.count(count)) return nullptr;
  Items items(*this);
  if (!this->items(count)) return nullptr;
  if (tag == kNewObject) return new_object(type, items, count);
  return stops_at_exit(
      [&] { return PyObject_Vectorcall(function.get(), items.data(), count, nullptr); });
}

[[gnu::cold]] inline PyObject* Decoder::reduced(std::uint8_t tag, bool is_numbered) {
  if (!in_.has(1)) return nullptr;
  const std::uint8_t parts = in_.byte();
  Ref object(kept(made(tag), is_numbered));
  if (!object || ((parts & kItems) != 0 && !add_list_items(object.get())) ||
      ((parts & kPairs) != 0 && !add_pairs(object.get()))) {
    return nullptr;
  }
  if ((parts & kState) == 0) return object.release();
  const Ref setter((parts & kSetter) != 0 ? any() : nullptr);
  if ((parts & kSetter) != 0 && !setter) return nullptr;
  const Ref state(any());
  if (!state) return nullptr;
  if (!setter) return build(object.get(), state.get()) ? object.release() : nullptr;
  return Ref(call(setter.get(), object.get(), state.get())) ? object.release() : nullptr;
}

[[gnu::cold]] inline bool Decoder::add_list_items(PyObject* object) {
  const Ref all(PyList_New(0));
  if (!all) return false;
  for (;;) {
    if (!in_.has(1)) return false;
    if (in_.peek() == kEnd) break;
    const Ref item(any());
    if (!item || PyList_Append(all.get(), item.get()) != 0) return false;
  }
  in_.byte();
  const Ref extend(attribute(object, known_.extend));
  if (extend) return static_cast<bool>(Ref(call(extend.get(), all.get())));
  if (PyErr_ExceptionMatches(PyExc_AttributeError) == 0) return false;
  PyErr_Clear();
  const Ref append(attribute(object, known_.append));
  if (!append) return false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(all.get()); ++i) {
    if (!Ref(call(append.get(), PyList_GET_ITEM(all.get(), i)))) return false;
  }
  return true;
}

[[gnu::cold]] inline bool Decoder::add_pairs(PyObject* object) {
  for (;;) {
    if (!in_.has(1)) return false;
    if (in_.peek() == kEnd) return in_.byte() == kEnd;
    const Ref key(any());
    const Ref value(key ? any() : nullptr);
    if (!value) return false;
    const int failed = stops_at_exit([&] {
      return PyDict_CheckExact(object) ? PyDict_SetItem(object, key.get(), value.get())
                                       : PyObject_SetItem(object, key.get(), value.get());
    });
    if (failed != 0) return false;
  }
}

}  // namespace shmcast::codec

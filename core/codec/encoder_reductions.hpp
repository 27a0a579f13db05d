// Room: codec. The encoder's reductions: what code of others says of classes and objects.
// Knows: what pickle takes for a reduction, and what it finds by name.
// Does not know: how values are written.
#pragma once

#include <Python.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>

#include "codec/encoder.hpp"
#include "python/tensor.hpp"

namespace shmcast::codec {

// Find out how an object is written. Code of others may run, and so it does between two attempts.
// Returns false with an error set, or without one: leave it to pickle.
[[gnu::cold]] inline bool Encoder::learn(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  SentClass* const known = classes_.find(type);
  const bool is_by_name = known != nullptr && known->kind == Kind::named;
  if (is_by_name && known->is_current(message_, known_)) return learn_name(object) != nullptr;
  if (known == nullptr && classes_.is_full()) return false;
  auto cls = std::make_unique<SentClass>(type);
  if (known != nullptr) cls->changes = known->changes + 1;
  if (!cls->is_restless() && !cls->learn(object, own_reducer_, known_)) return false;
  classes_.put(type, std::move(cls));
  return true;
}

// `name`: the one that its reduction gives, or null.
[[gnu::cold]] inline const Name* Encoder::learn_name(PyObject* object, PyObject* name) {
  if (names_.is_full()) return nullptr;
  const Ref found(call(known_.name_of, object, name == nullptr ? Py_None : name));
  auto made = std::make_unique<std::pair<Ref, Name>>(Ref::to(object), Name());
  const bool is_found = found && made->second.set(found.get()) && made->second.is_of(object);
  return is_found ? &names_.put(object, std::move(made))->second : nullptr;
}

// A class or function by name.
inline bool Encoder::global(PyObject* object, PyObject* name) {
  const auto* const known = names_.find(object);
  const Name* found = known == nullptr ? nullptr : &known->second;
  const bool is_found = found != nullptr && found->is_of(object);
  if (!is_found || (name != nullptr && PyUnicode_Compare(name, found->qualname.get()) != 0)) {
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
  if (!reducer && PyType_Check(object)) return global(object);
  PyObject* const made = reducer ? call(reducer.get(), object) : stops_at_exit([&] {
    return PyObject_CallMethodOneArg(object, known_.reduce_ex, known_.protocol);
  });
  if (made == nullptr) return false;
  kept_.take(made);
  // (An empty one is our own reducers' way to leave a message to pickle, which has others.)
  if (PyTuple_Check(made) && PyTuple_GET_SIZE(made) == 0) return leave_to_pickle();
  for (PyObject* const each : {object, made, Py_None, Py_None}) given_.hold(each);
  return PyUnicode_Check(made) ? global(object, made) : reduction(object, made);
}

// An array of numpy's, as its C structure begins in every version.
struct Array {
  PyObject head;
  const char* data;
  int dimensions;
  const Py_ssize_t* shape;
  const Py_ssize_t* strides;
  PyObject* base;
  PyObject* dtype;
  int flags;

  // Return the bytes of an array that has memory of its own, without gaps in whatever order.
  std::size_t own_bytes() const {
    std::size_t most = 0;
    for (int i = 0; i < dimensions; ++i) {
      most =
          std::max(most, static_cast<std::size_t>(shape[i]) * static_cast<std::size_t>(strides[i]));
    }
    return most;
  }
};

// Write what `reduce_array` of _codecs/arrays.py says of an array that is contiguous and, if it is
// no loan, may be written to and lies in memory of its own or another's: without the careful way.
// It says of others, too.
inline bool Encoder::array(PyObject* object, const SentClass& cls) {
  constexpr int kInOrder = 0x0001;
  constexpr int kWritable = 0x0400;
  const auto* const array = reinterpret_cast<const Array*>(object);
  PyObject* const* const facts = cls.facts();
  std::size_t at = 3;  // of the dtype, what is written of it, its size
  while (at < cls.fact_count() && facts[at] != array->dtype) at += 3;
  const bool is_known = at < cls.fact_count() && (array->flags & kInOrder) != 0;
  PyObject* owner = array->base;
  while (owner != nullptr && PyObject_TypeCheck(owner, cls.type) != 0) {
    owner = reinterpret_cast<const Array*>(owner)->base;
  }
  // A loan that was sent is frozen by its writer, not by the program.
  const bool is_lent = owner != nullptr && reinterpret_cast<PyObject*>(Py_TYPE(owner)) == facts[1];
  const auto* const base = reinterpret_cast<const Array*>(array->base);
  const bool is_own =
      (array->flags & kWritable) != 0 &&
      (base == nullptr || (Py_TYPE(array->base) == cls.type && base->base == nullptr));
  if (!is_known || !(is_own || is_lent)) return reduced(object, cls.reducer);
  if (is_lent) {
    if (!runs(facts[2], owner, object)) return false;
    viewed_bytes_ += kNotToKeep;
  } else if (base != nullptr) {
    viewed_bytes_ += base->own_bytes();
  }
  return numbered_after(object, [&] {
    tag(kReduced);
    out_.byte(0);
    if (!any(facts[0])) return false;  // (which may run code, in the careful way)
    std::size_t size = PyLong_AsSize_t(facts[at + 2]);
    for (int i = 0; i < array->dimensions; ++i) size *= static_cast<std::size_t>(array->shape[i]);
    out_.count(4);
    if (size >= static_cast<std::size_t>(frame_bytes_)) {
      const Ref view(PyMemoryView_FromObject(object));
      const Ref bytes(view ? PyObject_CallMethodOneArg(view.get(), known_.cast, known_.byte)
                           : nullptr);
      if (!bytes || !frame(bytes.get(), kFrame)) return false;
    } else if (size > 0) {
      data(kBytearray, array->data, size);
    } else {
      tag(kNone);
    }
    if (!text(facts[at + 1])) return false;
    tag(kTuple, static_cast<std::size_t>(array->dimensions));
    for (int i = 0; i < array->dimensions; ++i) whole(array->shape[i]);
    return text(known_.row_major);
  });
}

// Write what `reduce_tensor` of _codecs/tensors.py says of a tensor that is contiguous and has no
// more than its elements: without the careful way. It says of others, too.
inline bool Encoder::tensor(PyObject* object, const SentClass& cls) {
  PyObject* const* const facts = cls.facts();
  PlainTensor tensor(facts, cls.fact_count());
  if (!tensor.read(object)) return reduced(object, cls.reducer);
  if (!tensor.is_resizable()) viewed_bytes_ += kNotToKeep;  // the arena's, for all that is known
  if (tensor.kept_bytes() != tensor.size()) viewed_bytes_ += tensor.kept_bytes();
  return numbered_after(object, [&] {
    tag(kReduced);
    out_.byte(0);
    if (!any(facts[PlainTensor::rebuild])) return false;
    // (Which may have run code.)
    if (is_careful_ && !tensor.read(object)) return leave_to_pickle();
    out_.count(5);
    if (tensor.size() >= static_cast<std::size_t>(frame_bytes_)) {
      const Ref view(tensor.exported());
      if (!view || !frame(view.get(), kFrame)) return false;
    } else if (tensor.size() > 0) {
      data(kBytearray, tensor.data(), tensor.size());
    } else {
      tag(kNone);
    }
    return text(tensor.dtype_text()) && parts(tensor.shape(), kTuple) && tag(kNone) && tag(kFalse);
  });
}

[[gnu::cold]] inline void Encoder::list_given() {
  for_pickle_ = Ref(PyList_New(0));
  PyObject* const* at = given_.list().data();
  for (std::size_t left = given_.list().size(); left > 0 && for_pickle_; left -= 4, at += 4) {
    const Ref entry(PyTuple_Pack(4, at[0], at[1], at[2], at[3]));
    if (!entry || PyList_Append(for_pickle_.get(), entry.get()) != 0) return;
  }
}

// For pickle, the functions of copyreg that make instances are all that have their names.
inline bool Encoder::as_copyreg(PyObject*& function, PyObject* arguments, PyObject* object,
                                bool& is_new) {
  const char* const fixed =  // what most are called, at no cost
      PyType_CheckExact(function) ? reinterpret_cast<PyTypeObject*>(function)->tp_name
      : PyCFunction_CheckExact(function)
          ? reinterpret_cast<PyCFunctionObject*>(function)->m_ml->ml_name
          : nullptr;
  if (fixed != nullptr && std::strstr(fixed, "__newobj") == nullptr) return true;
  const bool is_known = function == known_.newobj;
  const Ref name(is_known ? nullptr : optional_attribute(function, known_.name));
  if (PyErr_Occurred() != nullptr) return false;
  const auto is_named = [&](const char* other) {
    return name && PyUnicode_Check(name.get()) &&
           PyUnicode_CompareWithASCIIString(name.get(), other) == 0;
  };
  const Py_ssize_t count = PyTuple_GET_SIZE(arguments);
  PyObject* const* const argument = PySequence_Fast_ITEMS(arguments);
  if (is_known || is_named("__newobj__")) {
    const Ref cls(attribute(object, known_.class_));
    if (!cls) return false;
    is_new = count > 0 && argument[0] == cls.get() && PyType_Check(cls.get());
    if (is_new) function = argument[0];
    return is_new || leave_to_pickle();
  }
  if (!is_named("__newobj_ex__")) return true;
  function = known_.newobj_ex;
  return (count == 3 && PyType_Check(argument[0]) && PyTuple_Check(argument[1]) &&
          PyDict_Check(argument[2])) ||
         leave_to_pickle();
}

inline bool Encoder::reduction(PyObject* object, PyObject* reduction) {
  const std::size_t place = given_.list().size() - 2;
  const Py_ssize_t count = PyTuple_Check(reduction) ? PyTuple_GET_SIZE(reduction) : 0;
  if (!enter() || count < 2 || count > 6) return leave_to_pickle();  // which will say what is wrong
  std::array<PyObject*, 6> part{};
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    PyObject* const value = PyTuple_GET_ITEM(reduction, static_cast<Py_ssize_t>(i));
    part[i] = value == Py_None ? nullptr : value;
  }
  auto& [function, arguments, state, items, pairs, setter] = part;
  if (function == nullptr || arguments == nullptr || PyCallable_Check(function) == 0 ||
      !PyTuple_Check(arguments) || (items != nullptr && PyIter_Check(items) == 0) ||
      (pairs != nullptr && PyIter_Check(pairs) == 0) ||
      (setter != nullptr && PyCallable_Check(setter) == 0)) {
    return leave_to_pickle();
  }
  bool is_new = false;
  if (!as_copyreg(function, arguments, object, is_new)) return false;
  objects_.put(object, kOpen);
  out_.byte(kMemo);
  out_.byte(kReduced);
  out_.byte(
      (is_new ? kNew : 0U) | (items != nullptr ? kItems : 0U) | (pairs != nullptr ? kPairs : 0U) |
      (state != nullptr && setter != nullptr ? kSetter : 0U) | (state != nullptr ? kState : 0U));
  const std::size_t first = is_new ? 1 : 0;
  if (!any(function) || !counted(PySequence_Fast_ITEMS(arguments) + first,
                                 static_cast<std::size_t>(PyTuple_GET_SIZE(arguments)) - first)) {
    return false;
  }
  *objects_.find(object) = object_count_++;
  const auto drawn = [&](PyObject* iterator, std::size_t at) {  // borrowed from given_
    PyObject* const list = stops_at_exit([&] { return PySequence_List(iterator); });
    if (list != nullptr) Ref(std::exchange(given_.list()[at], list));
    return list;
  };
  if (items != nullptr) {
    PyObject* const list = drawn(items, place);
    if (list == nullptr || !counted(list)) return false;
  }
  if (pairs != nullptr) {
    PyObject* const list = drawn(pairs, place + 1);
    if (list == nullptr) return false;
    const std::size_t mark = columns_used_;
    const auto many = static_cast<std::size_t>(PyList_GET_SIZE(list));
    PyObject** const keys = columns(2 * many);
    for (std::size_t i = 0; i < many; ++i) {
      PyObject* const pair = PyList_GET_ITEM(list, static_cast<Py_ssize_t>(i));
      if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2) {
        PyErr_SetString(PyExc_TypeError, "dict items iterator must return 2-tuples");
        return false;
      }
      keys[i] = PyTuple_GET_ITEM(pair, 0);
      keys[many + i] = PyTuple_GET_ITEM(pair, 1);
    }
    if (!counted(keys, 2 * many)) return false;
    columns_used_ = mark;
  }
  if (state == nullptr) return leave();
  return (setter == nullptr || any(setter)) && any(state) && leave();
}

}  // namespace shmcast::codec

// Room: codec. The decoder's reductions: what pickle does with what code of others has said.
// Knows: functions that are called, items, states.
// Does not know: how values are read.
#pragma once

#include <Python.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/decoder.hpp"

namespace shmcast::codec {

inline PyObject* Decoder::reduced(bool is_numbered) {
  if (!in_.has(1)) return nullptr;
  const std::uint8_t parts = in_.byte();
  const Ref function(any());
  const std::size_t base = stack().size();
  if (!function || !counted_items()) return nullptr;
  Ref object(
      kept((parts & kNew) != 0 ? new_object(function.get(), base) : called(function.get(), base),
           is_numbered));
  if (!object) return nullptr;
  if ((parts & kItems) != 0) {
    const Ref list(counted_items() ? list_from(base) : nullptr);
    if (!list || !add_items(object.get(), list.get())) return nullptr;
  }
  if ((parts & kPairs) != 0) {
    if (!counted_items()) return nullptr;
    const std::size_t many = (stack().size() - base) / 2;
    for (std::size_t i = base; i < base + many; ++i) {
      PyObject* const key = stack()[i];
      PyObject* const value = stack()[i + many];
      if (stops_at_exit([&] { return PyObject_SetItem(object.get(), key, value); }) != 0) {
        return nullptr;
      }
    }
    parts_.drop_to(base);
  }
  if ((parts & kState) != 0) {
    const Ref setter((parts & kSetter) != 0 ? any() : nullptr);
    const Ref state((parts & kSetter) == 0 || setter ? any() : nullptr);
    const bool is_set = state && (setter ? runs(setter.get(), object.get(), state.get())
                                         : set_state(object.get(), state.get()));
    if (!is_set) return nullptr;
  }
  return leave() ? object.release() : nullptr;
}

// Turn what `_rebuild_array` of _codecs/arrays.py is called with into what the class itself is: for
// most arrays, and only if that runs nothing but numpy's C code. What Python runs may be
// interrupted by a signal, which practice must not take for itself.
inline bool Decoder::make_plain(PyObject* const* arguments, std::array<PyObject*, 6>& made) const {
  PyObject* const buffer = arguments[0];
  PyObject* const shape = arguments[2];
  PyObject* const order = arguments[3];
  if (buffer != Py_None && !PyByteArray_CheckExact(buffer)) return false;
  if (!PyUnicode_CheckExact(arguments[1]) || !PyTuple_CheckExact(shape)) return false;
  PyObject* const* const sizes = PySequence_Fast_ITEMS(shape);
  const auto is_whole = [](PyObject* size) { return PyLong_CheckExact(size); };
  if (!std::all_of(sizes, sizes + PyTuple_GET_SIZE(shape), is_whole)) return false;
  if (!PyUnicode_CheckExact(order) || PyUnicode_Compare(order, known_.row_major) != 0) return false;
  PyObject* const dtype = PyDict_GetItemWithError(known_.of_arrays(2), arguments[1]);
  made = {shape, dtype, buffer, known_.zero, Py_None, order};
  return dtype != nullptr;
}

// Give an object the items of its reduction, so many at once as pickle does.
inline bool Decoder::add_items(PyObject* object, PyObject* list) {
  constexpr Py_ssize_t kBatch = 1000;
  const Py_ssize_t count = PyList_GET_SIZE(list);
  for (Py_ssize_t at = 0; at < count; at += kBatch) {
    const bool is_all = count <= kBatch;
    const Ref batch(is_all ? Py_NewRef(list) : PyList_GetSlice(list, at, at + kBatch));
    const Ref extend(batch ? optional_attribute(object, known_.extend) : nullptr);
    if (extend && runs(extend.get(), batch.get())) continue;
    if (PyErr_Occurred() != nullptr) return false;
    const Ref append(attribute(object, known_.append));
    for (Py_ssize_t i = 0; append && i < PyList_GET_SIZE(batch.get()); ++i) {
      if (!runs(append.get(), PyList_GET_ITEM(batch.get(), i))) return false;
    }
    if (!append) return false;
  }
  return true;
}

// Do something with each key of a dict and its value. It may change meanwhile.
template <class Set>
bool each(PyObject* dict, Set set) {
  Py_ssize_t at = 0;
  PyObject *key, *value;
  while (PyDict_Next(dict, &at, &key, &value) != 0) {
    Py_INCREF(key);
    if (PyUnicode_CheckExact(key)) PyUnicode_InternInPlace(&key);
    const Ref held_key(key);
    const Ref held_value = Ref::to(value);
    if (stops_at_exit([&] { return set(key, value); }) != 0) return false;
  }
  return true;
}
// Give an object its state in the way of its class, or else of pickle.
inline bool Decoder::set_state(PyObject* object, PyObject* state) {
  const Ref own(optional_attribute(object, known_.setstate));
  if (own || PyErr_Occurred() != nullptr) return own && runs(own.get(), state);
  PyObject* slots = nullptr;
  if (PyTuple_Check(state) && PyTuple_GET_SIZE(state) == 2) {
    slots = PyTuple_GET_ITEM(state, 1);
    state = PyTuple_GET_ITEM(state, 0);
  }
  if (state != Py_None) {
    if (!PyDict_Check(state)) return refused("state is not a dictionary");
    const Ref attributes(attribute(object, known_.dict));
    const auto set = [&](PyObject* key, PyObject* value) {
      return PyObject_SetItem(attributes.get(), key, value);
    };
    if (!attributes || !each(state, set)) return false;
  }
  if (slots == nullptr) return true;
  if (!PyDict_Check(slots)) return refused("slot state is not a dictionary");
  return each(slots,
              [&](PyObject* key, PyObject* value) { return PyObject_SetAttr(object, key, value); });
}
}  // namespace shmcast::codec

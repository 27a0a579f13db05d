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
#include "python/tensor.hpp"

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
  PyObject* buffer = arguments[0];
  PyObject* shape = arguments[2];
  PyObject* const order = arguments[3];
  if (PyMemoryView_Check(buffer)) {  // a part of the arena, whose views keep what exports it
    PyObject* const exporter = PyMemoryView_GET_BUFFER(buffer)->obj;
    const bool is_lease = exporter != nullptr &&
                          reinterpret_cast<PyObject*>(Py_TYPE(exporter)) == known_.of_arrays(3);
    if (!is_lease) return false;
    buffer = exporter;
  } else if (buffer != Py_None && !PyByteArray_CheckExact(buffer)) {
    return false;
  }
  if (!PyUnicode_CheckExact(arguments[1]) || !PyTuple_CheckExact(shape)) return false;
  PyObject* const* const sizes = PySequence_Fast_ITEMS(shape);
  const auto is_whole = [](PyObject* size) { return PyLong_CheckExact(size); };
  if (!std::all_of(sizes, sizes + PyTuple_GET_SIZE(shape), is_whole)) return false;
  if (!PyUnicode_CheckExact(order) || PyUnicode_Compare(order, known_.row_major) != 0) return false;
  PyObject* const dtype = PyDict_GetItemWithError(known_.of_arrays(2), arguments[1]);
  if (is_without_memory(buffer)) shape = known_.of_arrays(4);
  made = {shape, dtype, buffer, known_.zero, Py_None, order};
  return dtype != nullptr;
}

// Return a capsule with the tensor that `_rebuild_tensor` of _codecs/tensors.py would make: of
// most, and without running Python code, as above. Null, without an error: it is another one.
inline Ref Decoder::plain_tensor(PyObject* const* arguments) const {
  PyObject* const buffer = arguments[0];
  PyObject* shape = arguments[2];
  if (!PyByteArray_CheckExact(buffer) || !PyUnicode_CheckExact(arguments[1]) ||
      !PyTuple_CheckExact(shape) || arguments[3] != Py_None || arguments[4] != Py_False) {
    return Ref();
  }
  PyObject* const dtype = PyDict_GetItemWithError(known_.of_tensors(2), arguments[1]);
  if (dtype == nullptr) return Ref();
  const auto code = static_cast<unsigned>(PyLong_AsUnsignedLong(dtype));
  if (is_without_memory(buffer)) return Ref(dlpack_of(buffer, known_.of_tensors(3), code));
  // (What does not fit is for torch to complain of.)
  auto left = static_cast<std::size_t>(PyByteArray_GET_SIZE(buffer)) / ((code & 0xFF) / 8);
  const bool is_whole =
      left * ((code & 0xFF) / 8) == static_cast<std::size_t>(PyByteArray_GET_SIZE(buffer));
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(shape); ++i) {
    std::int64_t size = 0;
    PyObject* const number = PyTuple_GET_ITEM(shape, i);
    if (!PyLong_CheckExact(number) || !small_int(number, size) || size <= 0 ||
        left % static_cast<std::size_t>(size) != 0) {
      return Ref();
    }
    left /= static_cast<std::size_t>(size);
  }
  return is_whole && left == 1 ? Ref(dlpack_of(buffer, shape, code)) : Ref();
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

// Room: python. What the core needs of CPython beyond its API, in each version.
// Knows: references, calls that may run the code of others.
// Does not know: what the core does with objects.
#pragma once

#include <Python.h>
#include <structmember.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace shmcast {

// Call functions of Python's C API, which may run Python code or wait for the GIL. `action` throws
// no C++ exception and has nothing to destroy: what is caught here is the end of the thread (see
// bindings/gil.hpp).
template <class Action>
auto stops_at_exit(Action action) {
  try {
    return action();
  } catch (...) {
    for (;;) pause();
  }
}

// An owned reference, or null. To drop one may run a finalizer.
class Ref {
 public:
  Ref() = default;
  explicit Ref(PyObject* owned) : object_(owned) {}
  static Ref to(PyObject* borrowed) { return Ref(Py_XNewRef(borrowed)); }
  Ref(Ref&& other) noexcept : object_(other.release()) {}
  Ref& operator=(Ref&& other) noexcept {
    Ref(std::move(other)).swap(*this);
    return *this;
  }
  ~Ref() {
    stops_at_exit([this] { Py_XDECREF(object_); });
  }
  void swap(Ref& other) noexcept { std::swap(object_, other.object_); }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

// References that are dropped together; null ones, too.
class Refs {
 public:
  Refs() = default;
  Refs(PyObject* const* borrowed, std::size_t count) : objects_(borrowed, borrowed + count) {
    for (PyObject* const object : objects_) Py_XINCREF(object);
  }
  Refs(const Refs&) = delete;
  Refs& operator=(const Refs&) = delete;
  ~Refs() { drop_to(0); }
  void hold(PyObject* borrowed) { objects_.push_back(Py_NewRef(borrowed)); }
  void take(PyObject* owned) { objects_.push_back(owned); }
  std::vector<PyObject*>& list() { return objects_; }
  void drop_to(std::size_t size) {
    while (objects_.size() > size) {
      const Ref last(objects_.back());
      objects_.pop_back();
    }
  }

 private:
  std::vector<PyObject*> objects_;
};

// Return the error that is set, with its traceback, as a new reference. It is set no more.
inline PyObject* take_error() {
#if PY_VERSION_HEX >= 0x030C0000
  return PyErr_GetRaisedException();
#else
  PyObject* type = nullptr;
  PyObject* error = nullptr;
  PyObject* traceback = nullptr;
  stops_at_exit([&] {
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != nullptr) PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
  });
  return error;
#endif
}

inline PyObject* attribute(PyObject* object, PyObject* name) {
  return stops_at_exit([=] { return PyObject_GetAttr(object, name); });
}
// Return null without an error if there is none.
inline PyObject* optional_attribute(PyObject* object, PyObject* name) {
  PyObject* found = nullptr;
  stops_at_exit([&] {
#if PY_VERSION_HEX >= 0x030D0000
    return PyObject_GetOptionalAttr(object, name, &found);
#else
    return _PyObject_LookupAttr(object, name, &found);
#endif
  });
  return found;
}
template <class... Arguments>
PyObject* call(PyObject* callee, Arguments... arguments) {
  return stops_at_exit([&] { return PyObject_CallFunctionObjArgs(callee, arguments..., nullptr); });
}

// Return whether a call is well; if not, an error is set.
template <class... Arguments>
bool runs(PyObject* callee, Arguments... arguments) {
  return static_cast<bool>(Ref(call(callee, arguments...)));
}

// Read an integer that has one digit. Returns false if it may have more.
inline bool small_int(PyObject* object, std::int64_t& value) {
  auto* const number = reinterpret_cast<PyLongObject*>(object);
#if PY_VERSION_HEX >= 0x030C0000
  if (!PyUnstable_Long_IsCompact(number)) return false;
  value = PyUnstable_Long_CompactValue(number);
#else
  const Py_ssize_t size = Py_SIZE(object);
  if (size < -1 || size > 1) return false;
  value = size == 0 ? 0 : size * static_cast<std::int64_t>(number->ob_digit[0]);
#endif
  return true;
}

// Write an integer as so many bytes of two's complement. Returns false with an error set.
inline bool write_int(PyObject* object, std::uint8_t* place, std::size_t size) {
  auto* const number = reinterpret_cast<PyLongObject*>(object);
#if PY_VERSION_HEX >= 0x030D0000
  return _PyLong_AsByteArray(number, place, size, 1, 1, 1) == 0;
#else
  return _PyLong_AsByteArray(number, place, size, 1, 1) == 0;
#endif
}

// Whether an integer that nobody else has may become this one: it has one digit, and is none of
// those that the interpreter keeps.
inline bool can_rewrite_int([[maybe_unused]] std::int32_t value) {
#if PY_VERSION_HEX >= 0x030E0000 || defined(Py_GIL_DISABLED)
  return false;
#else
  return (value < -5 || value > 256) && value > -(1 << 30) && value < 1 << 30;
#endif
}
inline void rewrite_int(PyObject* object, std::int32_t value) {
  auto* const number = reinterpret_cast<PyLongObject*>(object);
  const auto digit = static_cast<unsigned>(value < 0 ? -value : value);
#if PY_VERSION_HEX >= 0x030C0000
  number->long_value.lv_tag = 1 << 3 | (value < 0 ? 2 : 0);  // one digit, and the sign
  number->long_value.ob_digit[0] = digit;
#else
  Py_SET_SIZE(number, value < 0 ? -1 : 1);
  number->ob_digit[0] = digit;
#endif
}

// Find where a class's slots lie in an instance. Returns false if one is no slot.
inline bool find_slots(PyTypeObject* type, PyObject* names, std::size_t first,
                       std::vector<Py_ssize_t>& offsets) {
  for (auto i = static_cast<Py_ssize_t>(first); i < PyTuple_GET_SIZE(names); ++i) {
    PyObject* const found = _PyType_Lookup(type, PyTuple_GET_ITEM(names, i));
    if (found == nullptr || Py_TYPE(found) != &PyMemberDescr_Type) return false;
    const PyMemberDef* const member = reinterpret_cast<PyMemberDescrObject*>(found)->d_member;
    if (member->type != T_OBJECT_EX) return false;
    offsets.push_back(member->offset);
  }
  return true;
}

// Return what changes with every change of a class or its bases; 0: that can't be told.
inline unsigned version_of(PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030B0000
  if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG)) return 0;
#endif
  return type->tp_version_tag;
}

inline bool is_ready(PyObject* text) {
#if PY_VERSION_HEX < 0x030C0000
  return PyUnicode_READY(text) == 0;
#else
  return text != nullptr;
#endif
}

// Return a new dict with room for so many keys.
inline PyObject* new_dict([[maybe_unused]] std::size_t size) {
#if PY_VERSION_HEX < 0x030E0000
  if (size > 5) return _PyDict_NewPresized(static_cast<Py_ssize_t>(size));
#endif
  return PyDict_New();
}

// Keeps the garbage collector, which runs the code of others, from running in the midst of ours:
// before Python 3.12, any new container may start it.
class WithoutCollection {
 public:
  WithoutCollection() : was_on_(PY_VERSION_HEX < 0x030C0000 && PyGC_Disable() != 0) {}
  WithoutCollection(const WithoutCollection&) = delete;
  WithoutCollection& operator=(const WithoutCollection&) = delete;
  ~WithoutCollection() {
    if (was_on_) PyGC_Enable();
  }

 private:
  bool was_on_;
};

}  // namespace shmcast

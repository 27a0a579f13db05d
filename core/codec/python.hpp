// Room: codec. What the codec needs of CPython beyond its stable API, for each version.
// Knows: Python's types, names, and calls that may run the code of others.
// Does not know: what a message looks like.
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

namespace codec {

// Drop a reference, which may run a finalizer.
inline void drop(PyObject* object) {
  stops_at_exit([object] { Py_XDECREF(object); });
}

// An owned reference, or null.
class Ref {
 public:
  Ref() = default;
  explicit Ref(PyObject* owned) : object_(owned) {}
  static Ref to(PyObject* borrowed) { return Ref(Py_XNewRef(borrowed)); }
  Ref(Ref&& other) noexcept : object_(other.release()) {}
  Ref& operator=(Ref&& other) noexcept {
    if (this != &other) drop(std::exchange(object_, other.release()));
    return *this;
  }
  ~Ref() { drop(object_); }
  PyObject* get() const { return object_; }
  PyObject* release() { return std::exchange(object_, nullptr); }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  PyObject* object_ = nullptr;
};

// References that are dropped together.
class Refs {
 public:
  Refs() = default;
  Refs(PyObject* const* borrowed, std::size_t count) : objects_(borrowed, borrowed + count) {
    for (PyObject* const object : objects_) Py_XINCREF(object);
  }
  Refs(const Refs&) = delete;
  Refs& operator=(const Refs&) = delete;
  ~Refs() { clear(); }
  void hold(PyObject* borrowed) { objects_.push_back(Py_NewRef(borrowed)); }
  void take(PyObject* owned) { objects_.push_back(owned); }
  PyObject* const* data() const { return objects_.data(); }
  void clear() {
    while (!objects_.empty()) {  // (what a finalizer adds is dropped, too)
      PyObject* const last = objects_.back();
      objects_.pop_back();
      drop(last);
    }
  }

 private:
  std::vector<PyObject*> objects_;
};

inline PyObject* attribute(PyObject* object, PyObject* name) {
  return stops_at_exit([=] { return PyObject_GetAttr(object, name); });
}
template <class... Arguments>
PyObject* call(PyObject* callee, Arguments... arguments) {
  return stops_at_exit([=] { return PyObject_CallFunctionObjArgs(callee, arguments..., nullptr); });
}

// Read an integer that has one digit. Returns false if it may have more.
inline bool small_int(PyObject* object, std::int64_t& value) {
#if PY_VERSION_HEX >= 0x030C0000
  auto* const number = reinterpret_cast<PyLongObject*>(object);
  if (!PyUnstable_Long_IsCompact(number)) return false;
  value = PyUnstable_Long_CompactValue(number);
#else
  const Py_ssize_t size = Py_SIZE(object);
  if (size < -1 || size > 1) return false;
  const auto digit = reinterpret_cast<PyLongObject*>(object)->ob_digit[0];
  value = size == 0 ? 0 : size * static_cast<std::int64_t>(digit);
#endif
  return true;
}

// Return what changes with every change of a class or its bases; 0: that can't be told.
inline unsigned version_of(const PyTypeObject* type) {
#if PY_VERSION_HEX < 0x030B0000
  if (!PyType_HasFeature(const_cast<PyTypeObject*>(type), Py_TPFLAGS_VALID_VERSION_TAG)) return 0;
#endif
  return type->tp_version_tag;
}

// Look a name up in a class and its bases, which runs no code. Returns a borrowed reference.
inline PyObject* look_up(PyTypeObject* type, PyObject* name) { return _PyType_Lookup(type, name); }

inline bool is_ready(PyObject* text) {
#if PY_VERSION_HEX < 0x030C0000
  return PyUnicode_READY(text) == 0;
#else
  static_cast<void>(text);
  return true;
#endif
}

// Return a new dict with room for so many keys.
inline PyObject* new_dict(std::size_t size) {
#if PY_VERSION_HEX < 0x030E0000
  if (size > 5) return _PyDict_NewPresized(static_cast<Py_ssize_t>(size));
#else
  static_cast<void>(size);
#endif
  return PyDict_New();
}

// Keeps the garbage collector from running, before Python 3.12 lets only the interpreter's loop
// start it: where it runs, so does the code of others.
class WithoutCollection {
 public:
#if PY_VERSION_HEX < 0x030C0000
  WithoutCollection() : was_on_(PyGC_Disable() != 0) {}
  ~WithoutCollection() {
    if (was_on_) PyGC_Enable();
  }

 private:
  bool was_on_;
#else
  WithoutCollection() {}
#endif
  WithoutCollection(const WithoutCollection&) = delete;
  WithoutCollection& operator=(const WithoutCollection&) = delete;
};

// Python's objects that the codec compares with, and names that it looks up.
struct Known {
  // Null, and with an error set, if the interpreter lacks one of them.
  static const Known* get() {
    static Known known;
    if (!known.is_complete_ && !known.find()) return nullptr;
    return &known;
  }

  PyObject *reduce_ex, *reduce, *getstate, *setstate, *getnewargs, *getnewargs_ex, *class_, *dict,
      *module, *qualname, *name, *new_, *newobj, *newobj_ex, *value, *value_map, *extend, *append,
      *typecode, *struct_fields, *dataclass_fields, *tuple_new_name, *raw, *toreadonly;

  PyObject* object_reduce_ex;
  PyObject* object_reduce;
  PyObject* object_getstate;  // null before 3.11
  PyObject* object_class;
  PyObject* type_module;
  PyObject* type_qualname;
  PyObject* slot_names;      // copyreg._slotnames
  PyObject* dispatch_table;  // copyreg's
  PyObject* whichmodule;
  PyObject* pickling_error;
  PyObject* array;
  PyObject* enum_reduce_ex;
  PyTypeObject* enum_meta;
  PyObject* newargs_code;  // of every namedtuple's __getnewargs__
  PyObject* tuple_new;
  PyObject* frozen_getstate;  // of frozen dataclasses with slots
  PyObject* frozen_setstate;
  PyObject* protocol;
  PyObject* no_arguments;

 private:
  bool find() {
    const std::pair<PyObject**, const char*> names[] = {
        {&reduce_ex, "__reduce_ex__"},
        {&reduce, "__reduce__"},
        {&getstate, "__getstate__"},
        {&setstate, "__setstate__"},
        {&getnewargs, "__getnewargs__"},
        {&getnewargs_ex, "__getnewargs_ex__"},
        {&class_, "__class__"},
        {&dict, "__dict__"},
        {&module, "__module__"},
        {&qualname, "__qualname__"},
        {&name, "__name__"},
        {&new_, "__new__"},
        {&newobj, "__newobj__"},
        {&newobj_ex, "__newobj_ex__"},
        {&value, "_value_"},
        {&value_map, "_value2member_map_"},
        {&extend, "extend"},
        {&append, "append"},
        {&typecode, "typecode"},
        {&struct_fields, "__struct_fields__"},
        {&dataclass_fields, "__dataclass_fields__"},
        {&tuple_new_name, "_tuple_new"},
        {&raw, "raw"},
        {&toreadonly, "toreadonly"},
    };
    for (const auto& [place, text] : names) {
      if ((*place = PyUnicode_InternFromString(text)) == nullptr) return false;
    }
    const auto of = [](const char* from, const char* what) {
      const Ref owner(PyImport_ImportModule(from));
      return owner ? PyObject_GetAttrString(owner.get(), what) : nullptr;
    };
    PyTypeObject* const object = &PyBaseObject_Type;
    object_reduce_ex = look_up(object, reduce_ex);
    object_reduce = look_up(object, reduce);
    object_getstate = look_up(object, getstate);
    object_class = look_up(object, class_);
    type_module = look_up(&PyType_Type, module);
    type_qualname = look_up(&PyType_Type, qualname);
    frozen_getstate = of("dataclasses", "_dataclass_getstate");
    frozen_setstate = of("dataclasses", "_dataclass_setstate");
    PyErr_Clear();
    const Ref enum_class(of("enum", "Enum"));
    const Ref namedtuple(of("collections", "namedtuple"));
    const Ref sample(namedtuple ? PyObject_CallFunction(namedtuple.get(), "ss", "Sample", "a")
                                : nullptr);
    const Ref newargs(sample ? PyObject_GetAttr(sample.get(), getnewargs) : nullptr);
    if (!enum_class || !newargs || !PyFunction_Check(newargs.get())) return false;
    enum_meta = Py_TYPE(enum_class.get());
    enum_reduce_ex = look_up(reinterpret_cast<PyTypeObject*>(enum_class.get()), reduce_ex);
    newargs_code = Py_NewRef(PyFunction_GET_CODE(newargs.get()));
    is_complete_ = (slot_names = of("copyreg", "_slotnames")) != nullptr &&
                   (dispatch_table = of("copyreg", "dispatch_table")) != nullptr &&
                   (whichmodule = of("pickle", "whichmodule")) != nullptr &&
                   (pickling_error = of("pickle", "PicklingError")) != nullptr &&
                   (array = of("array", "array")) != nullptr &&
                   (tuple_new = of("builtins", "tuple")) != nullptr &&
                   (tuple_new = PyObject_GetAttr(tuple_new, new_)) != nullptr &&
                   (protocol = PyLong_FromLong(5)) != nullptr &&
                   (no_arguments = PyTuple_New(0)) != nullptr;
    return is_complete_;
  }

  bool is_complete_ = false;
};

}  // namespace codec
}  // namespace shmcast

// Room: bindings. The GIL: giving it up, and calling Python, in a process that may be exiting.
// Knows: how CPython ends a thread that wants the GIL while the interpreter finalizes.
// Does not know: endpoints.
//
// CPython before 3.14 ends such a thread by pthread_exit(), which unwinds its stack. On the way are
// functions that can't be unwound (destructors, nanobind's own): std::terminate() would end the
// process. Others would drop references without the GIL. So whatever may take the GIL is called
// through stops_at_exit(), where the unwinding meets its end and the thread sleeps until the
// process is gone, which is what CPython 3.14 itself does. That is whatever may run Python code:
// a call, a conversion of what users pass, the end of a last reference, and (before 3.12) to make
// a list or a dict, which may run the garbage collector.
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

#include <array>
#include <cstddef>
#include <utility>
#include <vector>

#include "python/python.hpp"

namespace shmcast {

namespace nb = nanobind;

// Gives up the GIL for as long as it exists.
class WithoutGil {
 public:
  WithoutGil() : thread_(PyEval_SaveThread()) {}
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;
  ~WithoutGil() {
    stops_at_exit([this] { PyEval_RestoreThread(thread_); });
  }

 private:
  PyThreadState* thread_;
};

// Takes the GIL for as long as it exists, in a thread that has given it up.
class WithGil {
 public:
  WithGil() : state_(stops_at_exit([] { return PyGILState_Ensure(); })) {}
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;
  ~WithGil() { PyGILState_Release(state_); }

 private:
  PyGILState_STATE state_;
};

// A reference whose end may run Python code.
class Reference : public nb::object {
 public:
  Reference() = default;
  Reference(nb::object object) : nb::object(std::move(object)) {}
  Reference(const Reference&) = default;
  Reference(Reference&&) noexcept = default;
  Reference& operator=(const Reference&) = default;
  Reference& operator=(Reference&&) noexcept = default;
  ~Reference() {
    PyObject* const object = release().ptr();
    stops_at_exit([object] { Py_XDECREF(object); });
  }
};

// Take over a new reference. Throws the pending Python error if it is null.
inline nb::object owned(PyObject* fresh) {
  if (fresh == nullptr) throw nb::python_error();
  return nb::steal(fresh);
}

inline nb::dict new_dict() {
  return nb::steal<nb::dict>(owned(stops_at_exit([] { return PyDict_New(); })).release());
}

// Return a list of values that Python has types for. It has them when it comes into being: the
// garbage collector shows it to whoever asks.
template <class Value>
nb::list list_of(const std::vector<Value>& values) {
  std::vector<nb::object> objects;
  objects.reserve(values.size());
  for (const Value& value : values) objects.push_back(nb::cast(value));
  const auto count = static_cast<Py_ssize_t>(objects.size());
  nb::object list = owned(stops_at_exit([count] { return PyList_New(count); }));
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyList_SET_ITEM(list.ptr(), i, objects[static_cast<std::size_t>(i)].release().ptr());
  }
  return nb::steal<nb::list>(list.release());
}

// Return an attribute. Throws the error that it raises.
inline nb::object attribute(nb::handle object, const char* name) {
  return owned(stops_at_exit([=] { return PyObject_GetAttrString(object.ptr(), name); }));
}

// Call a Python object. Throws the error that it raises.
template <class... Arguments>
nb::object call(nb::handle callee, Arguments&&... arguments) {
  constexpr std::size_t kCount = sizeof...(Arguments);
  const std::array<nb::object, kCount + 1> owners{nb::cast(std::forward<Arguments>(arguments))...};
  std::array<PyObject*, kCount + 1> all{};
  for (std::size_t i = 0; i < kCount; ++i) all[i] = owners[i].ptr();
  return owned(stops_at_exit(
      [&] { return PyObject_Vectorcall(callee.ptr(), all.data(), kCount, nullptr); }));
}

// Call a method of a Python object. Throws the error that it raises.
template <class... Arguments>
nb::object call_method(nb::handle object, const char* name, Arguments&&... arguments) {
  return call(attribute(object, name), std::forward<Arguments>(arguments)...);
}

// Run the handlers of signals that have come. Returns whether one has raised, with the error set.
inline bool signal_handler_raised() {
  return stops_at_exit([] { return PyErr_CheckSignals(); }) != 0;
}

// Run them. Throws what one raises.
inline void handle_signals() {
  if (signal_handler_raised()) throw nb::python_error();
}

}  // namespace shmcast

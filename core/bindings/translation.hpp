// Room: bindings. How a C++ exception becomes Python's error where nanobind is not on the way.
// Knows: that nanobind translates what a function of its own throws.
// Does not know: which exceptions there are.
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

namespace shmcast {

namespace nb = nanobind;

// A function that throws the exception which is being handled, for nanobind to translate. Lives as
// long as the process.
inline PyObject* thrower = nullptr;

// Call once, when the module is loaded.
inline void set_up_translation() {
  thrower = nb::cpp_function([] { throw; }).release().ptr();
}

// Set Python's error from the exception that is being handled.
inline void set_error() { Py_XDECREF(PyObject_CallNoArgs(thrower)); }

}  // namespace shmcast

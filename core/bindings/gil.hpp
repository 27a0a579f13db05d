// Room: bindings. The GIL: giving it up, and calling Python, in a process that may be exiting.
// Knows: how CPython ends a thread that wants the GIL while the interpreter finalizes.
// Does not know: endpoints.
//
// CPython before 3.14 ends such a thread by pthread_exit(), which unwinds its stack. On the way are
// functions that can't be unwound (destructors, nanobind's own): std::terminate() would end the
// process. Others would drop references without the GIL. So whatever may take the GIL is called
// through stops_at_exit(), where the unwinding meets its end and the thread sleeps until the
// process is gone, which is what CPython 3.14 itself does.
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

#include <array>
#include <cstddef>
#include <utility>

#include "bindings/convert.hpp"
#include "codec/python.hpp"

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

// Run the handlers of signals that have come. Returns whether one has raised, with the error set.
inline bool signal_handler_raised() {
  return stops_at_exit([] { return PyErr_CheckSignals(); }) != 0;
}

// Run them. Throws what one raises.
inline void handle_signals() {
  if (signal_handler_raised()) throw nb::python_error();
}

}  // namespace shmcast

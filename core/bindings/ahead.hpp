// Room: bindings. What a call that waits will touch next, fetched into this core's caches ahead.
// Knows: where CPython keeps frames, their code and their globals.
// Does not know: what is waited for.
//
// All of it is prefetched, which reads nothing: no race, and no fault where a guess is wrong.
#pragma once

#include <Python.h>

#include <cstddef>

#include "layout.hpp"

namespace shmcast {

// Fetch so many bytes from an address on; null: nothing.
inline void fetch_ahead(const void* from, std::size_t bytes) {
  const auto* const first = static_cast<const std::byte*>(from);
  for (std::size_t at = 0; first != nullptr && at < bytes; at += kLine) {
    __builtin_prefetch(first + at);
  }
}

// Fetch what the functions of Python go on with that have led here. A caller's loop is as cold as
// anything else when a message comes, and nobody can practise it: it is a program's own.
inline void fetch_callers_ahead() {
#if PY_VERSION_HEX >= 0x030B0000 && !defined(Py_GIL_DISABLED)
  constexpr int kDepth = 4;  // recv, what calls it in a broadcaster, the program's loop, and one
  constexpr std::size_t kCode = 256;     // bytes of instructions, from the call on
  constexpr std::size_t kGlobals = 768;  // of a module's dict: its first 40 names or so
  PyFrameObject* frame = PyEval_GetFrame();
  Py_XINCREF(frame);
  for (int depth = 0; frame != nullptr && depth < kDepth; ++depth) {
    PyCodeObject* const code = PyFrame_GetCode(frame);
    const int at = PyFrame_GetLasti(frame);
    fetch_ahead(code, 2 * kLine);
    fetch_ahead(code->co_code_adaptive + (at > 0 ? at : 0), kCode);
    fetch_ahead(code->co_consts, kLine);
    PyObject* const globals = PyFrame_GetGlobals(frame);
    if (PyDict_Check(globals)) {
      fetch_ahead(globals, kLine);
      fetch_ahead(reinterpret_cast<PyDictObject*>(globals)->ma_keys, kGlobals);
    }
    // Behind the head of a frame object and the frame before: where its variables are.
    struct Opened {
      PyObject head;
      void* back;
      void* variables;
    };
    fetch_ahead(reinterpret_cast<const Opened*>(frame)->variables, 4 * kLine);
    Py_DECREF(globals);
    Py_DECREF(code);
    PyFrameObject* const back = PyFrame_GetBack(frame);
    Py_DECREF(frame);
    frame = back;
  }
  Py_XDECREF(frame);
#endif
}

}  // namespace shmcast

// Room: bindings. Keeps the module to the main interpreter.
// Knows: how Python makes a module of its definition.
// Does not know: what is in the module.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cstddef>
#include <iterator>

namespace shmcast {

// The module's types and errors belong to one interpreter: an import by a second one would take
// them from the first.
inline int refuse_subinterpreters(PyObject*) {
  if (PyInterpreterState_Get() == PyInterpreterState_Main()) return 0;
  PyErr_SetString(PyExc_ImportError,
                  "shmcast can't be imported by a subinterpreter; use it in the main interpreter, "
                  "or start a process");
  return -1;
}

// Have a module's slots run after refuse_subinterpreters(). (What makes the definition can't
// refuse: since Python 3.13 it is called in the main interpreter, whoever imports.)
inline PyObject* for_main_interpreter(PyObject* definition) {
  static PyModuleDef_Slot slots[8] = {
      {Py_mod_exec, reinterpret_cast<void*>(refuse_subinterpreters)}};
  PyModuleDef_Slot*& its = reinterpret_cast<PyModuleDef*>(definition)->m_slots;
  if (its == slots) return definition;  // it was imported before
  std::size_t count = 1;                // with the last one, which ends them
  while (its[count - 1].slot != 0) ++count;
  if (count >= std::size(slots)) Py_FatalError("shmcast: nanobind's module has too many slots");
  std::copy_n(its, count, slots + 1);
  its = slots;
  return definition;
}

}  // namespace shmcast

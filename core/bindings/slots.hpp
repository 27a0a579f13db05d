// Room: bindings. What Python calls for each message, in type slots and plain C methods.
// Knows: what their arguments look like.
// Does not know: what the calls do.
//
// nanobind's own way (a look-up of the method by name, arguments in an array, a search for the
// overload) takes a third of the time of publish().
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

#include <utility>

#include "bindings/codec.hpp"
#include "bindings/gil.hpp"
#include "bindings/objects.hpp"
#include "bindings/reader.hpp"
#include "bindings/translation.hpp"
#include "bindings/writer.hpp"

namespace shmcast {

namespace nb = nanobind;

// Run a slot's work. An exception becomes Python's error, and `failed` is returned.
template <class Result, class Work>
Result in_slot(Result failed, Work work) {
  try {
    return work();
  } catch (...) {
    set_error();
    return failed;
  }
}

// Return the C++ object of an instance. Throws TypeError if it has none yet.
template <class Object>
Object& object_of(PyObject* self) {
  if (!nb::inst_ready(self)) throw nb::type_error("__init__() has not been called");
  return *nb::inst_ptr<Object>(self);
}

// writer[timeout] = frames
inline int set_message(PyObject* self, PyObject* timeout, PyObject* frames) {
  return in_slot(-1, [&] {
    if (frames == nullptr) throw nb::type_error("a message can't be deleted");
    object_of<PyRingWriter>(self).send({frames, {}}, timeout);
    return 0;
  });
}

// Return what something is asked for with, in brackets. `usage`: for who gets that wrong.
inline std::pair<PyObject*, bool> timeout_and_copy(PyObject* call, const char* usage) {
  if (!PyTuple_CheckExact(call) || PyTuple_GET_SIZE(call) != 2 ||
      !PyBool_Check(PyTuple_GET_ITEM(call, 1))) {
    throw nb::type_error(usage);
  }
  return {PyTuple_GET_ITEM(call, 0), PyTuple_GET_ITEM(call, 1) == Py_True};
}

// reader[timeout, copy]; reader[copy] is a look
inline PyObject* get_message(PyObject* self, PyObject* call) {
  return in_slot<PyObject*>(nullptr, [&] {
    if (PyBool_Check(call)) {
      return object_of<PyRingReader>(self).consume(kLook, call == Py_True).release().ptr();
    }
    const auto [timeout, copy] = timeout_and_copy(call, "reader[timeout, copy]");
    return object_of<PyRingReader>(self).consume(timeout, copy).release().ptr();
  });
}

// outbox[timeout] = object
inline int set_object(PyObject* self, PyObject* timeout, PyObject* object) {
  return in_slot(-1, [&] {
    if (object == nullptr) throw nb::type_error("an object can't be deleted");
    object_of<ObjectOutbox>(self).send(object, timeout);
    return 0;
  });
}

// inbox[timeout, copy]
inline PyObject* get_object(PyObject* self, PyObject* call) {
  return in_slot<PyObject*>(nullptr, [&] {
    const auto [timeout, copy] = timeout_and_copy(call, "inbox[timeout, copy]");
    return object_of<ObjectInbox>(self).receive(call, timeout, copy).release().ptr();
  });
}

// Show the garbage collector what an outbox or inbox refers to: a codec of the program's may refer
// to whoever has it. (What makes such a cycle is Python's, and can be cleared there.)
template <class Box>
int traverse_box(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  return nb::inst_ready(self) ? nb::inst_ptr<Box>(self)->traverse(visit, arg) : 0;
}

// The coder's methods: each takes an object and returns one. Those that practise are called in the
// places of the others, so they must be of the same kind.
template <nb::object (ObjectCoder::*kMethod)(nb::handle)>
PyObject* coder_method(PyObject* self, PyObject* object) {
  return in_slot<PyObject*>(
      nullptr, [&] { return (object_of<ObjectCoder>(self).*kMethod)(object).release().ptr(); });
}

template <nb::object (ObjectCoder::*kMethod)(const nb::list&)>
PyObject* decoder_method(PyObject* self, PyObject* frames) {
  return in_slot<PyObject*>(nullptr, [&] {
    if (!PyList_Check(frames)) throw nb::type_error("the frames must be a list");
    const auto list = nb::borrow<nb::list>(frames);
    return (object_of<ObjectCoder>(self).*kMethod)(list).release().ptr();
  });
}

inline PyType_Slot writer_slots[] = {{Py_mp_ass_subscript, reinterpret_cast<void*>(&set_message)},
                                     {0, nullptr}};
inline PyType_Slot reader_slots[] = {{Py_mp_subscript, reinterpret_cast<void*>(&get_message)},
                                     {0, nullptr}};
inline PyType_Slot outbox_slots[] = {
    {Py_mp_ass_subscript, reinterpret_cast<void*>(&set_object)},
    {Py_tp_traverse, reinterpret_cast<void*>(&traverse_box<ObjectOutbox>)},
    {0, nullptr}};
inline PyType_Slot inbox_slots[] = {
    {Py_mp_subscript, reinterpret_cast<void*>(&get_object)},
    {Py_tp_traverse, reinterpret_cast<void*>(&traverse_box<ObjectInbox>)},
    {0, nullptr}};
inline PyMethodDef coder_methods[] = {
    {"encode", &coder_method<&ObjectCoder::encode>, METH_O, nullptr},
    {"decode", &decoder_method<&ObjectCoder::decode>, METH_O, nullptr},
    {"practise_encode", &coder_method<&ObjectCoder::practise_encode>, METH_O, nullptr},
    {"practise_decode", &decoder_method<&ObjectCoder::practise_decode>, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr}};
inline PyType_Slot coder_slots[] = {{Py_tp_methods, coder_methods}, {0, nullptr}};

}  // namespace shmcast

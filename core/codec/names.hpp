// Room: codec. Classes and functions by name.
// Knows: modules, and how a name is written.
// Does not know: messages.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "codec/python.hpp"

namespace shmcast::codec {

// The name that a class or function is found by: a module's, and a path from there.
struct Name {
  Ref module;
  std::vector<Ref> path;

  // Take both from text, interned. Returns false with an error set.
  bool set(PyObject* module_name, PyObject* qualname) {
    module = Ref::to(module_name);
    path.clear();
    const Ref dot(PyUnicode_InternFromString("."));
    const Ref parts(dot ? PyUnicode_Split(qualname, dot.get(), -1) : nullptr);
    if (!parts) return false;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(parts.get()); ++i) {
      PyObject* part = Py_NewRef(PyList_GET_ITEM(parts.get(), i));
      PyUnicode_InternInPlace(&part);
      path.emplace_back(part);
    }
    return true;
  }

  // Append a name and a zero. Returns false if the name has a zero, or half of a surrogate pair.
  static bool append(std::string& blob, PyObject* name) {
    Py_ssize_t size = 0;
    const char* const text = PyUnicode_AsUTF8AndSize(name, &size);
    if (text == nullptr) PyErr_Clear();
    if (text == nullptr || std::memchr(text, 0, static_cast<std::size_t>(size)) != nullptr) {
      return false;
    }
    blob.append(text, static_cast<std::size_t>(size) + 1);
    return true;
  }

  // Return whether the name still leads to the object, without running the code of others.
  bool leads_to(PyObject* object) const {
    PyObject* const found =
        PyDict_GetItemWithError(PyImport_GetModuleDict(), module.get());  // borrowed, as all here
    if (found == nullptr || !PyModule_Check(found)) return false;
    PyObject* place = PyModule_GetDict(found);
    for (std::size_t i = 0; i < path.size(); ++i) {
      PyObject* const next = PyDict_GetItemWithError(place, path[i].get());
      if (i + 1 == path.size()) return next == object;
      if (next == nullptr || !PyType_Check(next)) return false;
      place = reinterpret_cast<PyTypeObject*>(next)->tp_dict;
      if (place == nullptr) return false;
    }
    return false;
  }
};

// What was written by name lately, classes of instances aside.
class NameTable {
 public:
  // Return the module and the name of an object as they are written, each with a zero after it, if
  // they still lead to it; else null.
  const std::string* find(PyObject* object) const {
    const auto found = names_.find(object);
    const bool is_known = found != names_.end() && found->second->name.leads_to(object);
    return is_known ? &found->second->blob : nullptr;
  }
  // Return null, without an error, if the name does not lead to the object.
  const std::string* add(PyObject* object, PyObject* module, PyObject* qualname) {
    auto named = std::make_unique<Named>();
    named->object = Ref::to(object);
    if (!named->name.set(module, qualname) || !named->name.leads_to(object) ||
        !Name::append(named->blob, module) || !Name::append(named->blob, qualname)) {
      PyErr_Clear();
      return nullptr;
    }
    if (names_.size() >= kMost) names_.clear();
    std::unique_ptr<Named>& place = names_[object];
    place = std::move(named);
    return &place->blob;
  }

 private:
  static constexpr std::size_t kMost = 256;
  struct Named {
    Ref object;
    Name name;
    std::string blob;
  };
  std::unordered_map<PyObject*, std::unique_ptr<Named>> names_;
};

}  // namespace shmcast::codec

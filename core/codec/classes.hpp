// Room: codec. Classes as the encoder knows them: how pickle would reduce their instances.
// Knows: what pickle looks up in a class, and which classes leave nothing of it to code of others.
// Does not know: how instances are written.
//
// A class is looked at once, and again when its version says that it or a base has changed. What
// the version does not cover (its name, who is found by it, copyreg) is looked at in each message.
#pragma once

#include <Python.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "codec/names.hpp"
#include "codec/python.hpp"
#include "codec/wire.hpp"

namespace shmcast::codec {

enum class Kind : std::uint8_t {
  reduced,  // by code of others, or in a way of its own
  pickled,  // not without pickle
  plain,    // attributes in a dict, or slots, or both
  global,   // a class or function, written by name
  member,   // of an Enum
  named_tuple,
  array,     // array.array
  structure  // a msgspec Struct: its class is called with the values of its fields
};

class ClassInfo;

// A class and the names of its attributes, in order.
struct Shape {
  std::vector<Ref> keys;      // of the dict
  std::string blob;           // as it is written
  std::uint64_t message = 0;  // the last that had it; the rest is about that one
  std::uint32_t number = 0;
  bool is_open = false;  // an instance is being written
  bool has_last = false;
  std::vector<PyObject*> last;  // the fields of the last instance, as pointers to compare
};

class ClassInfo {
 public:
  explicit ClassInfo(PyTypeObject* type) : type(type) {}

  PyTypeObject* type;  // borrowed: a class in its place has another version
  Kind kind = Kind::reduced;
  bool has_dict = false;
  bool is_frozen = false;  // a dataclass whose state is a list of all its fields: each is needed
  Ref reducer;             // null: its own __reduce_ex__
  std::vector<Ref> slots;  // names
  std::vector<Py_ssize_t> offsets;
  std::vector<std::unique_ptr<Shape>> shapes;
  Shape* recent = nullptr;
  std::string name_blob;  // module and qualified name, each with a zero after it

  // Return whether what was learned still holds, as far as one comparison can tell.
  bool is_current() const {
    const unsigned version = version_of(type);
    return version == version_ && version != 0 &&
           (Py_TYPE(type) == &PyType_Type || version_of(Py_TYPE(type)) == meta_version_);
  }

  // Return whether the rest holds, too: the class's name and copyreg's entry. No code runs.
  bool is_current_in(std::uint64_t message, const Known& known) {
    if (message_ == message) return true;
    PyObject* const self = reinterpret_cast<PyObject*>(type);
    if (kind == Kind::pickled) return true;
    if (PyDict_GetItemWithError(known.dispatch_table, self) != registered_.get()) return false;
    if (is_named() && (qualname() != qualname_.get() || !name_.leads_to(self))) return false;
    message_ = message;
    return true;
  }

  // Find out all about the class, with one of its instances. Returns false with an error set.
  bool learn(PyObject* object, PyObject* own_reducer, const Known& known) {
    PyObject* const self = reinterpret_cast<PyObject*>(type);
    const Ref held = Ref::to(self);
    if (!hashes_by_address()) {  // to look it up in copyreg's table would run code
      kind = Kind::pickled;
    } else {
      registered_ = Ref::to(PyDict_GetItemWithError(known.dispatch_table, self));
      reducer = Ref::to(registered_.get());
      if (!reducer) {
        reducer = Ref(call(own_reducer, self));
        if (!reducer) return false;
        if (reducer.get() == Py_None) reducer = Ref();
      }
      if (!reducer && !learn_kind(object, known)) return false;
      if (is_named() && !learn_name(known)) {
        if (PyErr_Occurred() != nullptr) return false;
        kind = Kind::reduced;
      }
    }
    look_up(type, known.reduce_ex);  // which gives it a version, if it has none
    if (Py_TYPE(type) != &PyType_Type) look_up(Py_TYPE(type), known.reduce_ex);
    version_ = version_of(type);
    meta_version_ = version_of(Py_TYPE(type));
    return true;
  }

  // Return whether an instance's attribute hides what pickle would look up in its class.
  static bool hides_a_method(PyObject* key, const Known& known) {
    return key == known.reduce_ex || key == known.reduce || key == known.getstate ||
           key == known.getnewargs || key == known.getnewargs_ex || key == known.class_;
  }

  // Return the shape of an instance with this dict (null: it has none), new if need be; null: it is
  // none that can be written, or there are too many.
  Shape* shape_of(PyObject* dict, const Known& known) {
    const std::size_t count = dict == nullptr ? 0 : static_cast<std::size_t>(PyDict_GET_SIZE(dict));
    for (const auto& shape : shapes) {
      if (shape->keys.size() == count && has_keys(*shape, dict)) return shape.get();
    }
    return shapes.size() < kMostShapes ? new_shape(dict, count, known) : nullptr;
  }

 private:
  static constexpr std::size_t kMostShapes = 8;

  // Return whether instances are written with the name of their class.
  bool is_named() const {
    return kind == Kind::plain || kind == Kind::member || kind == Kind::named_tuple ||
           kind == Kind::structure;
  }
  PyObject* qualname() const {
    const bool is_heap = PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE) != 0;
    return is_heap ? reinterpret_cast<PyHeapTypeObject*>(type)->ht_qualname : nullptr;
  }
  bool hashes_by_address() const {
    const PyTypeObject* const meta = Py_TYPE(type);
    return meta->tp_hash == PyType_Type.tp_hash &&
           meta->tp_richcompare == PyType_Type.tp_richcompare;
  }
  // Return whether the class's own attributes are looked up as any class's.
  bool has_common_metaclass(const Known& known) const {
    PyTypeObject* const meta = Py_TYPE(type);
    return meta->tp_getattro == PyType_Type.tp_getattro && hashes_by_address() &&
           look_up(meta, known.module) == known.type_module &&
           look_up(meta, known.qualname) == known.type_qualname;
  }

  bool learn_name(const Known& known) {
    qualname_ = Ref::to(qualname());
    const Ref module(attribute(reinterpret_cast<PyObject*>(type), known.module));
    if (!module || !qualname_ || !PyUnicode_CheckExact(module.get())) {
      PyErr_Clear();
      return false;
    }
    if (!name_.set(module.get(), qualname_.get())) return false;
    name_blob.clear();
    return name_.leads_to(reinterpret_cast<PyObject*>(type)) &&
           Name::append(name_blob, module.get()) && Name::append(name_blob, qualname_.get());
  }

  bool learn_kind(PyObject* object, const Known& known) {
    if (PyType_IsSubtype(type, &PyType_Type)) {
      const bool is_common = type->tp_getattro == PyType_Type.tp_getattro &&
                             look_up(type, known.module) == known.type_module &&
                             look_up(type, known.qualname) == known.type_qualname;
      if (is_common) kind = Kind::global;
      return true;
    }
    if (type == &PyFunction_Type) {
      kind = Kind::global;
      return true;
    }
    if (reinterpret_cast<PyObject*>(type) == known.array) {
      kind = Kind::array;
      return true;
    }
    const bool is_heap = PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE) != 0;
    if (!is_heap || type->tp_getattro != PyObject_GenericGetAttr ||
        look_up(type, known.class_) != known.object_class) {
      return true;
    }
    PyObject* const reduce_ex = look_up(type, known.reduce_ex);
    if (reduce_ex == known.enum_reduce_ex && Py_TYPE(type) == known.enum_meta) {
      if (look_up(type, known.value) == nullptr) kind = Kind::member;
      return true;
    }
    if (reduce_ex != known.object_reduce_ex) return true;
    PyObject* const reduce = look_up(type, known.reduce);
    if (std::strcmp(Py_TYPE(type)->tp_name, "msgspec._core.StructMeta") == 0) {
      return Py_TYPE(reduce) != &PyMethodDescr_Type || learn_structure(object, reduce, known);
    }
    if (!has_common_metaclass(known) || reduce != known.object_reduce ||
        look_up(type, known.getnewargs_ex) != nullptr) {
      return true;
    }
    is_frozen = type->tp_dictoffset == 0 &&
                look_up(type, known.getstate) == known.frozen_getstate &&
                look_up(type, known.setstate) == known.frozen_setstate &&
                known.frozen_getstate != nullptr && known.frozen_setstate != nullptr;
    if (!is_frozen && (look_up(type, known.getstate) != known.object_getstate ||
                       look_up(type, known.setstate) != nullptr)) {
      return true;
    }
    PyObject* const getnewargs = look_up(type, known.getnewargs);
    if (getnewargs != nullptr) {
      const bool is_standard = PyTuple_Check(object) && PyFunction_Check(getnewargs) &&
                               PyFunction_GET_CODE(getnewargs) == known.newargs_code &&
                               type->tp_dictoffset == 0 && !is_frozen &&
                               type->tp_basicsize == PyTuple_Type.tp_basicsize;
      if (is_standard) kind = Kind::named_tuple;
      return true;
    }
    if (PyList_Check(object) || PyDict_Check(object) || type->tp_itemsize != 0) return true;
    return learn_plain(object, known);
  }

  // Its constructor is given the values of its fields in order, unless they are keywords.
  bool learn_structure(PyObject* object, PyObject* reduce, const Known& known) {
    const Ref reduction(call(reduce, object));
    if (!reduction) {  // a field is not set
      PyErr_Clear();
      return true;
    }
    const Ref fields(attribute(reinterpret_cast<PyObject*>(type), known.struct_fields));
    if (!fields) return false;
    const auto part = [&](Py_ssize_t i) { return PyTuple_GET_ITEM(reduction.get(), i); };
    const bool is_call = PyTuple_CheckExact(reduction.get()) &&
                         PyTuple_GET_SIZE(reduction.get()) == 2 &&
                         part(0) == reinterpret_cast<PyObject*>(type) &&
                         PyTuple_CheckExact(part(1)) && PyTuple_CheckExact(fields.get()) &&
                         PyTuple_GET_SIZE(part(1)) == PyTuple_GET_SIZE(fields.get());
    if (!is_call || type->tp_dictoffset != 0) return true;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(fields.get()); ++i) {
      if (!add_slot(PyTuple_GET_ITEM(fields.get(), i))) return true;
    }
    kind = Kind::structure;
    return true;
  }

  bool learn_plain(PyObject* object, const Known& known) {
    has_dict = type->tp_dictoffset != 0;
    if (has_dict && !has_plain_dict(object, known)) return PyErr_Occurred() == nullptr;
    // What pickle would do, once: whether it can be pickled at all is the class's matter.
    const Ref reduction(call(known.object_reduce_ex, object, known.protocol));
    if (!reduction) {
      if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) return false;
      PyErr_Clear();
      return true;
    }
    Ref names(call(known.slot_names, reinterpret_cast<PyObject*>(type)));
    if (!names) return false;
    if (is_frozen) {  // in the order of its state
      const Ref fields(attribute(reinterpret_cast<PyObject*>(type), known.dataclass_fields));
      if (!fields || !PyDict_CheckExact(fields.get()) ||
          PyDict_GET_SIZE(fields.get()) != PyList_GET_SIZE(names.get())) {
        PyErr_Clear();
        return true;
      }
      names = Ref(PyDict_Keys(fields.get()));
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names.get()); ++i) {
      if (!add_slot(PyList_GET_ITEM(names.get(), i))) return true;
    }
    kind = Kind::plain;
    return true;
  }

  static bool has_plain_dict(PyObject* object, const Known& known) {
    const Ref dict(PyObject_GenericGetDict(object, nullptr));
    if (!dict || !PyDict_CheckExact(dict.get())) return false;
    Py_ssize_t at = 0;
    PyObject* key = nullptr;
    while (PyDict_Next(dict.get(), &at, &key, nullptr) != 0) {
      if (hides_a_method(key, known)) return false;
    }
    return true;
  }

  bool add_slot(PyObject* name) {
    PyObject* const found = PyUnicode_CheckExact(name) ? look_up(type, name) : nullptr;
    if (found == nullptr || Py_TYPE(found) != &PyMemberDescr_Type) return false;
    const PyMemberDef* const member = reinterpret_cast<PyMemberDescrObject*>(found)->d_member;
    if (member->type != T_OBJECT_EX) return false;
    slots.push_back(Ref::to(name));
    offsets.push_back(member->offset);
    return true;
  }

  static bool has_keys(const Shape& shape, PyObject* dict) {
    Py_ssize_t at = 0;
    std::size_t i = 0;
    PyObject* key = nullptr;
    while (dict != nullptr && PyDict_Next(dict, &at, &key, nullptr) != 0) {
      if (shape.keys[i++].get() != key) return false;
    }
    return true;
  }

  Shape* new_shape(PyObject* dict, std::size_t count, const Known& known) {
    auto shape = std::make_unique<Shape>();
    std::string names;
    Py_ssize_t at = 0;
    PyObject* key = nullptr;
    while (dict != nullptr && PyDict_Next(dict, &at, &key, nullptr) != 0) {
      if (!PyUnicode_CheckExact(key) || hides_a_method(key, known) || !Name::append(names, key)) {
        return nullptr;
      }
      shape->keys.push_back(Ref::to(key));
    }
    for (const Ref& slot : slots) {
      if (!Name::append(names, slot.get())) return nullptr;
    }
    if (count > UINT16_MAX || slots.size() >= kListState) return nullptr;
    const std::uint16_t counts[] = {
        static_cast<std::uint16_t>(count),
        static_cast<std::uint16_t>(slots.size() | (is_frozen ? kListState : 0U))};
    shape->blob.assign(reinterpret_cast<const char*>(counts), sizeof counts);
    shape->blob += name_blob + names;
    shapes.push_back(std::move(shape));
    return shapes.back().get();
  }

  unsigned version_ = 0;
  unsigned meta_version_ = 0;
  std::uint64_t message_ = 0;  // the last in which is_current_in() was true
  Ref registered_;             // copyreg's entry
  Ref qualname_;
  Name name_;
};

// The classes that were met lately.
class ClassTable {
 public:
  // Return what is known of a class; null: nothing that still holds.
  ClassInfo* find(PyTypeObject* type) {
    Recent& recent = recent_[reinterpret_cast<std::uintptr_t>(type) / 64 % recent_.size()];
    if (recent.type != type) [[unlikely]] {
      const auto found = classes_.find(type);
      if (found == classes_.end()) return nullptr;
      recent = {type, found->second.get()};
    }
    return recent.info->is_current() ? recent.info : nullptr;
  }

  // Learn a class, with one of its instances. Returns null with an error set.
  ClassInfo* learn(PyTypeObject* type, PyObject* object, PyObject* own_reducer,
                   const Known& known) {
    auto info = std::make_unique<ClassInfo>(type);
    if (!info->learn(object, own_reducer, known)) return nullptr;
    std::unique_ptr<ClassInfo>& place = classes_[type];
    if (place != nullptr) retired_.push_back(std::move(place));
    place = std::move(info);
    recent_ = {};
    return place.get();
  }

  // Between messages: drop what nobody uses, and all if it has become too much.
  void tidy() {
    retired_.clear();
    if (classes_.size() <= kMost) return;
    recent_ = {};
    classes_.clear();
  }

 private:
  static constexpr std::size_t kMost = 256;
  struct Recent {
    PyTypeObject* type = nullptr;
    ClassInfo* info = nullptr;
  };
  std::array<Recent, 16> recent_;
  std::unordered_map<PyTypeObject*, std::unique_ptr<ClassInfo>> classes_;
  std::vector<std::unique_ptr<ClassInfo>> retired_;  // instances of them may be open
};

}  // namespace shmcast::codec

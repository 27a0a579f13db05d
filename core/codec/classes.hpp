// Room: codec. Classes, functions and their names: what each end knows of them.
// Knows: what Python code has found out about them (_codecs/object_classes.py), and until when.
// Does not know: how they are written.
//
// A class is looked at once, and again when its version says that it or a base has changed. What
// the version does not cover (who has its name, copyreg) is looked at in each message.
#pragma once

#include <Python.h>
#include <structmember.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "codec/caches.hpp"
#include "codec/python.hpp"
#include "codec/wire.hpp"

namespace shmcast::codec {

// The name of a class or function.
struct Name {
  Ref module;
  Ref qualname;
  std::vector<Ref> path;  // its parts
  std::string text;       // module and name as they are written, each with a zero after it

  // Returns false, with an error or without one, if it can't be written.
  bool set(PyObject* module_name, PyObject* object_name) {
    module = Ref::to(module_name);
    qualname = Ref::to(object_name);
    const Ref dot(PyUnicode_InternFromString("."));
    const Ref parts(dot ? PyUnicode_Split(object_name, dot.get(), -1) : nullptr);
    for (Py_ssize_t i = 0; parts && i < PyList_GET_SIZE(parts.get()); ++i) {
      PyObject* part = Py_NewRef(PyList_GET_ITEM(parts.get(), i));
      PyUnicode_InternInPlace(&part);
      path.emplace_back(part);
    }
    return parts && append_to(text, module_name) && append_to(text, object_name);
  }

  // Append a name and a zero. Returns false if it has a zero, or half of a surrogate pair.
  static bool append_to(std::string& text, PyObject* name) {
    Py_ssize_t size = 0;
    const char* const utf8 = PyUnicode_AsUTF8AndSize(name, &size);
    if (utf8 == nullptr) PyErr_Clear();
    if (utf8 == nullptr || std::strlen(utf8) != static_cast<std::size_t>(size)) return false;
    text.append(utf8, static_cast<std::size_t>(size) + 1);
    return true;
  }

  // Return whether the name leads to the object, without running the code of others.
  bool leads_to(PyObject* object) const {
    PyObject* const found = PyDict_GetItemWithError(PyImport_GetModuleDict(), module.get());
    if (found == nullptr || !PyModule_Check(found)) return false;
    PyObject* place = PyModule_GetDict(found);
    PyObject* next = nullptr;
    for (const Ref& part : path) {
      if (next != nullptr) place = reinterpret_cast<PyTypeObject*>(next)->tp_dict;
      next = place == nullptr ? nullptr : PyDict_GetItemWithError(place, part.get());
      if (next == nullptr || (&part != &path.back() && !PyType_Check(next))) return false;
    }
    return next == object;
  }
};

// Find where a class's slots lie in an instance. Returns false if one is no slot.
inline bool find_slots(PyTypeObject* type, const std::vector<Ref>& names, std::size_t first,
                       std::vector<Py_ssize_t>& offsets) {
  for (std::size_t i = first; i < names.size(); ++i) {
    PyObject* const found = _PyType_Lookup(type, names[i].get());
    if (found == nullptr || Py_TYPE(found) != &PyMemberDescr_Type) return false;
    const PyMemberDef* const member = reinterpret_cast<PyMemberDescrObject*>(found)->d_member;
    if (member->type != T_OBJECT_EX) return false;
    offsets.push_back(member->offset);
  }
  return true;
}

// How instances are written; the same numbers are in object_classes.py.
enum class Kind : std::uint8_t {
  pickled,  // not here
  reduced,  // by code of others
  plain,    // attributes in a dict, or slots, or both
  named,    // classes and functions: by name
  called,   // their class is called with the values of slots,
  member,   // or of an Enum, with one value
  named_tuple,
  array,
};

// A class and the names of its instances' attributes, as they are written.
struct Shape {
  std::vector<Ref> keys;  // of the attributes
  std::string text;
  // In the message `message`:
  std::uint64_t message = 0;
  std::uint32_t number = 0;
  bool is_open = false;  // an instance is being written
  bool has_last = false;
  std::vector<PyObject*> last{};  // the fields of the last instance, to compare
};

// A class as the encoder knows it.
class SentClass {
 public:
  explicit SentClass(PyTypeObject* type) : type(type) {}

  PyTypeObject* const type;  // borrowed: another class in its place has another version
  Kind kind = Kind::pickled;
  bool needs_all_slots = false;
  bool has_dict = false;
  Ref reducer;  // null: __reduce_ex__
  std::vector<Ref> slots;
  std::vector<Py_ssize_t> offsets;
  std::vector<std::unique_ptr<Shape>> shapes;
  Shape* recent = nullptr;
  Name name;

  // Find out about the class, with one of its instances. Returns false with an error set.
  bool learn(PyObject* object, const Ref& own_reducer, const Known& known) {
    const Ref self = Ref::to(reinterpret_cast<PyObject*>(type));
    const bool is_hashed_by_address = Py_TYPE(type)->tp_hash == PyType_Type.tp_hash &&
                                      Py_TYPE(type)->tp_richcompare == PyType_Type.tp_richcompare;
    if (is_hashed_by_address) {  // (else to look it up in copyreg's table would run code)
      registered_ = Ref::to(PyDict_GetItemWithError(known.dispatch_table.get(), self.get()));
      const bool is_generic = type->tp_getattro == PyObject_GenericGetAttr;
      const Ref found(call(known.describe, self.get(), object, is_generic ? Py_True : Py_False,
                           own_reducer.get()));
      PyObject* reduce = nullptr;
      PyObject* names = nullptr;
      PyObject* module = nullptr;
      PyObject* qualname = nullptr;
      int number = 0;
      int all = 0;
      if (!found || !PyArg_ParseTuple(found.get(), "iOO!pOO", &number, &reduce, &PyTuple_Type,
                                      &names, &all, &module, &qualname)) {
        return false;
      }
      kind = static_cast<Kind>(number);
      needs_all_slots = all != 0;
      has_dict = type->tp_dictoffset != 0;
      if (reduce != Py_None) reducer = Ref::to(reduce);
      for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(names); ++i) {
        slots.push_back(Ref::to(PyTuple_GET_ITEM(names, i)));
      }
      const bool is_known =
          module == Py_None || (name.set(module, qualname) && name.leads_to(self.get()) &&
                                find_slots(type, slots, 0, offsets));
      if (!is_known) kind = Kind::reduced;
    }
    _PyType_Lookup(type, known.class_.get());  // which gives it a version
    _PyType_Lookup(Py_TYPE(type), known.class_.get());
    version_ = version_of(type);
    meta_version_ = version_of(Py_TYPE(type));
    return true;
  }

  // Return whether that still holds in this message.
  bool is_current(std::uint64_t message, const Known& known) {
    if (version_of(type) != version_ || version_ == 0) return false;
    if (message_ == message) return true;
    PyObject* const self = reinterpret_cast<PyObject*>(type);
    if (version_of(Py_TYPE(type)) != meta_version_) return false;
    if (kind != Kind::pickled &&
        PyDict_GetItemWithError(known.dispatch_table.get(), self) != registered_.get()) {
      return false;
    }
    if (!name.path.empty() && kind != Kind::reduced &&
        (reinterpret_cast<PyHeapTypeObject*>(type)->ht_qualname != name.qualname.get() ||
         !name.leads_to(self))) {
      return false;
    }
    message_ = message;
    return true;
  }

  // Return the shape of an instance with this dict (null: it has none), new if need be; null: it
  // can't be written so, or there are too many.
  Shape* shape_of(PyObject* dict, const Known& known) {
    for (const auto& shape : shapes) {
      if (has_keys(*shape, dict)) return shape.get();
    }
    auto shape = std::make_unique<Shape>();
    std::string names;
    Py_ssize_t at = 0;
    PyObject* key = nullptr;
    while (dict != nullptr && PyDict_Next(dict, &at, &key, nullptr) != 0) {
      if (!PyUnicode_CheckExact(key) || PySet_Contains(known.hiding.get(), key) != 0 ||
          !Name::append_to(names, key)) {
        return nullptr;
      }
      shape->keys.push_back(Ref::to(key));
    }
    for (const Ref& slot : slots) Name::append_to(names, slot.get());
    const std::size_t counts[] = {shape->keys.size(), slots.size()};
    if (shapes.size() == 8 || counts[0] >= kListState || counts[1] >= kListState) return nullptr;
    for (const std::size_t count : {counts[0], counts[1] | (needs_all_slots ? kListState : 0U)}) {
      shape->text.push_back(static_cast<char>(count & 0xFF));
      shape->text.push_back(static_cast<char>(count >> 8));
    }
    shape->text += name.text + names;
    shapes.push_back(std::move(shape));
    return shapes.back().get();
  }

 private:
  static bool has_keys(const Shape& shape, PyObject* dict) {
    const std::size_t count = dict == nullptr ? 0 : static_cast<std::size_t>(PyDict_GET_SIZE(dict));
    Py_ssize_t at = 0;
    std::size_t i = 0;
    PyObject* key = nullptr;
    if (shape.keys.size() != count) return false;
    while (i < count && PyDict_Next(dict, &at, &key, nullptr) != 0 && shape.keys[i].get() == key) {
      ++i;
    }
    return i == count;
  }

  unsigned version_ = 0;
  unsigned meta_version_ = 0;
  std::uint64_t message_ = 0;  // the last in which it was current
  Ref registered_;             // copyreg's entry
};

// A class or function that a message names.
struct ReceivedName {
  std::string text;
  Name name;
  Ref object;

  // Find out what a message names. Returns false with an error set.
  bool find(const Ref& find, const char* module, const char* qualname) {
    const Ref module_name(PyUnicode_FromString(module));
    const Ref object_name(module_name ? PyUnicode_FromString(qualname) : nullptr);
    if (!object_name || !name.set(module_name.get(), object_name.get())) return Input::malformed();
    object = Ref(call(find, module_name.get(), object_name.get()));
    return static_cast<bool>(object);
  }
  bool learn(const Ref& find, const Known&) {
    const std::size_t end = text.find('\0');
    const bool is_valid = end != std::string::npos && text.find('\0', end + 1) == text.size() - 1;
    return is_valid ? this->find(find, text.c_str(), text.c_str() + end + 1) : Input::malformed();
  }
  bool is_current() const { return name.leads_to(object.get()); }

  // Return a class, or null.
  PyTypeObject* type() const {
    return PyType_Check(object.get()) ? reinterpret_cast<PyTypeObject*>(object.get()) : nullptr;
  }
  // Return whether the class's __new__ makes a tuple of so many items, and does nothing else.
  bool makes_tuples_of(std::size_t count, const Known& known) {
    if (version_ == 0 || version_of(type()) != version_) {
      const Ref fields(call(known.tuple_fields, object.get()));
      fields_ = fields ? PyLong_AsSsize_t(fields.get()) : -1;
      PyErr_Clear();
      version_ = version_of(type());
    }
    return fields_ == static_cast<Py_ssize_t>(count);
  }

 private:
  unsigned version_ = 0;
  Py_ssize_t fields_ = -1;
};

// A shape that a message describes.
struct ReceivedShape {
  std::string text;
  ReceivedName cls;
  bool is_plain = false;  // else pickle's way is taken: __new__, then the state
  bool is_list_state = false;
  std::size_t attributes = 0;
  std::vector<Ref> keys;  // of the attributes, then of the slots
  std::vector<Py_ssize_t> offsets;
  // In this message: the fields of the last instance, and a dict of its attributes.
  std::vector<Ref> last;
  Ref last_dict;

  // Read the text. Returns false with an error set.
  bool learn(const Ref& find, const Known& known) {
    std::uint16_t counts[2];
    std::vector<const char*> names;
    if (text.size() < sizeof counts || text.back() != '\0') return Input::malformed();
    std::memcpy(counts, text.data(), sizeof counts);
    for (std::size_t at = sizeof counts; at < text.size(); at += std::strlen(names.back()) + 1) {
      names.push_back(text.data() + at);
    }
    attributes = counts[0];
    is_list_state = (counts[1] & kListState) != 0;
    const std::size_t count = attributes + (counts[1] & (kListState - 1));
    if (names.size() != 2 + count) return Input::malformed();
    const Ref slots(PyTuple_New(static_cast<Py_ssize_t>(count - attributes)));
    for (std::size_t i = 0; i < count; ++i) {
      keys.emplace_back(PyUnicode_InternFromString(names[2 + i]));
      if (!slots || !keys.back()) return false;
      if (i < attributes) continue;
      PyTuple_SET_ITEM(slots.get(), static_cast<Py_ssize_t>(i - attributes),
                       Py_NewRef(keys.back().get()));
    }
    if (!cls.find(find, names[0], names[1])) return false;
    PyTypeObject* const type = cls.type();
    if (type == nullptr) return Input::malformed();
    const Ref plain(call(known.has_pickles_state, cls.object.get(), slots.get(),
                         is_list_state ? Py_True : Py_False));
    if (!plain) return false;
    PyObject* const dict = _PyType_Lookup(type, known.dict.get());
    if (dict != nullptr && Py_TYPE(dict) == &PyGetSetDescr_Type) {
      setter_ = reinterpret_cast<PyGetSetDescrObject*>(dict)->d_getset;
    }
    is_plain = plain.get() == Py_True && find_slots(type, keys, attributes, offsets) &&
               type->tp_new == PyBaseObject_Type.tp_new &&
               type->tp_getattro == PyObject_GenericGetAttr &&
               PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE) != 0 && type->tp_itemsize == 0 &&
               PyType_HasFeature(type, Py_TPFLAGS_IS_ABSTRACT) == 0 &&
               (attributes == 0 || (setter_ != nullptr && setter_->set != nullptr)) &&
               (offsets.empty() || is_list_state || type->tp_setattro == PyObject_GenericSetAttr);
    version_ = version_of(type);
    Ref blank(PyDict_New());
    for (std::size_t i = 0; i < attributes && blank; ++i) {
      if (PyDict_SetItem(blank.get(), keys[i].get(), Py_None) != 0) return false;
    }
    blank_ = Ref(blank ? PyDict_Copy(blank.get()) : nullptr);  // (which has no gaps)
    return static_cast<bool>(blank_);
  }
  bool is_current() const {
    return version_ != 0 && version_of(cls.type()) == version_ && cls.is_current();
  }

  void forget_last() {
    last.clear();
    last_dict = Ref();
  }

  // Return a new instance without attributes. Null with an error set.
  PyObject* new_instance(const Known& known) const {
    PyTypeObject* const type = cls.type();
    if (is_plain && (attributes > 0 || type->tp_dictoffset == 0)) return type->tp_alloc(type, 0);
    if (type->tp_new == nullptr) return Input::malformed(), nullptr;
    return stops_at_exit([&] { return type->tp_new(type, known.nothing.get(), nullptr); });
  }
  // Return a new dict of these attributes: of one without gaps, where many are None.
  PyObject* dict_of(PyObject* const* values) const {
    Ref dict(PyDict_Copy(blank_.get()));
    for (std::size_t i = 0; i < attributes && dict; ++i) {
      if (values[i] == Py_None) continue;
      if (PyDict_SetItem(dict.get(), keys[i].get(), values[i]) != 0) dict = Ref();
    }
    return dict.release();
  }
  bool set_dict(PyObject* object, PyObject* dict) const {
    return setter_->set(object, dict, setter_->closure) == 0;
  }

 private:
  unsigned version_ = 0;
  const PyGetSetDef* setter_ = nullptr;  // of the class's own __dict__
  Ref blank_;
};

}  // namespace shmcast::codec

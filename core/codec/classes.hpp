// Room: codec. Classes, functions and their names: what each end knows of them.
// Knows: what Python code has found out about them (_codecs/object_classes.py), and until when.
// Does not know: how they are written.
//
// A class is looked at once, and again when its version says that it or a base has changed. What
// the version does not cover (who has its name, copyreg) is looked at in each message.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "codec/caches.hpp"
#include "codec/wire.hpp"
#include "python/python.hpp"

namespace shmcast::codec {

// Objects of Python's, and functions of _codecs/object_classes.py: what that calls CORE.
struct Known {
  // Returns false with an error set.
  bool take(PyObject* core) {
    owner_ = Ref::to(core);
    return PyArg_ParseTuple(core, "OOOOOOOOOOOOOOOOOOOOOOOOOOO!O!", &reduce_ex, &class_, &dict,
                            &setstate, &value, &raw, &cast, &byte, &row_major, &toreadonly, &extend,
                            &append, &name, &protocol, &zero, &nothing, &describe, &describe_shape,
                            &describe_name, &name_of, &hiding, &array, &newobj, &newobj_ex,
                            &dispatch_table, &unpickling_error, &PyList_Type, &arrays, &PyList_Type,
                            &tensors) != 0;
  }

  PyObject *reduce_ex, *class_, *dict, *setstate, *value, *raw, *cast, *byte, *row_major,
      *toreadonly, *extend, *append, *name;  // names
  PyObject *protocol, *zero, *nothing;       // 5, 0 and ()
  PyObject *describe, *describe_shape, *describe_name, *name_of;
  PyObject *hiding, *array, *newobj, *newobj_ex, *dispatch_table, *unpickling_error, *arrays,
      *tensors;

  // Of numpy's arrays: what rebuilds them, their class, most dtypes by their texts, the class of an
  // arena's memory, and the shape of an empty array. Null as long as numpy is not in use.
  PyObject* of_arrays(Py_ssize_t i) const { return of(arrays, i); }
  // Of torch's tensors: what rebuilds them, what makes one of DLPack's, most dtypes by their texts,
  // and the shape of an empty tensor. Null as long as torch is not in use.
  PyObject* of_tensors(Py_ssize_t i) const { return of(tensors, i); }

 private:
  static PyObject* of(PyObject* list, Py_ssize_t i) {
    return i < PyList_GET_SIZE(list) ? PyList_GET_ITEM(list, i) : nullptr;
  }

  Ref owner_;
};

// The name of a class or function.
struct Name {
  Ref module, qualname, path;  // the path: a tuple of the name's parts
  std::string text;            // as it is written

  // Take it from what Python code says. Returns false, with an error or without one, if it can't
  // be written.
  bool set(PyObject* name) {
    PyObject *module_name, *object_name, *parts, *written;
    if (name == Py_None || PyArg_ParseTuple(name, "UUO!S", &module_name, &object_name,
                                            &PyTuple_Type, &parts, &written) == 0) {
      return false;
    }
    module = Ref::to(module_name);
    qualname = Ref::to(object_name);
    path = Ref::to(parts);
    text.assign(PyBytes_AS_STRING(written), static_cast<std::size_t>(PyBytes_GET_SIZE(written)));
    return true;
  }

  // Return whether the name leads to the object, without running the code of others.
  bool leads_to(PyObject* object) const {
    PyObject* next = PyDict_GetItemWithError(PyImport_GetModuleDict(), module.get());
    for (Py_ssize_t i = 0; next != nullptr && i < PyTuple_GET_SIZE(path.get()); ++i) {
      if (i == 0 ? !PyModule_Check(next) : !PyType_Check(next)) return false;
      PyObject* const place =
          i == 0 ? PyModule_GetDict(next) : reinterpret_cast<PyTypeObject*>(next)->tp_dict;
      if (place == nullptr) return false;
      next = PyDict_GetItemWithError(place, PyTuple_GET_ITEM(path.get(), i));
    }
    return next == object && object != nullptr;
  }
  // Return whether that is what the object calls itself, too.
  bool is_of(PyObject* object) const {
    PyObject* own = qualname.get();
    if (PyType_Check(object) &&
        PyType_HasFeature(reinterpret_cast<PyTypeObject*>(object), Py_TPFLAGS_HEAPTYPE) != 0) {
      own = reinterpret_cast<PyHeapTypeObject*>(object)->ht_qualname;
    } else if (PyFunction_Check(object)) {
      const auto* const function = reinterpret_cast<PyFunctionObject*>(object);
      own = function->func_module == module.get() ? function->func_qualname : nullptr;
    }
    return own == qualname.get() && leads_to(object);
  }
};

// How instances are written; the same numbers are in object_classes.py.
enum class Kind : std::uint8_t {
  pickled,  // not here
  reduced,  // by code of others
  plain,    // attributes in a dict, or slots, or both
  named,    // classes and functions: by name
  called,   // a function is called that their reduction names
  member,   // of an Enum: the class is called with the value
  named_tuple,
  array,   // of numpy: as what its reduction says, if it is a plain one
  tensor,  // of torch, likewise
};

// A class and the names of its instances' attributes, as they are written.
struct Shape {
  Shape(PyObject* const* names, std::size_t count) : keys(names, count) {}

  Refs keys;  // of the attributes
  std::string text;
  // In the message `message`:
  std::uint64_t message = 0;
  std::uint32_t number = 0;
  bool is_open = false;           // an instance is being written
  std::vector<PyObject*> last{};  // the fields of the last instance, to compare

  bool has_keys(PyObject* const* others, std::size_t count) {
    return keys.list().size() == count && std::equal(others, others + count, keys.list().begin());
  }
};

// A class as the encoder knows it.
class SentClass {
 public:
  explicit SentClass(PyTypeObject* type) : type(type) {}

  PyTypeObject* const type;  // borrowed: another class in its place has another version
  Kind kind = Kind::pickled;
  bool needs_all_slots = false;
  bool has_dict = false;
  int changes = 0;  // so often it had to be looked at again
  Ref reducer;      // null: __reduce_ex__
  std::vector<Py_ssize_t> offsets;
  std::vector<std::unique_ptr<Shape>> shapes;
  Name name;

  // Find out about the class, with one of its instances. Returns false with an error set.
  bool learn(PyObject* object, const Ref& own_reducer, const Known& known) {
    const Ref self = Ref::to(reinterpret_cast<PyObject*>(type));
    const PyTypeObject* const meta = Py_TYPE(type);
    if (meta->tp_hash == PyType_Type.tp_hash &&
        meta->tp_richcompare == PyType_Type.tp_richcompare) {
      // (Else to look it up in copyreg's table would run code.)
      registered_ = Ref::to(PyDict_GetItemWithError(known.dispatch_table, self.get()));
      const bool is_generic = type->tp_getattro == PyObject_GenericGetAttr;
      const Ref found(call(known.describe, self.get(), object, is_generic ? Py_True : Py_False,
                           own_reducer.get()));
      PyObject *reduce, *names, *class_name;
      int number = 0;
      int all = 0;
      if (!found || PyArg_ParseTuple(found.get(), "iOO!pO", &number, &reduce, &PyTuple_Type, &names,
                                     &all, &class_name) == 0) {
        return false;
      }
      kind = static_cast<Kind>(number);
      needs_all_slots = all != 0;
      has_dict = type->tp_dictoffset != 0;
      slots_ = Ref::to(names);
      if (reduce != Py_None) reducer = Ref::to(reduce);
      const bool is_known =
          class_name == Py_None || (name.set(class_name) && name.leads_to(self.get()) &&
                                    find_slots(type, names, 0, offsets));
      if (!is_known) kind = Kind::reduced;
    }
    _PyType_Lookup(type, known.class_);  // which gives it a version
    _PyType_Lookup(Py_TYPE(type), known.class_);
    version_ = version_of(type);
    meta_version_ = version_of(Py_TYPE(type));
    return true;
  }

  // Of arrays and tensors: what Python code says of them, see PLAIN in _codecs/arrays.py and
  // _codecs/tensors.py.
  PyObject* const* facts() const { return PySequence_Fast_ITEMS(slots_.get()); }
  std::size_t fact_count() const {
    return static_cast<std::size_t>(PyTuple_GET_SIZE(slots_.get()));
  }

  // Whether it changes all the time, as one does that counts its instances: pickle is faster then.
  bool is_restless() const { return changes > 16; }

  // Return whether that still holds in this message.
  bool is_current(std::uint64_t message, const Known& known) {
    if (is_restless()) return true;
    if (version_of(type) != version_ || version_ == 0) return false;
    if (message_ == message || kind == Kind::pickled) return true;
    PyObject* const self = reinterpret_cast<PyObject*>(type);
    const bool is_written = name.path && kind != Kind::reduced;
    if (version_of(Py_TYPE(type)) != meta_version_ ||
        PyDict_GetItemWithError(known.dispatch_table, self) != registered_.get() ||
        (is_written && (!name.is_of(self) || is_reduced(Py_TYPE(type), known)))) {
      return false;
    }
    message_ = message;
    return true;
  }

  // Return the shape of an instance with these attributes, new if need be; null: it can't be
  // written so, or there are too many.
  Shape* shape_of(PyObject* const* keys, std::size_t count, const Known& known) {
    for (const auto& shape : shapes) {
      if (shape->has_keys(keys, count)) return shape.get();
    }
    if (shapes.size() == 8 || count >= kListState || offsets.size() >= kListState) return nullptr;
    auto shape = std::make_unique<Shape>(keys, count);
    std::string names;
    for (PyObject* const key : shape->keys.list()) {
      const bool is_plain = PyUnicode_CheckExact(key) && !PySet_Contains(known.hiding, key);
      if (!is_plain || !append(names, key)) return nullptr;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(slots_.get()); ++i) {
      if (!append(names, PyTuple_GET_ITEM(slots_.get(), i))) return nullptr;
    }
    const std::size_t slots = offsets.size() | (needs_all_slots ? kListState : 0U);
    for (const std::size_t number : {count, slots}) {
      shape->text.push_back(static_cast<char>(number & 0xFF));
      shape->text.push_back(static_cast<char>(number >> 8));
    }
    shape->text += name.text + names;
    shapes.push_back(std::move(shape));
    return shapes.back().get();
  }

 private:
  // Whether classes of a metaclass are reduced: copyreg has it.
  static bool is_reduced(PyTypeObject* meta, const Known& known) {
    return meta != &PyType_Type &&
           PyDict_Contains(known.dispatch_table, reinterpret_cast<PyObject*>(meta)) != 0;
  }
  // Append a name and a zero. Returns false if it has a zero, or half of a surrogate pair.
  static bool append(std::string& text, PyObject* name) {
    Py_ssize_t size = 0;
    const char* const utf8 = PyUnicode_AsUTF8AndSize(name, &size);
    if (utf8 == nullptr) return PyErr_Clear(), false;
    text.append(utf8, static_cast<std::size_t>(size) + 1);
    return std::strlen(utf8) == static_cast<std::size_t>(size);
  }

  unsigned version_ = 0;
  unsigned meta_version_ = 0;
  std::uint64_t message_ = 0;  // the last in which it was current
  Ref registered_;             // copyreg's entry
  Ref slots_;                  // names
};

// A class or function that a message names.
struct ReceivedName {
  std::string text;
  Name name;
  Ref object;

  // Find out what the text means. Returns false with an error set.
  bool learn(const Ref& find, const Known& known) {
    const Ref found = ask(known.describe_name, find);
    PyObject *named, *its_name;
    return found && PyArg_ParseTuple(found.get(), "OO", &named, &its_name) && set(named, its_name);
  }
  bool is_current() const {
    return name.leads_to(object.get()) &&
           (!is_class() || (version_ != 0 && version_of(type()) == version_));
  }
  bool is_class() const { return PyType_Check(object.get()) != 0; }
  PyTypeObject* type() const { return reinterpret_cast<PyTypeObject*>(object.get()); }

 protected:
  Ref ask(PyObject* describe, const Ref& find) const {
    const Ref bytes(PyBytes_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size())));
    return Ref(bytes ? call(describe, bytes.get(), find.get()) : nullptr);
  }
  bool set(PyObject* named, PyObject* its_name) {
    object = Ref::to(named);
    version_ = is_class() ? version_of(type()) : 0;
    return name.set(its_name) || Input::malformed();
  }

 private:
  unsigned version_ = 0;
};

// A shape that a message describes.
struct ReceivedShape : ReceivedName {
  bool is_plain = false;  // else pickle's way is taken: __new__, then the state
  bool is_list_state = false;
  std::size_t attributes = 0;
  Ref keys;  // a tuple of the attributes' names, then the slots'
  std::vector<Py_ssize_t> offsets;
  // In this message: the fields of the last instance, and a dict of its attributes.
  std::vector<Ref> last;
  Ref last_dict;

  std::size_t count() const { return static_cast<std::size_t>(PyTuple_GET_SIZE(keys.get())); }
  PyObject* key(std::size_t i) const {
    return PyTuple_GET_ITEM(keys.get(), static_cast<Py_ssize_t>(i));
  }

  // Find out what the text means. Returns false with an error set.
  bool learn(const Ref& find, const Known& known) {
    const Ref found = ask(known.describe_shape, find);
    PyObject *its_class, *its_name, *names;
    Py_ssize_t of_dict = 0;
    int list_state = 0;
    int plain = 0;
    if (!found ||
        !PyArg_ParseTuple(found.get(), "O!OO!npp", &PyType_Type, &its_class, &its_name,
                          &PyTuple_Type, &names, &of_dict, &list_state, &plain) ||
        !set(its_class, its_name)) {
      return false;
    }
    keys = Ref::to(names);
    attributes = static_cast<std::size_t>(of_dict);
    is_list_state = list_state != 0;
    PyObject* const dict = _PyType_Lookup(type(), known.dict);
    if (dict != nullptr && Py_TYPE(dict) == &PyGetSetDescr_Type) {
      setter_ = reinterpret_cast<PyGetSetDescrObject*>(dict)->d_getset;
    }
    is_plain = plain != 0 && find_slots(type(), names, attributes, offsets) &&
               type()->tp_new == PyBaseObject_Type.tp_new && type()->tp_itemsize == 0 &&
               type()->tp_getattro == PyObject_GenericGetAttr &&
               PyType_HasFeature(type(), Py_TPFLAGS_HEAPTYPE) != 0 &&
               PyType_HasFeature(type(), Py_TPFLAGS_IS_ABSTRACT) == 0 &&
               (attributes == 0 || (setter_ != nullptr && setter_->set != nullptr)) &&
               (offsets.empty() || is_list_state || type()->tp_setattro == PyObject_GenericSetAttr);
    return true;
  }
  void forget_last() {
    last.clear();
    last_dict = Ref();
  }

  // Return a new instance without attributes. Null with an error set.
  PyObject* new_instance(const Known& known) const {
    if (is_plain && (attributes > 0 || type()->tp_dictoffset == 0)) {
      return type()->tp_alloc(type(), 0);
    }
    if (type()->tp_new == nullptr) return Input::malformed(), nullptr;
    return stops_at_exit([&] { return type()->tp_new(type(), known.nothing, nullptr); });
  }
  // Return a new dict of these attributes. `others`: those that are not as in the last instance;
  // `is_same`: the rest are. Null with an error set.
  PyObject* dict_of(PyObject* const* values, bool is_same, std::uint64_t others) {
    const bool has_last = is_same && last_dict;
    Ref dict = has_last ? std::move(last_dict) : Ref(new_dict(attributes));
    for (std::size_t i = 0; i < attributes && dict; ++i) {
      if (has_last && (others >> i & 1) == 0) continue;
      if (PyDict_SetItem(dict.get(), key(i), values[i]) != 0) dict = Ref();
    }
    if (!is_same || !dict) return dict.release();
    last_dict = std::move(dict);
    return PyDict_Copy(last_dict.get());
  }
  bool set_dict(PyObject* object, PyObject* dict) const {
    return setter_->set(object, dict, setter_->closure) == 0;
  }

 private:
  const PyGetSetDef* setter_ = nullptr;  // of the class's own __dict__
};

}  // namespace shmcast::codec

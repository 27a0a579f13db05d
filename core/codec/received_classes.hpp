// Room: codec. Classes as the decoder knows them: how pickle would rebuild their instances.
// Knows: what pickle looks up in a class, and which classes leave nothing of it to code of others.
// Does not know: how instances are read.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "codec/names.hpp"
#include "codec/python.hpp"
#include "codec/wire.hpp"

namespace shmcast::codec {

// Something that a message names.
class ReceivedGlobal {
 public:
  std::string blob;  // module and name, each with a zero after it
  Ref object;

  // Return what the bytes name. Null with an error set.
  static std::unique_ptr<ReceivedGlobal> of(std::string_view blob, PyObject* find) {
    auto global = std::make_unique<ReceivedGlobal>();
    global->blob = blob;
    const std::size_t end = blob.find('\0');
    const bool is_valid = end != std::string_view::npos && blob.back() == '\0' &&
                          blob.find('\0', end + 1) == blob.size() - 1;
    if (!is_valid) return Input::malformed(), nullptr;
    return global->find_by(find, global->blob.c_str(), global->blob.c_str() + end + 1)
               ? std::move(global)
               : nullptr;
  }

  // Find an object as pickle does, or by a function of the user's. Returns false with an error set.
  bool find_by(PyObject* find, const char* module, const char* qualname) {
    const Ref module_name(PyUnicode_FromString(module));
    const Ref name(module_name ? PyUnicode_FromString(qualname) : nullptr);
    if (!name || !name_.set(module_name.get(), name.get())) return false;
    if (stops_at_exit([&] { return PySys_Audit("pickle.find_class", "ss", module, qualname); }) !=
        0) {
      return false;
    }
    if (find != nullptr) {
      object = Ref(call(find, module_name.get(), name.get()));
      return static_cast<bool>(object);
    }
    object = Ref(stops_at_exit([&] { return PyImport_Import(module_name.get()); }));
    const Ref owner = Ref::to(object.get());
    for (const Ref& part : name_.path) {
      if (!object) return false;
      object = Ref(attribute(object.get(), part.get()));
    }
    if (!object && PyErr_ExceptionMatches(PyExc_AttributeError) != 0) {
      PyErr_Format(PyExc_AttributeError, "Can't get attribute %R on %R", name.get(), owner.get());
    }
    return static_cast<bool>(object);
  }

  bool is_current() const { return name_.leads_to(object.get()); }

  PyTypeObject* type() const { return reinterpret_cast<PyTypeObject*>(object.get()); }

  // Return the members of an Enum by value, a borrowed dict; null: it is no Enum like others.
  PyObject* members(const Known& known) {
    look(known);
    return members_.get();
  }
  // Return whether a namedtuple's __new__ does no more than to make a tuple of so many items.
  bool makes_tuples_of(std::size_t count, const Known& known) {
    look(known);
    return fields_ == static_cast<Py_ssize_t>(count);
  }

 private:
  // Look at the class, unless it is as it was.
  void look(const Known& known) {
    if (!PyType_Check(object.get())) return;
    if (version_ != 0 && version_of(type()) == version_) return;
    members_ = Ref();
    fields_ = -1;
    if (Py_TYPE(object.get()) == known.enum_meta) {
      members_ = Ref::to(look_up(type(), known.value_map));
      if (members_ && !PyDict_CheckExact(members_.get())) members_ = Ref();
    }
    look_at_new(known);
    version_ = version_of(type());
  }

  // A namedtuple's __new__ is made from a text: it is known by what it has of its surroundings.
  void look_at_new(const Known& known) {
    const bool is_tuple = PyType_IsSubtype(type(), &PyTuple_Type) != 0;
    if (!is_tuple || type()->tp_dictoffset != 0) return;
    PyObject* const found = look_up(type(), known.new_);
    if (found == nullptr || Py_TYPE(found) != &PyStaticMethod_Type) return;
    const Ref function(attribute(object.get(), known.new_));
    PyErr_Clear();
    if (!function || !PyFunction_Check(function.get())) return;
    PyObject* const surroundings = PyFunction_GET_GLOBALS(function.get());
    PyObject* const maker = PyDict_GetItemWithError(surroundings, known.tuple_new_name);
    const bool is_standard =
        maker != nullptr && PyDict_GET_SIZE(surroundings) <= 3 && PyCFunction_Check(maker) &&
        PyCFunction_GET_FUNCTION(maker) == PyCFunction_GET_FUNCTION(known.tuple_new) &&
        PyCFunction_GET_SELF(maker) == reinterpret_cast<PyObject*>(&PyTuple_Type);
    PyObject* const code = PyFunction_GET_CODE(function.get());
    if (is_standard) fields_ = reinterpret_cast<PyCodeObject*>(code)->co_argcount - 1;
  }

  Name name_;
  unsigned version_ = 0;  // of the class that was looked at
  Ref members_;
  Py_ssize_t fields_ = -1;
};

// A class and the names of its instances' attributes and slots.
class ReceivedShape {
 public:
  std::string blob;
  ReceivedGlobal cls;
  bool is_plain = false;  // else pickle's way is taken: its __new__, then its state
  bool is_list_state = false;
  std::size_t attributes = 0;
  std::vector<Ref> keys;  // of the attributes, then of the slots
  std::vector<Py_ssize_t> offsets;
  // Of this message: the fields of the last instance, and a dict of its attributes.
  std::vector<Ref> last;
  Ref last_dict;
  bool has_last = false;

  // Return what the bytes describe. Null with an error set.
  static std::unique_ptr<ReceivedShape> of(std::string_view blob, PyObject* find,
                                           const Known& known) {
    auto shape = std::make_unique<ReceivedShape>();
    shape->blob = blob;
    return shape->read(find) && shape->look(known) ? std::move(shape) : nullptr;
  }

  // Return whether the name still leads to the class, which is as it was.
  bool is_current() const {
    return version_ != 0 && version_of(cls.type()) == version_ && cls.is_current();
  }

  void forget_last() {
    if (has_last) {
      for (Ref& value : last) value = Ref();
    }
    last_dict = Ref();
    has_last = false;
  }

  // Return a new instance without attributes. Null with an error set.
  PyObject* new_instance(const Known& known) const {
    PyTypeObject* const type = cls.type();
    if (is_plain && (attributes > 0 || !has_dict_)) return type->tp_alloc(type, 0);
    if (type->tp_new == nullptr) return Input::malformed(), nullptr;
    return stops_at_exit([&] { return type->tp_new(type, known.no_arguments, nullptr); });
  }

  // Return a new dict of these attributes, which has room for those that are None.
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
  bool read(PyObject* find) {
    std::uint16_t counts[2];
    const char* const end = blob.data() + blob.size();
    if (blob.size() < sizeof counts || end[-1] != '\0') return Input::malformed();
    std::memcpy(counts, blob.data(), sizeof counts);
    const char* at = blob.data() + sizeof counts;
    const auto next = [&]() -> const char* {
      return at == end ? nullptr : std::exchange(at, at + std::strlen(at) + 1);
    };
    const char* const module = next();
    const char* const qualname = next();
    if (module == nullptr || qualname == nullptr) return Input::malformed();
    attributes = counts[0];
    is_list_state = (counts[1] & kListState) != 0;
    const std::size_t count = attributes + (counts[1] & (kListState - 1U));
    while (keys.size() < count) {
      const char* const key = next();
      if (key == nullptr) return Input::malformed();
      keys.emplace_back(PyUnicode_InternFromString(key));
      if (!keys.back()) return false;
    }
    if (at != end || !cls.find_by(find, module, qualname)) return Input::malformed();
    return PyType_Check(cls.object.get()) || Input::malformed();
  }

  bool look(const Known& known) {
    PyTypeObject* const type = cls.type();
    has_dict_ = type->tp_dictoffset != 0;
    last.resize(keys.size());
    PyObject* const setstate = look_up(type, known.setstate);
    const bool is_own_state = is_list_state
                                  ? setstate == known.frozen_setstate && setstate != nullptr
                                  : setstate == nullptr;
    is_plain = type->tp_new == PyBaseObject_Type.tp_new && is_own_state &&
               PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE) != 0 &&
               PyType_HasFeature(type, Py_TPFLAGS_IS_ABSTRACT) == 0 &&
               type->tp_getattro == PyObject_GenericGetAttr && type->tp_itemsize == 0 &&
               find_dict_setter(known) && find_slots(known);
    blank_ = Ref(PyDict_New());
    for (std::size_t i = 0; i < attributes && blank_; ++i) {
      if (PyDict_SetItem(blank_.get(), keys[i].get(), Py_None) != 0) blank_ = Ref();
    }
    if (blank_)
      blank_ = Ref(PyDict_Copy(blank_.get()));  // (without gaps, so that a copy is one of
                                                // its memory)
    version_ = version_of(type);
    return static_cast<bool>(blank_);
  }

  bool find_dict_setter(const Known& known) {
    if (attributes == 0) return true;
    PyObject* const found = look_up(cls.type(), known.dict);
    if (found == nullptr || Py_TYPE(found) != &PyGetSetDescr_Type) return false;
    setter_ = reinterpret_cast<PyGetSetDescrObject*>(found)->d_getset;
    return has_dict_ && setter_->set != nullptr;
  }

  bool find_slots(const Known& known) {
    PyTypeObject* const type = cls.type();
    const std::size_t count = keys.size() - attributes;
    if (count > 0 && !is_list_state && type->tp_setattro != PyObject_GenericSetAttr) return false;
    if (is_list_state) {
      PyObject* const fields = look_up(type, known.dataclass_fields);
      if (fields == nullptr || !PyDict_CheckExact(fields) ||
          static_cast<std::size_t>(PyDict_GET_SIZE(fields)) != count) {
        return false;
      }
    }
    for (std::size_t i = attributes; i < keys.size(); ++i) {
      PyObject* const found = look_up(type, keys[i].get());
      if (found == nullptr || Py_TYPE(found) != &PyMemberDescr_Type) return false;
      const PyMemberDef* const member = reinterpret_cast<PyMemberDescrObject*>(found)->d_member;
      if (member->type != T_OBJECT_EX) return false;
      offsets.push_back(member->offset);
    }
    return true;
  }

  bool has_dict_ = false;
  unsigned version_ = 0;
  const PyGetSetDef* setter_ = nullptr;  // of the class's own __dict__
  Ref blank_;
};

}  // namespace shmcast::codec

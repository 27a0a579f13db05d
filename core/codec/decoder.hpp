// Room: codec. The decoder: frames as an object.
// Knows: containers and instances, what pickle does with a reduction. It trusts no byte of them.
// Does not know: which classes are known, or where frames come from.
//
// The parts of a container are put on a stack until all are there, so that nobody can see a
// container with places that are empty. What a function that fails has left there, decode() drops.
#pragma once

#include <Python.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "codec/caches.hpp"
#include "codec/classes.hpp"
#include "codec/decoder_values.hpp"
#include "codec/wire.hpp"
#include "python/python.hpp"

namespace shmcast::codec {

class Decoder : private ValueReader {
 public:
  // `find`: returns what a module has by a name, or raises.
  Decoder(const Known& known, PyObject* find) : ValueReader(known, find) {}

  // Return the object of a message. `frames`: a list, whose first is the bytes given; null: it has
  // no others.
  // `is_practice`: fail before code of others runs.
  PyObject* decode(const std::uint8_t* data, std::size_t size, PyObject* frames,
                   bool is_practice = false) {
    is_practice_ = is_practice;
    if (size < 2 || data[0] != kMagic || data[1] != kFormat) return Input::malformed(), nullptr;
    in_ = Input(data + 2, size - 2);
    ran_code_ = false;
    frames_ = frames;
    next_frame_ = 1;
    Ref object(any());
    if (object && in_.left() > 0) object = Ref(fail());
    forget();
    depth_ = 0;
    return object.release();
  }

  // Whether the last message, or dropping its object, may run code of others.
  bool ran_code() const { return ran_code_; }

 private:
  // (Twice as deep as an encoder goes, which counts otherwise.)
  bool enter() { return ++depth_ <= 2 * kDeepest || Input::malformed(); }
  bool leave() { return --depth_ >= 0; }

  // To hash anything but a string or a number may run code of others.
  bool may_hash(PyObject* key) {
    return PyUnicode_CheckExact(key) || PyLong_CheckExact(key) || may_run_code();
  }

  PyObject* any(bool is_numbered = false) {
    if (!in_.has(1)) return nullptr;
    const std::uint8_t tag = in_.byte();
    if (tag < kNone) return PyLong_FromLong(tag + kSmallest);
    std::uint64_t count = 0;
    switch (tag) {
      case kNone: return Py_NewRef(Py_None);
      case kFalse: return Py_NewRef(Py_False);
      case kTrue: return Py_NewRef(Py_True);
      case kInt: {
        if (!in_.count(count)) return nullptr;
        const auto half = static_cast<std::int64_t>(count >> 1);
        return PyLong_FromLongLong((count & 1) != 0 ? ~half : half);
      }
      case kFloat: return in_.has(8) ? PyFloat_FromDouble(in_.number<double>()) : nullptr;
      case kBig:
        return in_.size(count) ? _PyLong_FromByteArray(in_.raw(count), count, 1, 1) : nullptr;
      case kText: return in_.size(count) ? new_text(in_.raw(count), count) : nullptr;
      case kNamed: return named(in_.size(count) ? new_text(in_.raw(count), count) : nullptr);
      case kTextRef:
        if (!in_.count(count)) return nullptr;
        return count < table_.size() ? Py_NewRef(table_[count]) : fail();
      case kBytes:
      case kBytearray: {
        if (!in_.size(count)) return nullptr;
        const auto make = tag == kBytes ? PyBytes_FromStringAndSize : PyByteArray_FromStringAndSize;
        const auto* const data = reinterpret_cast<const char*>(in_.raw(count));
        return kept(make(data, static_cast<Py_ssize_t>(count)), is_numbered);
      }
      case kList: return list(is_numbered);
      case kTuple: return kept(tuple(), is_numbered);
      case kDict: return dict(is_numbered);
      case kSet: return set(kept(PySet_New(nullptr), is_numbered));
      case kFrozenset: return kept(set(PyFrozenSet_New(nullptr)), is_numbered);
      case kMemo: return is_numbered ? fail() : any(true);
      case kRef:
        if (!in_.count(count)) return nullptr;
        return count < memo_.list().size() ? Py_NewRef(memo_.list()[count]) : fail();
      case kNewShape:
      case kSame:
      case kShaped: return instance(tag, is_numbered);
      case kNewGlobal:
      case kGlobal: {
        const ReceivedName* const found = global(tag);
        return found == nullptr ? nullptr : Py_NewRef(found->object.get());
      }
      case kCall:
      case kNamedTuple: return kept(made_of(tag), is_numbered);
      case kReduced: return enter() ? reduced(is_numbered) : nullptr;
      case kFrame:
      case kReadOnlyFrame:
      case kBytesFrame:
      case kBytearrayFrame: return kept(frame(tag), is_numbered);
      default: return fail();
    }
  }

  PyObject* list(bool is_numbered) {
    const std::size_t base = stack().size();
    if (!is_numbered) return counted_items() ? list_from(base) : nullptr;
    Ref list(kept(PyList_New(0), true));  // others may see it: it is filled at once
    if (!list || !counted_items()) return nullptr;
    const Ref items(list_from(base));
    constexpr Py_ssize_t kAtEnd = PY_SSIZE_T_MAX;
    const bool is_done = items && stops_at_exit([&] {
                                    return PyList_SetSlice(list.get(), kAtEnd, kAtEnd, items.get());
                                  }) == 0;
    return is_done ? list.release() : nullptr;
  }

  PyObject* tuple() {
    const std::size_t base = stack().size();
    return counted_items() ? tuple_from(base) : nullptr;
  }

  PyObject* dict(bool is_numbered) {
    std::uint64_t count = 0;
    if (!in_.items(count)) return nullptr;
    Ref dict(is_numbered ? kept(PyDict_New(), true) : nullptr);
    const std::size_t base = stack().size();
    if ((is_numbered && !dict) || !items(count) || !items(count)) return nullptr;
    if (!dict) dict = Ref(new_dict(count));
    if (!dict) return nullptr;
    for (std::size_t i = base; i < base + count; ++i) {
      PyObject* const key = stack()[i];
      PyObject* const value = stack()[i + count];
      if (!may_hash(key) ||
          stops_at_exit([&] { return PyDict_SetItem(dict.get(), key, value); }) != 0) {
        return nullptr;
      }
    }
    parts_.drop_to(base);
    return dict.release();
  }

  // `made`: a set, owned; or a frozenset that nobody else has.
  PyObject* set(PyObject* made) {
    Ref set(made);
    const std::size_t base = stack().size();
    if (!set || !counted_items()) return nullptr;
    for (std::size_t i = base; i < stack().size(); ++i) {
      PyObject* const item = stack()[i];
      if (!may_hash(item) || stops_at_exit([&] { return PySet_Add(set.get(), item); }) != 0) {
        return nullptr;
      }
    }
    parts_.drop_to(base);
    return set.release();
  }

  bool counted_items() {
    std::uint64_t count = 0;
    return in_.items(count) && items(count);
  }
  // Put so many objects on the stack.
  bool items(std::uint64_t count) {
    if (!enter()) return false;
    const std::size_t end = stack().size() + count;
    while (stack().size() < end) {
      if (!in_.has(1)) return false;
      if (in_.is_run()) {
        if (!run(end - stack().size())) return false;
        continue;
      }
      PyObject* const object = any();
      if (object == nullptr) return false;
      stack().push_back(object);
    }
    return leave();
  }

  // Put a run of at most so many objects on the stack, and at least one.
  bool run(std::uint64_t most) {
    const std::uint8_t tag = in_.byte();
    std::uint64_t count = 0;
    std::uint64_t first = 0;
    if (tag == kTextRefs && !in_.count(first)) return false;
    if (!in_.count(count)) return false;
    if (count == 0 || count > most) return Input::malformed();
    if (tag == kStrings) return strings(count);
    if (tag == kTextRefs) return known_strings(first, count);
    if (tag == kRun) {
      PyObject* const object = count <= kMostRun ? any() : fail();
      if (object == nullptr) return false;
      for (std::uint64_t i = 1; i < count; ++i) Py_INCREF(object);
      stack().insert(stack().end(), count, object);
      return true;
    }
    if (count > in_.left() / 4) return Input::malformed();
    for (; count > 0; --count) {
      PyObject* const number = ints_.of(in_.number<std::int32_t>());
      if (number == nullptr) return false;
      stack().push_back(number);
    }
    return true;
  }

  PyObject* instance(std::uint8_t tag, bool is_numbered) {
    ReceivedShape* const shape = described(known_shapes_, shapes_, tag == kNewShape);
    if (shape == nullptr) return nullptr;
    const bool runs_none = shape->is_plain && shape->type()->tp_finalize == nullptr;
    if (!runs_none && !may_run_code()) return nullptr;
    Ref object(kept(shape->new_instance(known_), is_numbered));
    if (!object || !enter() || !fields(tag, *shape, object.get())) return nullptr;
    return leave() ? object.release() : nullptr;
  }

  // Read an instance's fields. Of kSame: those that are other objects than in the last instance of
  // this shape.
  bool fields(std::uint8_t tag, ReceivedShape& shape, PyObject* object) {
    const std::size_t count = shape.count();
    const std::size_t base = stack().size();
    const bool is_same = tag == kSame;
    std::uint64_t others = ~std::uint64_t{0};
    if (is_same) {
      const std::size_t size = (count + 7) / 8;
      if (shape.last.size() != count || !in_.has(size)) return Input::malformed();
      others = 0;
      std::memcpy(&others, in_.raw(size), size);
    }
    for (std::size_t i = 0; i < count; ++i) {
      PyObject* value = nullptr;
      if (is_same && (others >> i & 1) == 0) {
        value = Py_XNewRef(shape.last[i].get());
      } else if (!in_.is_next(kUnset)) {
        value = any();
        if (value == nullptr) return false;
      } else if (in_.byte() == kUnset && i < shape.attributes) {
        return Input::malformed();
      }
      stack().push_back(value);
    }
    PyObject* const* const values = stack().data() + base;
    const bool is_set = shape.is_plain ? set_fields(object, shape, values, is_same, others)
                                       : restore(object, shape, values);
    if (!is_set) return false;
    if (tag != kShaped && count <= kBitmapFields) {
      shape.last.resize(count);
      for (std::size_t i = 0; i < count; ++i) {
        if ((others >> i & 1) != 0) shape.last[i] = Ref::to(values[i]);
      }
    }
    parts_.drop_to(base);
    return true;
  }

  bool set_fields(PyObject* object, ReceivedShape& shape, PyObject* const* values, bool is_same,
                  std::uint64_t others) {
    if (shape.attributes > 0) {
      const Ref own(shape.dict_of(values, is_same, others));
      if (!own || !shape.set_dict(object, own.get())) return false;
    }
    for (std::size_t i = 0; i < shape.offsets.size(); ++i) {
      char* const place = reinterpret_cast<char*>(object) + shape.offsets[i];
      Py_XSETREF(*reinterpret_cast<PyObject**>(place), Py_XNewRef(values[shape.attributes + i]));
    }
    return true;
  }

  // Give an instance its fields in pickle's way, which runs code of others.
  [[gnu::cold]] bool restore(PyObject* object, const ReceivedShape& shape,
                             PyObject* const* values) {
    const Ref attributes(PyDict_New());
    const Ref slots(PyDict_New());
    if (!attributes || !slots) return false;
    for (std::size_t i = 0; i < shape.count(); ++i) {
      PyObject* const part = i < shape.attributes ? attributes.get() : slots.get();
      if (values[i] == nullptr) continue;
      if (PyDict_SetItem(part, shape.key(i), values[i]) != 0) return false;
    }
    PyObject* const first = PyDict_GET_SIZE(attributes.get()) > 0 ? attributes.get() : Py_None;
    const bool has_slots = PyDict_GET_SIZE(slots.get()) > 0;
    if (first == Py_None && !has_slots && !shape.is_list_state) return true;
    const Ref state(shape.is_list_state ? PyDict_Values(slots.get())
                    : has_slots         ? PyTuple_Pack(2, first, slots.get())
                                        : Py_NewRef(first));
    return state && set_state(object, state.get());
  }

  // An object by its class and what that is called with.
  PyObject* made_of(std::uint8_t tag) {
    const std::size_t base = stack().size();
    const ReceivedName* const found = in_.has(1) ? global(in_.byte()) : nullptr;
    if (found == nullptr || !counted_items()) return nullptr;
    PyObject* const cls = found->object.get();
    return tag == kCall ? called(cls, base) : new_object(cls, base);
  }

  // Call a function with the objects on the stack.
  PyObject* called(PyObject* function, std::size_t base) {
    const std::size_t count = stack().size() - base;
    std::array<PyObject*, 6> plain;
    if (function == known_.of_tensors(0) && count == 5) {
      if (const Ref capsule = plain_tensor(stack().data() + base); capsule) {
        parts_.drop_to(base);
        return call(known_.of_tensors(1), capsule.get());
      }
      if (PyErr_Occurred() != nullptr) return nullptr;
    }
    const bool is_plain =
        function == known_.of_arrays(0) && count == 4 && make_plain(stack().data() + base, plain);
    if (!is_plain && function != known_.array && !may_run_code()) return nullptr;
    const Ref object(stops_at_exit([&] {
      return is_plain ? PyObject_Vectorcall(known_.of_arrays(1), plain.data(), 6, nullptr)
                      : PyObject_Vectorcall(function, stack().data() + base, count, nullptr);
    }));
    parts_.drop_to(base);
    return Py_XNewRef(object.get());
  }

  PyObject* new_object(PyObject* cls, std::size_t base) {
    if (!may_run_code()) return nullptr;
    if (!PyType_Check(cls)) {
      return PyErr_Format(known_.unpickling_error,
                          "NEWOBJ class argument must be a type, not %.200s",
                          Py_TYPE(cls)->tp_name);
    }
    auto* const type = reinterpret_cast<PyTypeObject*>(cls);
    const bool has_none = stack().size() == base;
    const Ref arguments(has_none ? Py_NewRef(known_.nothing) : tuple_from(base));
    if (!arguments) return nullptr;
    if (type->tp_new == nullptr) return fail();
    return stops_at_exit([&] { return type->tp_new(type, arguments.get(), nullptr); });
  }

  // In decoder_reductions.hpp:
  PyObject* reduced(bool is_numbered);
  bool make_plain(PyObject* const* arguments, std::array<PyObject*, 6>& made) const;
  Ref plain_tensor(PyObject* const* arguments) const;
  // Whether it stands for the memory of an array, which is left out of practice.
  bool is_without_memory(PyObject* buffer) const {
    return is_practice_ && PyByteArray_CheckExact(buffer) && PyByteArray_GET_SIZE(buffer) == 0;
  }
  bool add_items(PyObject* object, PyObject* list);
  bool set_state(PyObject* object, PyObject* state);
  [[gnu::cold]] bool refused(const char* why) {
    return PyErr_SetString(known_.unpickling_error, why), false;
  }

  // Of this message:
  int depth_ = 0;
};

}  // namespace shmcast::codec

// Room: pickle. Small messages of plain objects: a pickler and an unpickler of a few hundred
// instructions.
// Knows: pickle's opcodes for dicts, lists, tuples, strings, bytes, numbers and None.
// Does not know: any other object. That is left to pickle, which reads what is written here.
//
// A message finds the caches cold, and half of what a small one takes is then pickle's own code
// being fetched: its tables, its memo, its writer. Left to pickle are also subclasses, larger
// messages, and containers that are in two places of one.
#pragma once

#include <Python.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "python/python.hpp"

namespace shmcast {

class PlainPickle {
 public:
  // Write the pickle of an object. Returns false, without an error, if it is none of ours. Runs no
  // code of others, so that no object changes meanwhile.
  bool write(PyObject* object) {
    put(0x80);
    put(5);
    return any(object, 0) && put('.');
  }
  const char* data() const { return bytes_.data(); }
  std::size_t size() const { return size_; }

 private:
  static constexpr std::size_t kMostBytes = 1024;
  static constexpr std::size_t kMostContainers = 32;
  static constexpr int kDeepest = 8;

  bool any(PyObject* object, int depth) {
    const PyTypeObject* const type = Py_TYPE(object);
    if (type == &PyUnicode_Type) return text(object);
    if (type == &PyLong_Type) return integer(object);
    if (object == Py_None) return put('N');
    if (object == Py_True) return put(0x88);
    if (object == Py_False) return put(0x89);
    if (type == &PyFloat_Type) return number(PyFloat_AS_DOUBLE(object));
    if (type == &PyBytes_Type) {
      return sized('C', 'B', PyBytes_AS_STRING(object), PyBytes_GET_SIZE(object));
    }
    if (depth == kDeepest) return false;
    if (type == &PyList_Type) return is_new(object) && list(object, depth + 1);
    if (type == &PyDict_Type) return is_new(object) && dict(object, depth + 1);
    // (A tuple may hold a list, so that it matters if it is there twice.)
    if (type == &PyTuple_Type) return is_new(object) && tuple(object, depth + 1);
    return false;
  }

  // Return whether a container is in one place only. For what can't change that does not matter.
  bool is_new(PyObject* object) {
    const auto end = containers_.begin() + static_cast<std::ptrdiff_t>(count_);
    if (count_ == kMostContainers || std::find(containers_.begin(), end, object) != end) {
      return false;
    }
    containers_[count_++] = object;
    return true;
  }

  bool list(PyObject* object, int depth) {
    const Py_ssize_t count = PyList_GET_SIZE(object);
    if (!put(']')) return false;
    if (count == 0) return true;
    if (count > 1 && !put('(')) return false;
    for (Py_ssize_t i = 0; i < count; ++i) {
      if (!any(PyList_GET_ITEM(object, i), depth)) return false;
    }
    return put(count > 1 ? 'e' : 'a');
  }

  bool tuple(PyObject* object, int depth) {
    static constexpr std::array<unsigned char, 4> kShort{')', 0x85, 0x86, 0x87};
    const auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(object));
    if (count >= kShort.size() && !put('(')) return false;
    for (std::size_t i = 0; i < count; ++i) {
      if (!any(PyTuple_GET_ITEM(object, static_cast<Py_ssize_t>(i)), depth)) return false;
    }
    return put(count < kShort.size() ? kShort[count] : 't');
  }

  bool dict(PyObject* object, int depth) {
    const Py_ssize_t count = PyDict_GET_SIZE(object);
    if (!put('}')) return false;
    if (count == 0) return true;
    if (count > 1 && !put('(')) return false;
    Py_ssize_t at = 0;
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    while (PyDict_Next(object, &at, &key, &value)) {
      if (!any(key, depth) || !any(value, depth)) return false;
    }
    return put(count > 1 ? 'u' : 's');
  }

  bool text(PyObject* object) {
    Py_ssize_t size = 0;
    const char* const utf8 = PyUnicode_AsUTF8AndSize(object, &size);
    if (utf8 == nullptr) {  // half of a surrogate pair: pickle has a way
      PyErr_Clear();
      return false;
    }
    return sized(0x8c, 'X', utf8, size);
  }

  bool integer(PyObject* object) {
    int overflow = 0;
    const std::int64_t value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0) return false;
    if (value >= 0 && value < 1 << 8) return put('K') && little_endian(value, 1);
    if (value >= 0 && value < 1 << 16) return put('M') && little_endian(value, 2);
    if (value >= INT32_MIN && value <= INT32_MAX) return put('J') && little_endian(value, 4);
    return put(0x8a) && put(8) && little_endian(value, 8);
  }

  bool number(double value) {
    const auto bits = std::bit_cast<std::uint64_t>(value);
    if (!put('G')) return false;
    for (int shift = 56; shift >= 0; shift -= 8) {
      if (!put(static_cast<unsigned char>(bits >> shift))) return false;
    }
    return true;
  }

  bool little_endian(std::int64_t value, int size) {
    for (int i = 0; i < size; ++i) {
      if (!put(static_cast<unsigned char>(value >> (8 * i)))) return false;
    }
    return true;
  }

  // Write with the opcode for up to 255 bytes, or the one for up to 4 GiB.
  bool sized(unsigned char small, unsigned char large, const char* data, Py_ssize_t count) {
    const auto size = static_cast<std::size_t>(count);
    if (size >= kMostBytes) return false;
    const bool is_small = size < 1 << 8;
    return put(is_small ? small : large) && little_endian(count, is_small ? 1 : 4) &&
           append(data, size);
  }

  bool append(const char* data, std::size_t size) {
    if (size > kMostBytes - size_) return false;
    std::memcpy(bytes_.data() + size_, data, size);
    size_ += size;
    return true;
  }

  bool put(unsigned char byte) {
    if (size_ == kMostBytes) return false;
    bytes_[size_++] = static_cast<char>(byte);
    return true;
  }

  std::array<char, kMostBytes> bytes_;
  std::size_t size_ = 0;
  std::array<PyObject*, kMostContainers> containers_;
  std::size_t count_ = 0;
};

// Reads what PlainPickle writes, and trusts no byte of it. Runs no code of others: what it makes
// has no finalizers, and its keys are plain.
class PlainUnpickle {
 public:
  PlainUnpickle(const char* data, std::size_t size)
      : data_(reinterpret_cast<const unsigned char*>(data)), size_(size) {}
  PlainUnpickle(const PlainUnpickle&) = delete;
  PlainUnpickle& operator=(const PlainUnpickle&) = delete;
  ~PlainUnpickle() { drop_to(0); }

  // Return the object, a new reference. Null, with or without an error set: leave it to pickle.
  PyObject* read() {
    const WithoutCollection nothing_else_runs;
    if (size_ < 2 || data_[0] != 0x80 || data_[1] != 5) return nullptr;
    at_ = 2;
    while (at_ < size_) {
      const unsigned char opcode = data_[at_++];
      if (opcode == '.') {
        const bool is_whole = depth_ == 1 && marks_ == 0 && at_ == size_;
        return is_whole ? stack_[--depth_] : nullptr;
      }
      if (!step(opcode)) return nullptr;
    }
    return nullptr;
  }

 private:
  static constexpr std::size_t kMostObjects = 1024;  // at a time; PlainPickle writes no more
  static constexpr std::size_t kMostMarks = 16;

  bool step(unsigned char opcode) {
    switch (opcode) {
      case 'N': return push(Py_NewRef(Py_None));
      case 0x88: return push(Py_NewRef(Py_True));
      case 0x89: return push(Py_NewRef(Py_False));
      case 'K': return integer(1);
      case 'M': return integer(2);
      case 'J': return integer(4);
      case 0x8a: return at_ < size_ && data_[at_++] == 8 && integer(8);
      case 'G': return number();
      case 0x8c: return sized(1, PyUnicode_FromStringAndSize);
      case 'X': return sized(4, PyUnicode_FromStringAndSize);
      case 'C': return sized(1, PyBytes_FromStringAndSize);
      case 'B': return sized(4, PyBytes_FromStringAndSize);
      case ']': return push(PyList_New(0));
      case '}': return push(PyDict_New());
      case ')': return push(PyTuple_New(0));
      case 0x85: return depth_ >= 1 && tuple(depth_ - 1);
      case 0x86: return depth_ >= 2 && tuple(depth_ - 2);
      case 0x87: return depth_ >= 3 && tuple(depth_ - 3);
      case '(': return mark();
      case 't': return marks_ > 0 && tuple(marked_[--marks_]);
      case 'a': return depth_ >= 2 && append_from(depth_ - 1);
      case 'e': return marks_ > 0 && append_from(marked_[--marks_]);
      case 's': return depth_ >= 3 && set_from(depth_ - 2);
      case 'u': return marks_ > 0 && set_from(marked_[--marks_]);
      default: return false;
    }
  }

  bool push(PyObject* object) {
    if (object == nullptr) return false;
    if (depth_ == kMostObjects) {
      Py_DECREF(object);
      return false;
    }
    stack_[depth_++] = object;
    return true;
  }

  bool mark() {
    if (marks_ == kMostMarks) return false;
    marked_[marks_++] = depth_;
    return true;
  }

  bool integer(std::size_t bytes) {
    std::uint64_t bits = 0;
    if (!unsigned_number(bytes, bits)) return false;
    if (bytes == 4) return push(PyLong_FromLong(static_cast<std::int32_t>(bits)));
    return push(PyLong_FromLongLong(static_cast<std::int64_t>(bits)));
  }

  bool number() {
    if (size_ - at_ < 8) return false;
    std::uint64_t bits = 0;
    for (int i = 0; i < 8; ++i) bits = bits << 8 | data_[at_++];
    return push(PyFloat_FromDouble(std::bit_cast<double>(bits)));
  }

  bool sized(std::size_t bytes, PyObject* (*make)(const char*, Py_ssize_t)) {
    std::uint64_t size = 0;
    if (!unsigned_number(bytes, size) || size > size_ - at_) return false;
    const auto* const from = reinterpret_cast<const char*>(data_ + at_);
    at_ += size;
    return push(make(from, static_cast<Py_ssize_t>(size)));
  }

  bool unsigned_number(std::size_t bytes, std::uint64_t& value) {
    if (size_ - at_ < bytes) return false;
    for (std::size_t i = 0; i < bytes; ++i) value |= std::uint64_t{data_[at_++]} << (8 * i);
    return true;
  }

  // Make a tuple of the objects from `first` on; the next two functions, too, take those. (A mark
  // may lie above the stack's top: what was below it can be gone.)
  bool tuple(std::size_t first) {
    if (first > depth_) return false;
    PyObject* const made = PyTuple_New(static_cast<Py_ssize_t>(depth_ - first));
    if (made == nullptr) return false;
    for (std::size_t i = first; i < depth_; ++i) {
      PyTuple_SET_ITEM(made, static_cast<Py_ssize_t>(i - first), stack_[i]);
    }
    depth_ = first;
    return push(made);
  }

  bool append_from(std::size_t first) {
    if (first == 0 || first > depth_ || !PyList_CheckExact(stack_[first - 1])) return false;
    for (std::size_t i = first; i < depth_; ++i) {
      if (PyList_Append(stack_[first - 1], stack_[i]) != 0) return false;
    }
    drop_to(first);
    return true;
  }

  bool set_from(std::size_t first) {
    if (first == 0 || first > depth_ || (depth_ - first) % 2 != 0 ||
        !PyDict_CheckExact(stack_[first - 1])) {
      return false;
    }
    for (std::size_t i = first; i < depth_; i += 2) {
      if (PyDict_SetItem(stack_[first - 1], stack_[i], stack_[i + 1]) != 0) return false;
    }
    drop_to(first);
    return true;
  }

  void drop_to(std::size_t depth) {
    while (depth_ > depth) Py_DECREF(stack_[--depth_]);
  }

  const unsigned char* data_;
  std::size_t size_;
  std::size_t at_ = 0;
  std::array<PyObject*, kMostObjects> stack_;
  std::size_t depth_ = 0;
  std::array<std::size_t, kMostMarks> marked_;
  std::size_t marks_ = 0;
};

// Return the pickle of a small plain object, or None: leave it to pickle. Null with an error set.
inline PyObject* pickle_plain([[maybe_unused]] PyObject* module,
                              [[maybe_unused]] PyObject* object) {
#ifndef Py_GIL_DISABLED  // without it, other threads may change the object meanwhile
  PlainPickle pickle;
  if (pickle.write(object)) {
    return PyBytes_FromStringAndSize(pickle.data(), static_cast<Py_ssize_t>(pickle.size()));
  }
#endif
  return Py_NewRef(Py_None);
}

// Return the object of a frame. `arguments`: the frame, and what to call with it if pickle_plain()
// has not written it.
inline PyObject* unpickle_plain(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "unpickle_plain(frame, otherwise)");
    return nullptr;
  }
  PyObject* const frame = arguments[0];
  if (PyByteArray_CheckExact(frame)) {
    PlainUnpickle pickle(PyByteArray_AS_STRING(frame),
                         static_cast<std::size_t>(PyByteArray_GET_SIZE(frame)));
    PyObject* const object = pickle.read();
    if (object != nullptr) return object;
    PyErr_Clear();
  }
  return stops_at_exit([&] { return PyObject_CallOneArg(arguments[1], frame); });
}

// Add both to a module. (As plain C functions: nanobind's calls would take a tenth of their time.)
inline int add_plain_pickle(PyObject* module) {
  static PyMethodDef functions[] = {
      {"pickle_plain", &pickle_plain, METH_O, nullptr},
      {"unpickle_plain",
       reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&unpickle_plain)), METH_FASTCALL,
       nullptr},
      {nullptr, nullptr, 0, nullptr}};
  return PyModule_AddFunctions(module, functions);
}

}  // namespace shmcast

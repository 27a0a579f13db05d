// Room: python. Tensors of torch, without its headers: one that is sent as its facts, one that is
// received as a tensor over a bytearray.
// Knows: what torch's C functions say and take (since torch 2.1), DLPack's structures.
// Does not know: messages. Nothing here runs Python code.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "python/python.hpp"

namespace shmcast {

// A tensor without gaps in host memory that has no more than its elements. What asks torch for that
// is PLAIN of _codecs/tensors.py, whose order this is.
class PlainTensor {
 public:
  enum Fact : std::size_t {
    rebuild,
    storage_view,
    view,
    mode_count,
    strided,
    // getters of a tensor
    layout,
    is_cpu,
    is_nested,
    requires_grad,
    dtype,
    sizes,
    // methods of a tensor
    is_contiguous,
    is_neg,
    untyped_storage,
    storage_offset,
    has_names,  // None where torch has none
    // methods of a storage
    data_ptr,
    nbytes,
    resizable,
    dtypes,  // each with its text and its size in bytes
  };

  PlainTensor(PyObject* const* facts, std::size_t count) : facts_(facts), count_(count) {}

  // Read what there is to know. Returns false, without an error, if the tensor is another one.
  bool read(PyObject* tensor) {
    const bool is_read = is_plain(tensor) && has_memory(tensor);
    if (!is_read) PyErr_Clear();  // torch's own, of a tensor without a storage
    return is_read;
  }

  PyObject* dtype_text() const { return text_; }
  PyObject* shape() const { return shape_.get(); }
  std::size_t size() const { return size_; }
  const char* data() const { return data_; }
  // The bytes of its storage.
  std::size_t kept_bytes() const { return kept_; }
  // Whether the storage's memory is torch's own, which it can free any time.
  bool is_resizable() const { return is_resizable_; }

  // Return its memory as a buffer that keeps the storage. Null with an error set.
  PyObject* exported() const {
    const Ref begin(is_resizable_ ? PyLong_FromSize_t(offset_)
                                  : PyLong_FromVoidPtr(const_cast<char*>(data_)));
    const Ref length(PyLong_FromSize_t(size_));
    if (!begin || !length) return nullptr;
    const Ref memory(is_resizable_
                         ? call(facts_[storage_view], storage_.get(), begin.get(), length.get())
                         : call(facts_[view], begin.get(), length.get(), storage_.get()));
    return memory ? PyMemoryView_FromObject(memory.get()) : nullptr;
  }

 private:
  Ref get(Fact getter, PyObject* object) const {
    PyObject* const descriptor = facts_[getter];
    return Ref(
        Py_TYPE(descriptor)
            ->tp_descr_get(descriptor, object, reinterpret_cast<PyObject*>(Py_TYPE(object))));
  }
  Ref ask(Fact method, PyObject* object) const {
    return Ref(PyObject_Vectorcall(facts_[method], &object, 1, nullptr));
  }
  bool number(Fact method, PyObject* object, std::size_t& value) const {
    const Ref found = ask(method, object);
    value = found ? PyLong_AsSize_t(found.get()) : 0;
    return found && PyErr_Occurred() == nullptr;
  }

  bool is_plain(PyObject* tensor) {
    // (In a mode of torch's, to look at a tensor runs Python code.)
    const Ref modes(PyObject_Vectorcall(facts_[mode_count], nullptr, 0, nullptr));
    if (!modes || PyLong_AsLong(modes.get()) != 0) return false;
    if (get(layout, tensor).get() != facts_[strided] || get(is_cpu, tensor).get() != Py_True ||
        get(is_nested, tensor).get() != Py_False || get(requires_grad, tensor).get() != Py_False ||
        ask(is_contiguous, tensor).get() != Py_True || ask(is_neg, tensor).get() != Py_False ||
        (facts_[has_names] != Py_None && ask(has_names, tensor).get() != Py_False)) {
      return false;
    }
    const Ref attributes(PyObject_GenericGetDict(tensor, nullptr));
    return attributes && PyDict_CheckExact(attributes.get()) &&
           PyDict_GET_SIZE(attributes.get()) == 0;
  }

  bool has_memory(PyObject* tensor) {
    const Ref type = get(dtype, tensor);
    std::size_t at = dtypes;
    while (at < count_ && facts_[at] != type.get()) at += 3;
    shape_ = get(sizes, tensor);
    if (at >= count_ || !shape_) return false;
    text_ = facts_[at + 1];
    const std::size_t itemsize = PyLong_AsSize_t(facts_[at + 2]);
    std::size_t count = 1;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(shape_.get()); ++i) {
      count *= PyLong_AsSize_t(PyTuple_GET_ITEM(shape_.get(), i));
    }
    size_ = count * itemsize;
    storage_ = ask(untyped_storage, tensor);
    std::size_t first = 0;
    std::size_t address = 0;
    if (!storage_ || !number(storage_offset, tensor, first) ||
        !number(data_ptr, storage_.get(), address) || !number(nbytes, storage_.get(), kept_)) {
      return false;
    }
    const Ref can_resize = ask(resizable, storage_.get());
    is_resizable_ = can_resize.get() == Py_True;
    offset_ = first * itemsize;
    data_ = reinterpret_cast<const char*>(address) + offset_;
    // (Memory that was freed, or given back, is for Python code to complain of.)
    const std::size_t held = kept_ / itemsize;
    return can_resize && (count == 0 || (address != 0 && first <= held && count <= held - first));
  }

  PyObject* const* const facts_;
  const std::size_t count_;
  Ref shape_, storage_;
  PyObject* text_ = nullptr;
  const char* data_ = nullptr;
  std::size_t offset_ = 0, size_ = 0, kept_ = 0;
  bool is_resizable_ = false;
};

// The structures of DLPack before its versions, which every torch takes.
struct DlTensor {
  void* data;
  std::int32_t device_type = 1, device_id = 0;  // the CPU
  std::int32_t dimensions;
  std::uint8_t code, bits;
  std::uint16_t lanes = 1;
  const std::int64_t* shape;
  const std::int64_t* strides = nullptr;  // in C order
  std::uint64_t byte_offset = 0;
};
struct DlManagedTensor {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManagedTensor*);
};

// Return a capsule with a bytearray's memory as a tensor, which keeps the bytearray. Null with an
// error set. `shape`: a tuple of so many integers that the elements fill the bytearray. `dtype`:
// DLPack's code of it, times 256, and its bits.
inline PyObject* dlpack_of(PyObject* bytearray, PyObject* shape, unsigned dtype) {
  struct Lent {
    DlManagedTensor managed;
    Ref bytearray;
    std::unique_ptr<std::int64_t[]> shape;
  };
  // Called by whoever drops the tensor's memory last, who may be in a thread without the GIL.
  const auto give_back = [](DlManagedTensor* managed) {
    if (Py_IsInitialized() == 0) return;
    const PyGILState_STATE state = stops_at_exit([] { return PyGILState_Ensure(); });
    delete static_cast<Lent*>(managed->context);
    PyGILState_Release(state);
  };
  const Py_ssize_t dimensions = PyTuple_GET_SIZE(shape);
  auto lent = std::make_unique<Lent>();
  lent->shape = std::make_unique<std::int64_t[]>(static_cast<std::size_t>(dimensions));
  for (Py_ssize_t i = 0; i < dimensions; ++i) {
    lent->shape[static_cast<std::size_t>(i)] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
  }
  lent->bytearray = Ref::to(bytearray);
  DlTensor& tensor = lent->managed.tensor;
  tensor.data = PyByteArray_AS_STRING(bytearray);
  tensor.dimensions = static_cast<std::int32_t>(dimensions);
  tensor.code = static_cast<std::uint8_t>(dtype >> 8);
  tensor.bits = static_cast<std::uint8_t>(dtype);
  tensor.shape = lent->shape.get();
  lent->managed.context = lent.get();
  lent->managed.deleter = give_back;
  // (Who takes the tensor gives the capsule another name.)
  PyObject* const capsule = PyCapsule_New(&lent->managed, "dltensor", [](PyObject* unused) {
    if (PyCapsule_IsValid(unused, "dltensor") == 0) return;
    auto* const managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(unused, "dltensor"));
    managed->deleter(managed);
  });
  if (capsule != nullptr) lent.release();
  return capsule;
}

}  // namespace shmcast

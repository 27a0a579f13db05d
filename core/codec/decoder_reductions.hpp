// Room: codec. The decoder's calls: what makes an object by a class or a function.
// Knows: what pickle does with a reduction.
// Does not know: how values are read.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>

#include "codec/decoder.hpp"

namespace shmcast::codec {

// Call a function with the objects on the stack.
inline PyObject* Decoder::called(PyObject* function, std::size_t base) {
  if (function != known_.array && !may_run_code()) return nullptr;
  const std::size_t count = stack().size() - base;
  const Ref object(stops_at_exit(
      [&] { return PyObject_Vectorcall(function, stack().data() + base, count, nullptr); }));
  parts_.drop_to(base);
  return Py_XNewRef(object.get());
}

inline PyObject* Decoder::new_object(PyTypeObject* type, std::size_t base) {
  if (!may_run_code()) return nullptr;
  const bool has_none = stack().size() == base;
  const Ref arguments(has_none ? Py_NewRef(known_.nothing) : tuple_from(base));
  if (!arguments) return nullptr;
  if (type->tp_new == nullptr) return fail();
  return stops_at_exit([&] { return type->tp_new(type, arguments.get(), nullptr); });
}

inline PyObject* Decoder::named_tuple() {
  ReceivedName* const found = cls();
  const std::size_t base = stack().size();
  if (found == nullptr || !counted_items()) return nullptr;
  return new_object(found->type(), base);
}

inline PyObject* Decoder::reduced(bool is_numbered) {
  if (!in_.has(1)) return nullptr;
  const std::uint8_t parts = in_.byte();
  const Ref function(any());
  const std::size_t base = stack().size();
  if (!function || !counted_items()) return nullptr;
  const bool is_new = function.get() == known_.newobj;  // as called, and faster
  if (is_new && (stack().size() == base || !PyType_Check(stack()[base]))) return fail();
  Ref cls;
  if (is_new) {
    cls = Ref(stack()[base]);
    stack().erase(stack().begin() + static_cast<std::ptrdiff_t>(base));
  }
  Ref object(kept(is_new ? new_object(reinterpret_cast<PyTypeObject*>(cls.get()), base)
                         : called(function.get(), base),
                  is_numbered));
  if (!object) return nullptr;
  if ((parts & kItems) != 0) {
    const Ref list(counted_items() ? list_from(base) : nullptr);
    if (!list || !Ref(call(known_.add_items, object.get(), list.get()))) return nullptr;
  }
  if ((parts & kPairs) != 0) {
    if (!counted_items()) return nullptr;
    const std::size_t many = (stack().size() - base) / 2;
    for (std::size_t i = base; i < base + many; ++i) {
      PyObject* const key = stack()[i];
      PyObject* const value = stack()[i + many];
      if (stops_at_exit([&] { return PyObject_SetItem(object.get(), key, value); }) != 0) {
        return nullptr;
      }
    }
    parts_.drop_to(base);
  }
  const Ref setter((parts & kSetter) != 0 ? any() : Py_NewRef(known_.build));
  if (!setter || (parts & kState) == 0) return setter ? object.release() : nullptr;
  const Ref state(any());
  if (!state) return nullptr;
  const bool has_own =
      (parts & kSetter) == 0 && _PyType_Lookup(Py_TYPE(object.get()), known_.setstate) != nullptr;
  const Ref done(!has_own ? call(setter.get(), object.get(), state.get()) : stops_at_exit([&] {
    return PyObject_CallMethodOneArg(object.get(), known_.setstate, state.get());
  }));
  return done ? object.release() : nullptr;
}

}  // namespace shmcast::codec

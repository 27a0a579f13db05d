// Room: codec. The decoder's instances: of classes that are known, and by reduction.
// Knows: attributes, slots, names, and what pickle does with a reduction.
// Does not know: which classes are known, or why.
#pragma once

#include <Python.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "codec/decoder.hpp"
#include "codec/decoder_items.hpp"

namespace shmcast::codec {

// Read what describes a class, a function or a shape; or the number of one that was described.
template <class Thing>
Thing* Decoder::described(Descriptions<std::string_view, Thing, HashOfPart>& known,
                          std::vector<Thing*>& numbered, bool is_new) {
  std::uint64_t count = 0;
  if (!in_.count(count)) return nullptr;
  if (!is_new) {
    if (count < numbered.size()) return numbered[count];
    return Input::malformed(), nullptr;
  }
  if (!in_.has(count)) return nullptr;
  const std::string_view text(reinterpret_cast<const char*>(in_.raw(count)), count);
  Thing* thing = known.find(text);
  if (thing == nullptr || !thing->is_current()) {
    auto made = std::make_unique<Thing>();
    made->text = text;
    if (!made->learn(find_, known_)) return nullptr;
    const std::string_view key = made->text;
    thing = known.put(key, std::move(made));
  }
  numbered.push_back(thing);
  return thing;
}

inline ReceivedName* Decoder::global(std::uint8_t tag) {
  if (tag != kNewGlobal && tag != kGlobal) return Input::malformed(), nullptr;
  return described(known_names_, globals_, tag == kNewGlobal);
}
inline ReceivedName* Decoder::cls() {
  ReceivedName* const found = in_.has(1) ? global(in_.byte()) : nullptr;
  if (found == nullptr || found->type() == nullptr) return Input::malformed(), nullptr;
  return found;
}

inline PyObject* Decoder::instance(std::uint8_t tag, bool is_numbered) {
  ReceivedShape* const shape = described(known_shapes_, shapes_, tag == kNewShape);
  if (shape == nullptr) return nullptr;
  ran_code_ = ran_code_ || !shape->is_plain || shape->type()->tp_finalize != nullptr;
  Ref object(kept(shape->new_instance(known_), is_numbered));
  if (!object || !enter() || !fields(tag, *shape, object.get())) return nullptr;
  return leave() ? object.release() : nullptr;
}

// Read an instance's fields. Of kSame: those that are other objects than in the last instance of
// this shape.
inline bool Decoder::fields(std::uint8_t tag, ReceivedShape& shape, PyObject* object) {
  const std::size_t count = shape.count();
  const std::size_t base = stack().size();
  const bool is_same = tag == kSame;
  std::uint64_t others = 0;
  if (is_same) {
    const std::size_t size = (count + 7) / 8;
    if (shape.last.size() != count || !in_.has(size)) return Input::malformed();
    std::memcpy(&others, in_.raw(size), size);
  }
  for (std::size_t i = 0; i < count; ++i) {
    if (is_same && (others >> i & 1) == 0) continue;
    PyObject* value = nullptr;
    if (!in_.is_next(kUnset)) {
      value = any();
      if (value == nullptr) return false;
    } else if (in_.byte() == kUnset && i < shape.attributes) {
      return Input::malformed();
    }
    if (!is_same) {
      stack().push_back(value);
    } else {
      shape.last[i] = Ref(value);
      if (i < shape.attributes && shape.last_dict &&
          PyDict_SetItem(shape.last_dict.get(), shape.key(i), value) != 0) {
        return false;
      }
    }
  }
  std::array<PyObject*, kBitmapFields> last;
  for (std::size_t i = 0; is_same && i < count; ++i) last[i] = shape.last[i].get();
  PyObject* const* const values = is_same ? last.data() : stack().data() + base;
  if (is_same && shape.is_plain && shape.attributes > 0 && !shape.last_dict) {
    shape.last_dict = Ref(shape.dict_of(values));
    if (!shape.last_dict) return false;
  }
  PyObject* const dict = is_same ? shape.last_dict.get() : nullptr;
  if (!(shape.is_plain ? set_fields(object, shape, values, dict)
                       : restore(object, shape, values))) {
    return false;
  }
  if (tag == kNewShape && !is_careful_ && count <= kBitmapFields) {
    shape.forget_last();
    for (std::size_t i = 0; i < count; ++i) shape.last.push_back(Ref::to(values[i]));
  }
  parts_.drop_to(base);
  return true;
}

// `dict`: one that has these attributes, or null.
inline bool Decoder::set_fields(PyObject* object, const ReceivedShape& shape,
                                PyObject* const* values, PyObject* dict) {
  if (shape.attributes > 0) {
    const Ref own(dict != nullptr ? PyDict_Copy(dict) : shape.dict_of(values));
    if (!own || !shape.set_dict(object, own.get())) return false;
  }
  for (std::size_t i = 0; i < shape.offsets.size(); ++i) {
    char* const place = reinterpret_cast<char*>(object) + shape.offsets[i];
    Py_XSETREF(*reinterpret_cast<PyObject**>(place), Py_XNewRef(values[shape.attributes + i]));
  }
  return true;
}

// Give an instance its fields in pickle's way, which runs code of others.
[[gnu::cold]] inline bool Decoder::restore(PyObject* object, const ReceivedShape& shape,
                                           PyObject* const* values) {
  const Ref attributes(PyDict_New());
  const Ref slots(PyDict_New());
  if (!attributes || !slots) return false;
  for (std::size_t i = 0; i < shape.count(); ++i) {
    PyObject* const part = i < shape.attributes ? attributes.get() : slots.get();
    if (values[i] == nullptr) continue;
    if (PyDict_SetItem(part, shape.key(i), values[i]) != 0) return false;
  }
  return static_cast<bool>(Ref(call(known_.restore, object, attributes.get(), slots.get(),
                                    shape.is_list_state ? Py_True : Py_False)));
}

inline PyObject* Decoder::other(std::uint8_t tag, bool is_numbered) {
  if (!enter()) return nullptr;
  PyObject* object = nullptr;
  switch (tag) {
    case kNewGlobal:
    case kGlobal: {
      const ReceivedName* const found = global(tag);
      object = found == nullptr ? nullptr : Py_NewRef(found->object.get());
      break;
    }
    case kReduced: object = reduced(is_numbered); break;
    case kNamedTuple: object = kept(named_tuple(), is_numbered); break;
    case kFrame:
    case kReadOnlyFrame:
    case kBytesFrame:
    case kBytearrayFrame: object = kept(frame(tag), is_numbered); break;
    case kCall: {
      const std::size_t base = stack().size();
      const ReceivedName* const found = cls();
      if (found == nullptr || !counted_items()) return nullptr;
      object = kept(called(found->object.get(), base), is_numbered);
      break;
    }
    default: return fail();
  }
  return leave() ? object : nullptr;
}

// Call a function with the objects on the stack.
inline PyObject* Decoder::called(PyObject* function, std::size_t base) {
  ran_code_ = ran_code_ || function != known_.array.get();
  const std::size_t count = stack().size() - base;
  const Ref object(stops_at_exit(
      [&] { return PyObject_Vectorcall(function, stack().data() + base, count, nullptr); }));
  parts_.drop_to(base);
  return Py_XNewRef(object.get());
}

inline PyObject* Decoder::new_object(PyTypeObject* type, std::size_t base) {
  ran_code_ = true;
  const Ref arguments(tuple_from(base));
  if (!arguments) return nullptr;
  if (type->tp_new == nullptr) return fail();
  return stops_at_exit([&] { return type->tp_new(type, arguments.get(), nullptr); });
}

inline PyObject* Decoder::named_tuple() {
  ReceivedName* const found = cls();
  const std::size_t base = stack().size();
  if (found == nullptr || !counted_items()) return nullptr;
  PyTypeObject* const type = found->type();
  const std::size_t count = stack().size() - base;
  if (count == 0 || found->fields != static_cast<int>(count)) return new_object(type, base);
  ran_code_ = ran_code_ || type->tp_finalize != nullptr;
  PyObject* const tuple = type->tp_alloc(type, static_cast<Py_ssize_t>(count));
  if (tuple != nullptr) move_from(base, reinterpret_cast<PyTupleObject*>(tuple)->ob_item);
  return tuple;
}

inline PyObject* Decoder::frame(std::uint8_t tag) {
  if (next_frame_ >= PyList_GET_SIZE(frames_)) return fail();
  PyObject* const frame = PyList_GET_ITEM(frames_, next_frame_++);
  if (tag == kBytesFrame) return PyBytes_FromObject(frame);
  if (tag == kBytearrayFrame && !PyByteArray_CheckExact(frame)) {
    return PyByteArray_FromObject(frame);
  }
  if (tag != kReadOnlyFrame) return Py_NewRef(frame);
  const Ref view(PyMemoryView_FromObject(frame));
  if (!view) return nullptr;
  const bool is_read_only = PyMemoryView_GET_BUFFER(view.get())->readonly != 0;
  return is_read_only ? Py_NewRef(frame)
                      : PyObject_CallMethodNoArgs(view.get(), known_.toreadonly.get());
}

inline PyObject* Decoder::reduced(bool is_numbered) {
  if (!in_.has(1)) return nullptr;
  const std::uint8_t parts = in_.byte();
  const Ref function(any());
  const std::size_t base = stack().size();
  if (!function || !counted_items()) return nullptr;
  const bool is_new = function.get() == known_.newobj.get();  // as called, and faster
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
    if (!items_to_end()) return nullptr;
    const Ref list(PySequence_List(Ref(tuple_from(base)).get()));
    if (!list || !Ref(call(known_.add_items, object.get(), list.get()))) return nullptr;
  }
  if ((parts & kPairs) != 0) {
    if (!items_to_end()) return nullptr;
    for (std::size_t i = base; i + 1 < stack().size(); i += 2) {
      PyObject* const key = stack()[i];
      PyObject* const value = stack()[i + 1];
      if (stops_at_exit([&] { return PyObject_SetItem(object.get(), key, value); }) != 0) {
        return nullptr;
      }
    }
    parts_.drop_to(base);
  }
  const Ref setter((parts & kSetter) != 0 ? any() : Py_NewRef(known_.build.get()));
  if (!setter || (parts & kState) == 0) return setter ? object.release() : nullptr;
  const Ref state(any());
  if (!state) return nullptr;
  const bool has_own = (parts & kSetter) == 0 &&
                       _PyType_Lookup(Py_TYPE(object.get()), known_.setstate.get()) != nullptr;
  const Ref own(has_own ? attribute(object.get(), known_.setstate.get()) : nullptr);
  const Ref done(own ? call(own, state.get()) : call(setter, object.get(), state.get()));
  return done ? object.release() : nullptr;
}

inline bool Decoder::items_to_end() {
  while (!in_.is_next(kEnd)) {
    PyObject* const item = any();
    if (item == nullptr) return false;
    stack().push_back(item);
  }
  return in_.byte() == kEnd;
}

}  // namespace shmcast::codec

// Room: codec. The encoder: an object as frames.
// Knows: Python's own types, and how their objects can be met again in a message.
// Does not know: where frames go.
//
// It has two ways. The plain one runs no code but ours, so that nothing changes meanwhile. An
// object that only one other refers to can't be met twice there, and is not remembered. The first
// object that needs code of others ends that way before any of it has run. The careful way then
// begins from scratch: it remembers and keeps every object, and copies containers before it walks
// through them.
#pragma once

#include <Python.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "codec/classes.hpp"
#include "codec/names.hpp"
#include "codec/pointer_map.hpp"
#include "codec/python.hpp"
#include "codec/sent_runs.hpp"
#include "codec/wire.hpp"

namespace shmcast::codec {

class Encoder {
 public:
  // `own_reducer`: returns how to reduce the instances of a class, or None: pickle's own way.
  // `frames`: a list that such reductions may add frames to. Buffers of `frame_bytes` or more are
  // added, too.
  Encoder(const Known& known, PyObject* own_reducer, PyObject* frames, Py_ssize_t frame_bytes)
      : known_(known),
        own_reducer_(Ref::to(own_reducer)),
        frames_(Ref::to(frames)),
        frame_bytes_(frame_bytes) {}

  // Return the frames of an object, a new list. Null without an error: leave it to pickle.
  PyObject* encode(PyObject* object) {
    is_careful_ = careful_left_ > 0;
    if (is_careful_) --careful_left_;
    for (int attempt = 0; attempt < kMostAttempts; ++attempt) {
      PyObject* const list = attempt_to(object) ? end() : nullptr;
      const Ref unknown = std::move(unknown_);
      forget();
      if (list != nullptr || PyErr_Occurred() != nullptr || stop_ == Stop::pickle) return list;
      if (unknown) {
        if (learn(unknown.get()) == nullptr) return nullptr;
      } else {
        if (is_careful_) return nullptr;
        is_careful_ = true;
        careful_left_ = kCarefulMessages;
      }
    }
    return nullptr;
  }

  // Whether the last message was written in the plain way.
  bool was_plain() const { return !is_careful_; }

 private:
  enum class Stop : std::uint8_t { careful, pickle };
  static constexpr int kMostAttempts = 256;  // each has learned a class
  static constexpr int kCarefulMessages = 64;
  static constexpr std::uint32_t kOpen = 0xFFFFFFFF;  // a tuple whose items are being written

  bool attempt_to(PyObject* object) {
    ++message_;
    stop_ = Stop::careful;
    if (!out_.begin()) return false;
    out_.byte(kMagic);
    out_.byte(is_careful_ ? kRunsCode : 0);
    if (is_careful_) return any(object);
    const WithoutCollection nothing_else_runs;
    return any(object);
  }

  PyObject* end() {
    const Py_ssize_t count = PyList_GET_SIZE(frames_.get());
    Ref message(out_.take());
    Ref list(message ? PyList_New(1 + count) : nullptr);
    if (!list) return nullptr;
    PyList_SET_ITEM(list.get(), 0, message.release());
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyList_SET_ITEM(list.get(), 1 + i, Py_NewRef(PyList_GET_ITEM(frames_.get(), i)));
    }
    return list.release();
  }

  void forget() {
    objects_.clear();
    strings_.clear();
    globals_.clear();
    table_.clear();
    runs_.begin_message();
    classes_.tidy();
    object_count_ = shape_count_ = global_count_ = 0;
    cursor_ = 0;
    depth_ = 0;
    kept_.clear();
    if (PyList_GET_SIZE(frames_.get()) > 0) {
      stops_at_exit([this] {
        return PyList_SetSlice(frames_.get(), 0, PyList_GET_SIZE(frames_.get()), nullptr);
      });
    }
  }

  // Return false, so that encode() goes on otherwise.
  bool leave(Stop stop) {
    stop_ = stop;
    return false;
  }

  // Counts a level of containers in containers, as long as it exists.
  class Level {
   public:
    explicit Level(Encoder& encoder) : encoder_(encoder) { ++encoder_.depth_; }
    Level(const Level&) = delete;
    Level& operator=(const Level&) = delete;
    ~Level() { --encoder_.depth_; }
    bool is_allowed() const { return encoder_.depth_ <= kDeepest || encoder_.leave(Stop::pickle); }

   private:
    Encoder& encoder_;
  };

  bool any(PyObject* object) {
    const PyTypeObject* const type = Py_TYPE(object);
    if (type == &PyUnicode_Type) return text(object);
    if (type == &PyLong_Type) return integer(object);
    if (object == Py_None) return tag(kNone);
    if (type == &PyBool_Type) return tag(object == Py_True ? kTrue : kFalse);
    if (type == &PyFloat_Type) return floating(object);
    if (type == &PyList_Type) return list(object);
    if (type == &PyDict_Type) return dict(object);
    if (type == &PyTuple_Type) return tuple(object);
    return other(object);
  }

  bool tag(Tag tag) {
    if (!out_.room(1)) return false;
    out_.byte(tag);
    return true;
  }
  bool head(Tag small, Tag large, std::size_t count) {
    if (!out_.room(10)) return false;
    if (count < 256) {
      out_.byte(small);
      out_.byte(static_cast<unsigned>(count));
    } else {
      out_.byte(large);
      out_.count(count);
    }
    return true;
  }

  bool floating(PyObject* object) {
    if (!out_.room(9)) return false;
    out_.byte(kFloat);
    out_.number(PyFloat_AS_DOUBLE(object));
    return true;
  }

  bool integer(PyObject* object) {
    std::int64_t value = 0;
    if (!out_.room(9)) return false;
    if (!small_int(object, value)) [[unlikely]] {
      int overflow = 0;
      value = PyLong_AsLongLongAndOverflow(object, &overflow);
      if (overflow != 0) return big(object);
    }
    if (value >= kSmallest && value < kNone + kSmallest) {
      out_.byte(static_cast<unsigned>(value - kSmallest));
    } else if (value >= 0 && value < 256) {
      out_.byte(kU8);
      out_.byte(static_cast<unsigned>(value));
    } else if (value == static_cast<std::int16_t>(value)) {
      out_.byte(kI16);
      out_.number(static_cast<std::int16_t>(value));
    } else if (value == static_cast<std::int32_t>(value)) {
      out_.byte(kI32);
      out_.number(static_cast<std::int32_t>(value));
    } else {
      out_.byte(kI64);
      out_.number(value);
    }
    return true;
  }
  [[gnu::cold, gnu::noinline]] bool big(PyObject* object) {
    const std::size_t size = _PyLong_NumBits(object) / 8 + 1;
    if (!out_.room(size + 11)) return false;
    out_.byte(kBig);
    out_.count(size);
    auto* const number = reinterpret_cast<PyLongObject*>(object);
#if PY_VERSION_HEX >= 0x030D0000
    const int failed = _PyLong_AsByteArray(number, out_.place(), size, 1, 1, 1);
#else
    const int failed = _PyLong_AsByteArray(number, out_.place(), size, 1, 1);
#endif
    out_.skip(size);
    return failed == 0;
  }

  // A string that may be met again gets a number. Columns of one message often have the same
  // strings in the same order: the next one is tried first.
  bool text(PyObject* object) {
    if (!is_ready(object)) return false;
    const bool is_named = Py_REFCNT(object) != 1 || is_careful_;
    if (is_named) {
      if (cursor_ < table_.size() && table_[cursor_] == object) return text_by_number(cursor_++);
      PointerMap::Entry& entry = strings_.at(object);
      if (strings_.has(entry)) {
        cursor_ = entry.number + std::size_t{1};
        return text_by_number(entry.number);
      }
      strings_.put(entry, object, static_cast<std::uint32_t>(table_.size()));
      table_.push_back(object);
      if (is_careful_) kept_.hold(object);
    }
    return characters(object, is_named ? kNamed8 - kText8 : 0);
  }
  bool text_by_number(std::size_t number) {
    if (!out_.room(5)) return false;
    if (number < 1U << 8) {
      out_.byte(kTextRef8);
      out_.byte(static_cast<unsigned>(number));
    } else if (number < 1U << 16) {
      out_.byte(kTextRef16);
      out_.number(static_cast<std::uint16_t>(number));
    } else {
      out_.byte(kTextRef32);
      out_.number(static_cast<std::uint32_t>(number));
    }
    return true;
  }
  bool characters(PyObject* object, int named) {
    const auto size = static_cast<std::size_t>(PyUnicode_GET_LENGTH(object));
    if (size > INT32_MAX) return leave(Stop::pickle);
    const auto* const data = static_cast<const std::uint8_t*>(PyUnicode_DATA(object));
    if (!PyUnicode_IS_COMPACT_ASCII(object)) {
      const auto width = static_cast<std::size_t>(PyUnicode_KIND(object));
      if (!out_.room(size * width + 6)) return false;
      out_.byte(static_cast<unsigned>(kWide + named));
      out_.byte(static_cast<unsigned>(width));
      out_.number(static_cast<std::uint32_t>(size));
      out_.raw(data, size * width);
      return true;
    }
    if (!out_.room(size + 5)) return false;
    if (size < 256) {
      out_.byte(static_cast<unsigned>(kText8 + named));
      out_.byte(static_cast<unsigned>(size));
      out_.text(data, size);
    } else {
      out_.byte(static_cast<unsigned>(kText32 + named));
      out_.number(static_cast<std::uint32_t>(size));
      out_.raw(data, size);
    }
    return true;
  }

  // Whether an object may be met more than once.
  bool may_return(PyObject* object) const { return Py_REFCNT(object) != 1 || is_careful_; }
  // Write the number of an object that was met before. 1: it was; 0: it is new; -1: failed.
  int met(PyObject* object) {
    if (!may_return(object)) return 0;
    const PointerMap::Entry& entry = objects_.at(object);
    if (!objects_.has(entry)) return 0;
    return by_number(entry.number) ? 1 : -1;
  }
  // Remember a new object that is numbered before its parts.
  bool remember(PyObject* object) {
    if (!may_return(object)) return true;
    if (!tag(kMemo)) return false;
    objects_.put(objects_.at(object), object, object_count_++);
    if (is_careful_) kept_.hold(object);
    return true;
  }
  bool by_number(std::uint32_t number) {
    if (number == kOpen) return leave(Stop::careful);
    if (!out_.room(6)) return false;
    out_.byte(kRef);
    out_.count(number);
    return true;
  }

  // Write a new object that is numbered after its parts, and so may turn out to be one of its own
  // parts: pickle then drops what it has made of it.
  template <class Write>
  bool numbered_after(PyObject* object, Write write) {
    if (!may_return(object)) return write();
    if (!is_careful_) objects_.put(objects_.at(object), object, kOpen);
    const std::size_t where = out_.size();
    if (!tag(kMemo) || !write()) return false;
    PointerMap::Entry& now = objects_.at(object);
    if (!is_careful_) {
      now.number = object_count_++;
    } else if (objects_.has(now)) {
      out_.change(where, kDrop);
      return by_number(now.number);
    } else {
      objects_.put(now, object, object_count_++);
      kept_.hold(object);
    }
    return true;
  }

  bool list(PyObject* object) {
    if (const int known = met(object); known != 0) return known > 0;
    const auto count = static_cast<std::size_t>(PyList_GET_SIZE(object));
    if (!remember(object) || !head(kList8, kList, count)) return false;
    PyObject* const* const items = reinterpret_cast<PyListObject*>(object)->ob_item;
    return count == 0 || (is_careful_ ? held_items(items, count) : this->items(items, count));
  }

  bool tuple(PyObject* object) {
    const auto count = static_cast<std::size_t>(PyTuple_GET_SIZE(object));
    if (count == 0) return head(kTuple8, kTuple, 0);
    if (const int known = met(object); known != 0) return known > 0;
    return numbered_after(object, [&] {
      return head(kTuple8, kTuple, count) &&
             items(reinterpret_cast<PyTupleObject*>(object)->ob_item, count);
    });
  }

  bool dict(PyObject* object) {
    if (const int known = met(object); known != 0) return known > 0;
    const auto count = static_cast<std::size_t>(PyDict_GET_SIZE(object));
    if (!remember(object) || !head(kDict8, kDict, count)) return false;
    if (count == 0) return true;
    std::array<PyObject*, 64> few;
    std::unique_ptr<PyObject*[]> many;
    PyObject** columns = few.data();
    if (2 * count > few.size()) {
      many.reset(new PyObject*[2 * count]);
      columns = many.get();
    }
    Py_ssize_t at = 0;
    std::size_t i = 0;
    while (i < count && PyDict_Next(object, &at, &columns[i], &columns[count + i]) != 0) ++i;
    if (!is_careful_) return items(columns, count) && items(columns + count, count);
    const Refs held(columns, 2 * count);
    return items(columns, count) && items(columns + count, count);
  }

  bool set(PyObject* object, Tag kind) {
    const auto count = static_cast<std::size_t>(PySet_GET_SIZE(object));
    if (!out_.room(10)) return false;
    out_.byte(kind);
    out_.count(count);
    if (count == 0) return true;
    std::vector<PyObject*> items;
    items.reserve(count);
    Refs held;
    const Ref iterator(PyObject_GetIter(object));
    if (!iterator) return false;
    while (PyObject* const item = PyIter_Next(iterator.get())) {
      items.push_back(item);
      if (is_careful_) {
        held.take(item);
      } else {
        Py_DECREF(item);  // the set has it
      }
    }
    return this->items(items.data(), count);
  }

  bool bytes(PyObject* object, Tag small, Tag large, Tag frame, const char* data, Py_ssize_t size) {
    if (size >= kFrameBytes) {
      // (A bytearray may change before it is sent.)
      const Ref apart(PyBytes_CheckExact(object) ? Py_NewRef(object)
                                                 : PyBytes_FromStringAndSize(data, size));
      return apart && this->frame(apart.get(), frame);
    }
    if (!out_.room(static_cast<std::size_t>(size) + 9)) return false;
    if (size < 256 && small != large) {
      out_.byte(small);
      out_.byte(static_cast<unsigned>(size));
    } else {
      out_.byte(large);
      out_.number(static_cast<std::uint64_t>(size));
    }
    out_.raw(data, static_cast<std::size_t>(size));
    return true;
  }
  // Add a frame. A reader takes them in the same order.
  bool frame(PyObject* buffer, Tag kind) {
    return PyList_Append(frames_.get(), buffer) == 0 && tag(kind);
  }

  // In encoder_items.hpp:
  bool items(PyObject* const* items, std::size_t count);
  bool held_items(PyObject* const* items, std::size_t count);
  Py_ssize_t run(PyObject* const* items, std::size_t count);
  Py_ssize_t same_object(PyObject* const* items, std::size_t count);
  Py_ssize_t integers(PyObject* const* items, std::size_t count);
  Py_ssize_t floats(PyObject* const* items, std::size_t count);
  Py_ssize_t strings(PyObject* const* items, std::size_t count);
  Py_ssize_t known_strings(PyObject* const* items, std::size_t count);

  // In encoder_instances.hpp:
  bool other(PyObject* object);
  bool instance(PyObject* object, ClassInfo& info);
  bool fields(Shape& shape, PyObject* const* values, std::size_t count);
  bool field(PyObject* value) { return value == nullptr ? tag(kUnset) : any(value); }
  bool structure(PyObject* object, const ClassInfo& info);
  bool array(PyObject* object, const ClassInfo& info);
  bool buffer(PyObject* object);
  bool global(PyObject* object, PyObject* name = nullptr);
  bool name_of(PyObject* object, PyObject* name, const std::string*& blob);
  bool class_by_name(const ClassInfo& info) { return global(info.type, info.name_blob); }
  bool global(const void* object, const std::string& blob);
  bool reduced(PyObject* object, const ClassInfo& info);
  bool reduction(PyObject* object, PyObject* reduction);
  bool maker(PyObject* object, PyObject* function, PyObject* arguments, unsigned parts);
  bool parts(PyObject* const* part);
  ClassInfo* learn(PyObject* object) {
    return classes_.learn(Py_TYPE(object), object, own_reducer_.get(), known_);
  }

  const Known& known_;
  const Ref own_reducer_;
  const Ref frames_;  // of this message, all but the first
  const Py_ssize_t frame_bytes_;
  ClassTable classes_;
  NameTable names_;
  SentRuns runs_;
  int careful_left_ = 0;  // messages that begin in the careful way

  // Of this message:
  std::uint64_t message_ = 0;
  bool is_careful_ = false;
  Stop stop_ = Stop::careful;
  Ref unknown_;  // an instance of a class that is to be learned
  Output out_;
  PointerMap objects_;
  PointerMap strings_;
  PointerMap globals_;
  std::vector<PyObject*> table_;  // strings by number
  std::size_t cursor_ = 0;        // the string that may come next
  std::uint32_t object_count_ = 0;
  std::uint32_t shape_count_ = 0;
  std::uint32_t global_count_ = 0;
  int depth_ = 0;
  Refs kept_;  // objects that were met, in the careful way
};

}  // namespace shmcast::codec

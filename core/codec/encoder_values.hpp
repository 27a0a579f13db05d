// Room: codec. What the encoder writes in one piece: values without parts, and runs of such.
// Knows: numbers, strings, buffers, names; what was met before in a message.
// Does not know: containers.
#pragma once

#include <Python.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "codec/caches.hpp"
#include "codec/classes.hpp"
#include "codec/wire.hpp"
#include "python/python.hpp"

namespace shmcast::codec {

// A message that is being written. Functions that return false have set an error, or said what is
// to be done instead. Those that write several items return how many; 0: none; -1: failed.
class ValueWriter {
 protected:
  // More than a message may view that is kept for practice.
  static constexpr std::size_t kNotToKeep = std::size_t{1} << 40;

  ValueWriter(const Known& known, Py_ssize_t frame_bytes)
      : known_(known), frame_bytes_(frame_bytes) {}

  void forget() {
    objects_.clear();
    strings_.clear();
    globals_.clear();
    table_.clear();
    object_count_ = global_count_ = 0;
    cursor_ = 0;
    given_.drop_to(0);
    kept_.drop_to(0);
  }

  // These return false, so that encode() goes on otherwise.
  bool leave_to_pickle() {
    is_for_pickle_ = true;
    return false;
  }
  bool be_careful() { return false; }

  bool tag(Tag tag) {
    out_.byte(tag);
    return true;
  }
  bool tag(Tag tag, std::uint64_t count) {
    out_.byte(tag);
    out_.count(count);
    return true;
  }

  bool data(Tag kind, const void* from, std::size_t size) {
    tag(kind, size);
    out_.raw(from, size);
    return true;
  }

  // Whether an object may be met more than once.
  bool may_return(PyObject* object) const { return Py_REFCNT(object) != 1 || is_careful_; }
  // Remember a new object that is numbered before its parts.
  bool remember(PyObject* object) {
    if (!may_return(object)) return true;
    objects_.put(object, object_count_++);
    if (is_careful_) kept_.hold(object);
    return tag(kMemo);
  }
  bool integer(PyObject* object) {
    std::int64_t value = 0;
    if (!small_int(object, value)) [[unlikely]] {
      int overflow = 0;
      value = PyLong_AsLongLongAndOverflow(object, &overflow);
      if (overflow != 0 || value >> 61 != value >> 62) return big(object);
    }
    return whole(value);
  }
  bool whole(std::int64_t value) {
    if (value >= kSmallest && value < kNone + kSmallest) {
      out_.byte(static_cast<unsigned>(value - kSmallest));
    } else {  // the sign last, so that small numbers are short
      out_.byte(kInt);
      out_.count(static_cast<std::uint64_t>(value) << 1 ^ static_cast<std::uint64_t>(value >> 63));
    }
    return true;
  }
  [[gnu::cold]] bool big(PyObject* object) {
    const std::size_t size = _PyLong_NumBits(object) / 8 + 1;
    tag(kBig, size);
    return write_int(object, out_.skip(size), size);
  }

  // A string that may be met again gets a number. Columns of one message often have the same
  // strings in the same order: the next one is tried first.
  bool text(PyObject* object) {
    const bool is_named = may_return(object);
    if (is_named) {
      const std::uint32_t* const number = is_at_cursor(object) ? nullptr : strings_.find(object);
      if (number != nullptr) cursor_ = *number;
      if (is_at_cursor(object)) return tag(kTextRef, cursor_++);
    }
    Py_ssize_t size = 0;
    const char* utf8 = PyUnicode_AsUTF8AndSize(object, &size);
    Ref encoded;
    if (utf8 == nullptr) {  // half of a surrogate pair
      PyErr_Clear();
      encoded = Ref(PyUnicode_AsEncodedString(object, "utf-8", "surrogatepass"));
      if (!encoded) return false;
      utf8 = PyBytes_AS_STRING(encoded.get());
      size = PyBytes_GET_SIZE(encoded.get());
    }
    if (is_named) {
      strings_.put(object, static_cast<std::uint32_t>(table_.size()));
      table_.push_back(object);
      if (is_careful_) kept_.hold(object);
    }
    return data(is_named ? kNamed : kText, utf8, static_cast<std::size_t>(size));
  }
  bool is_at_cursor(PyObject* object) const {
    return cursor_ < table_.size() && table_[cursor_] == object;
  }

  bool bytes(PyObject* object, Tag kind, const char* data, Py_ssize_t size) {
    if (size >= kFrameBytes) {
      // (A bytearray may change before it is sent.)
      const Ref apart(kind == kBytes ? Py_NewRef(object) : PyBytes_FromStringAndSize(data, size));
      return apart && frame(apart.get(), kind == kBytes ? kBytesFrame : kBytearrayFrame);
    }
    return this->data(kind, data, static_cast<std::size_t>(size));
  }
  // Add a frame. A reader takes them in the same order.
  bool frame(PyObject* buffer, Tag kind) {
    frames_.hold(buffer);
    return tag(kind);
  }

  // One that becomes a frame is not remembered: pickle writes it each time that it meets it.
  bool buffer(PyObject* object) {
    const Py_buffer* const view = PyPickleBuffer_GetBuffer(object);
    if (view == nullptr || PyBuffer_IsContiguous(view, 'A') == 0) {
      PyErr_Clear();
      return leave_to_pickle();
    }
    const bool is_read_only = view->readonly != 0;
    if (view->len < frame_bytes_) {
      const auto* const data = static_cast<const char*>(view->buf);
      return remember(object) && bytes(object, is_read_only ? kBytes : kBytearray, data, view->len);
    }
    const Ref raw(PyObject_CallMethodNoArgs(object, known_.raw));
    return raw && frame(raw.get(), is_read_only ? kReadOnlyFrame : kFrame);
  }

  bool global(const void* object, const Name& name) {
    if (const std::uint32_t* const number = globals_.find(object); number != nullptr) {
      return tag(kGlobal, *number);
    }
    globals_.put(object, global_count_++);
    return data(kNewGlobal, name.text.data(), name.text.size());
  }

  Py_ssize_t integers(PyObject* const* items, std::size_t count) {
    std::int64_t value = 0;
    const auto is_narrow = [&](PyObject* object) {
      return Py_TYPE(object) == &PyLong_Type && small_int(object, value) &&
             value == static_cast<std::int32_t>(value);
    };
    const auto many =
        static_cast<std::size_t>(std::find_if_not(items, items + count, is_narrow) - items);
    if (many < 3) return 0;
    tag(kInts, many);
    std::uint8_t* const place = out_.skip(4 * many);
    for (std::size_t i = 0; i < many; ++i) {
      small_int(items[i], value);
      std::memcpy(place + 4 * i, &value, 4);
    }
    return static_cast<Py_ssize_t>(many);
  }

  // Strings that have numbers, from the cursor on: where the first one is.
  Py_ssize_t known_strings(PyObject* const* items, std::size_t count) {
    const std::size_t first = cursor_;
    const std::size_t most = std::min({count, table_.size() - first, kMostRun});
    std::size_t many = 1;
    while (many < most && table_[first + many] == items[many]) ++many;
    cursor_ = first + many;
    tag(many == 1 ? kTextRef : kTextRefs, first);
    if (many > 1) out_.count(many);
    return static_cast<Py_ssize_t>(many);
  }

  // New strings: their sizes, then their characters.
  Py_ssize_t strings(PyObject* const* items, std::size_t count) {
    constexpr std::size_t kFew = 4;
    if (count < kFew) return 0;
    std::size_t size = 0;
    std::size_t many = 0;
    for (; many < std::min(count, kRunBytes) && size < kRunBytes; ++many) {
      PyObject* const text = items[many];
      if (Py_TYPE(text) != &PyUnicode_Type || !is_ready(text) ||
          !PyUnicode_IS_COMPACT_ASCII(text) || PyUnicode_GET_LENGTH(text) > 255) {
        break;
      }
      size += static_cast<std::size_t>(PyUnicode_GET_LENGTH(text));
    }
    if (many < kFew) return 0;
    tag(kStrings, many);
    out_.count(size);
    std::uint8_t* const sizes = out_.skip(many + size);
    std::uint8_t* characters = sizes + many;
    for (std::size_t i = 0; i < many; ++i) {
      sizes[i] = static_cast<std::uint8_t>(PyUnicode_GET_LENGTH(items[i]));
      std::memcpy(characters, PyUnicode_DATA(items[i]), sizes[i]);
      characters += sizes[i];
      if (is_careful_) kept_.hold(items[i]);
    }
    table_.insert(table_.end(), items, items + many);
    return static_cast<Py_ssize_t>(many);
  }

  const Known& known_;
  const Py_ssize_t frame_bytes_;

  // Of this message:
  bool is_careful_ = false;
  bool is_for_pickle_ = false;
  Output out_;
  PointerMap objects_;  // those that may be met again
  PointerMap strings_;
  PointerMap globals_;
  std::vector<PyObject*> table_;  // strings by number
  std::size_t cursor_ = 0;        // the string that may come next
  std::uint32_t object_count_ = 0;
  std::uint32_t global_count_ = 0;
  Refs frames_;  // all but the first
  Refs kept_;    // objects that were met, in the careful way
  Refs given_;   // in the careful way: objects, each with its reduction and what was drawn
};

}  // namespace shmcast::codec

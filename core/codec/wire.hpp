// Room: codec. The wire: tags, and how numbers and counts are written and read, within bounds.
// Knows: bytes.
// Does not know: what they stand for.
//
// A message is kMagic, a byte of flags, a value. A value begins with a tag; tags below kNone are
// small integers. All is little endian, counts are LEB128. Each message explains itself: classes
// and strings are numbered as they come, so that nothing depends on messages before.
#pragma once

#include <Python.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace shmcast::codec {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they lie");

inline constexpr std::uint8_t kMagic = 0xF5;
inline constexpr int kSmallest = -16;             // the integer that tag 0 stands for
inline constexpr std::size_t kMostRun = 4096;     // items that one value can stand for, so that
                                                  // counts have a bound
inline constexpr int kDeepest = 200;              // containers in containers
inline constexpr unsigned kRuns = 8;              // runs of strings that both ends remember
inline constexpr std::size_t kRunBytes = 65536;   // no longer ones
inline constexpr Py_ssize_t kFrameBytes = 65536;  // bytes objects of this size are frames
inline constexpr std::size_t kBitmapFields = 64;
inline constexpr std::uint16_t kListState = 0x8000;  // in the count of slots: pickle's state is a
                                                     // list of their values

enum Tag : std::uint8_t {
  kNone = 128,
  kFalse,
  kTrue,
  kU8,
  kI16,
  kI32,
  kI64,
  kBig,  // count, two's complement
  kFloat,
  kText8,  // ASCII: a byte or four of length
  kText32,
  kWide,    // not ASCII: bytes of a character, their count in four bytes, characters
  kNamed8,  // the same three; the string gets the next number
  kNamed32,
  kNamedWide,
  kTextRef8,  // a string by number
  kTextRef16,
  kTextRef32,
  kBytes8,
  kBytes64,
  kBytearray,
  kList8,
  kList,
  kTuple8,
  kTuple,
  kDict8,  // its keys, then its values
  kDict,
  kSet,
  kFrozenset,
  kMemo,  // the object that follows gets the next number: a list, dict, set, instance or enum's
          // member before its parts, all others after them
  kRef,   // an object by number
  kDrop,  // a value to forget, then the one that counts: an object is its own reduction's part
  // Only among the items of a container, and the columns of a dict:
  kInts8,  // count, unsigned numbers
  kInts16,
  kInts32,  // signed
  kFloats,
  kRun,       // count, a value: the same object so often
  kStrings,   // count, size (4 bytes each), lengths, characters: ASCII, each gets a number
  kTextRefs,  // number, count
  // Instances without a reduction of their own; a shape is a class and its attributes' names.
  kNewShape,   // size (4 bytes), counts of attributes and slots (2 each), names; fields
  kSame,       // shape, a bit for each field that is another than in the last of this shape; those
  kShaped,     // shape, fields
  kUnset,      // a slot without a value
  kNewGlobal,  // size (4 bytes), names of module and object
  kGlobal,     // by number
  kNewObject,  // flags, class, count, arguments: of __new__
  kNewObjectEx,
  kReduced,  // flags, function, count, arguments
  kEnd,
  kCall,  // class, count, arguments
  kMember,
  kNamedTuple,
  kArray,
  kFrame,  // the message's next one, as it is
  kReadOnlyFrame,
  kBytesFrame,
  kBytearrayFrame,
};

// What follows the arguments of a reduction, in this order.
inline constexpr unsigned kItems = 1;
inline constexpr unsigned kPairs = 2;
inline constexpr unsigned kSetter = 4;
inline constexpr unsigned kState = 8;

// What a message's flags tell.
inline constexpr std::uint8_t kRunsCode = 1;  // reductions: rebuilding it runs the code of others

// A message that is being written, in the bytes object that it becomes.
class Output {
 public:
  Output() = default;
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  ~Output() { Py_XDECREF(bytes_); }

  bool begin() {
    Py_CLEAR(bytes_);
    const std::size_t room = expected_ + expected_ / 8 + 128;
    bytes_ = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(room));
    if (bytes_ == nullptr) return false;
    at_ = start();
    end_ = at_ + room;
    return true;
  }

  // Make sure of room for so many bytes. Returns false with an error set.
  bool room(std::size_t size) {
    if (static_cast<std::size_t>(end_ - at_) >= size) [[likely]]
      return true;
    return grow(size);
  }
  // These need room for what they write.
  void byte(unsigned value) { *at_++ = static_cast<std::uint8_t>(value); }
  template <class Number>
  void number(Number value) {
    std::memcpy(at_, &value, sizeof value);
    at_ += sizeof value;
  }
  void count(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) byte(static_cast<unsigned>(value | 0x80) & 0xFF);
    byte(static_cast<unsigned>(value));
  }
  void raw(const void* data, std::size_t size) {
    std::memcpy(at_, data, size);
    at_ += size;
  }
  // Characters of a short string: copies of fixed sizes, which overlap, need no call and no loop.
  void text(const std::uint8_t* data, std::size_t size) {
    if (size > 32) return raw(data, size);
    if (size >= 16) {
      std::memcpy(at_, data, 16);
      std::memcpy(at_ + size - 16, data + size - 16, 16);
    } else if (size >= 8) {
      std::memcpy(at_, data, 8);
      std::memcpy(at_ + size - 8, data + size - 8, 8);
    } else if (size >= 4) {
      std::memcpy(at_, data, 4);
      std::memcpy(at_ + size - 4, data + size - 4, 4);
    } else {
      for (std::size_t i = 0; i < size; ++i) at_[i] = data[i];
    }
    at_ += size;
  }
  std::uint8_t* place() { return at_; }
  void skip(std::size_t size) { at_ += size; }

  std::size_t size() const { return static_cast<std::size_t>(at_ - start()); }
  void change(std::size_t where, unsigned byte) {
    start()[where] = static_cast<std::uint8_t>(byte);
  }

  // Return the bytes object, owned; null with an error set.
  PyObject* take() {
    expected_ = size();
    if (static_cast<std::size_t>(end_ - at_) > expected_ / 4 + 512) {
      _PyBytes_Resize(&bytes_, static_cast<Py_ssize_t>(expected_));
    } else {  // as it is: moving the bytes to a smaller place costs more than it gives
      Py_SET_SIZE(bytes_, static_cast<Py_ssize_t>(expected_));
      *at_ = 0;
    }
    return std::exchange(bytes_, nullptr);
  }

 private:
  std::uint8_t* start() const { return reinterpret_cast<std::uint8_t*>(PyBytes_AS_STRING(bytes_)); }
  [[gnu::cold, gnu::noinline]] bool grow(std::size_t size) {
    const std::size_t used = this->size();
    const std::size_t room = (used + size) * 2;
    if (_PyBytes_Resize(&bytes_, static_cast<Py_ssize_t>(room)) != 0) {
      at_ = end_ = nullptr;
      return false;
    }
    at_ = start() + used;
    end_ = start() + room;
    return true;
  }

  PyObject* bytes_ = nullptr;  // only ours, until it is taken
  std::uint8_t* at_ = nullptr;
  std::uint8_t* end_ = nullptr;
  std::size_t expected_ = 256;
};

// A message that is being read. Nothing in it is trusted.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  bool is_at_end() const { return at_ == end_; }
  std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }
  // Return whether there are so many bytes; if not, with an error set.
  bool has(std::uint64_t size) const {
    if (left() >= size) [[likely]]
      return true;
    return malformed();
  }
  std::uint8_t peek() const { return *at_; }
  std::uint8_t byte() { return *at_++; }
  template <class Number>
  Number number() {
    Number value;
    std::memcpy(&value, at_, sizeof value);
    at_ += sizeof value;
    return value;
  }
  const std::uint8_t* raw(std::size_t size) { return std::exchange(at_, at_ + size); }
  bool count(std::uint64_t& value) {
    value = 0;
    for (unsigned shift = 0; shift < 63; shift += 7) {
      if (at_ == end_) break;
      const std::uint8_t part = *at_++;
      value |= std::uint64_t{part & 0x7FU} << shift;
      if (part < 0x80) return true;
    }
    return malformed();
  }
  // The count of items that follow, which the rest of the message must be able to hold.
  bool count_of_items(std::uint64_t& value) { return count(value) && can_hold(value); }
  bool can_hold(std::uint64_t items) const { return items <= left() * kMostRun || malformed(); }

  // Return false with an error set.
  [[gnu::cold, gnu::noinline]] static bool malformed() {
    if (PyErr_Occurred() == nullptr) PyErr_SetString(PyExc_ValueError, "the message is malformed");
    return false;
  }

 private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
};

}  // namespace shmcast::codec

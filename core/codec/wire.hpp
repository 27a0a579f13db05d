// Room: codec. The wire: tags, and how numbers are written and read, within bounds.
// Knows: bytes.
// Does not know: what they stand for.
//
// A message is kMagic, kFormat and a value. A value begins with a tag; tags below kNone are
// small integers. Numbers are little endian, counts and sizes are LEB128 (here: "count"). Each
// message explains itself: what it names is numbered as it comes, and nothing depends on messages
// before.
#pragma once

#include <Python.h>

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>

namespace shmcast::codec {

static_assert(std::endian::native == std::endian::little, "numbers are copied as they lie");

inline constexpr std::uint8_t kMagic = 0xF5;
inline constexpr std::uint8_t kFormat = 1;        // of what follows: another is not read
inline constexpr int kSmallest = -16;             // the integer that tag 0 stands for
inline constexpr std::size_t kMostRun = 4096;     // items that one value can stand for: a bound
inline constexpr int kDeepest = 200;              // values in values
inline constexpr std::size_t kRunBytes = 65536;   // of strings in a run, about
inline constexpr Py_ssize_t kFrameBytes = 65536;  // bytes objects of this size are frames
inline constexpr std::size_t kBitmapFields = 64;
inline constexpr std::size_t kMostKnown = 1024;  // classes, names or shapes that an end remembers

// clang-format off
enum Tag : std::uint8_t {
  kNone = 128, kFalse, kTrue,
  kInt, kFloat,                      // count, of which the lowest bit is the sign; 64 bits
  kBig,                              // count, bytes of two's complement
  kText, kNamed,                     // count, UTF-8; such that gets the next number
  kTextRef,                          // one by number
  kBytes, kBytearray,                // count, data
  kList, kTuple, kSet, kFrozenset,   // count, items
  kDict,                             // count, keys, values
  kMemo,  // the object that follows gets the next number: a list, dict, set, bytes or instance
          // before its parts, any other after them
  kRef,   // an object by number
  // Only among items and keys and values, where each stands for several:
  kInts,                             // count, 32 bits each
  kRun,                              // count, value: the same object so often
  kStrings,                          // count, size, lengths, characters: ASCII, with numbers
  kTextRefs,                         // number, count
  // Instances without a reduction of their own. A shape is a class and its attributes' names.
  kNewShape,                         // size, counts of attributes and slots, names; fields
  kSame,                             // shape, a bit for each field, fields: those that are other
                                     // objects than in the last instance
  kShaped,                           // shape, fields
  kUnset,                            // a slot without a value
  kNewGlobal, kGlobal,               // size, names of module and object; by number
  kCall, kNamedTuple,                // class, count, items
  kReduced,                          // parts, function, count, arguments; the parts
  kFrame, kReadOnlyFrame,            // the message's next one, as it is
  kBytesFrame, kBytearrayFrame,      // the same, as these types
};
// clang-format on

// What may follow the arguments of a reduction, in this order: count, items; count, keys, values;
// what sets the state, if not the object; the state. kNew: its function is a class's __new__.
enum Part : unsigned { kItems = 1, kPairs = 2, kSetter = 4, kState = 8, kNew = 16 };
// In a shape's count of slots: the state is a list of their values, as of a frozen dataclass.
inline constexpr unsigned kListState = 0x8000;

// A message that is being written, in the bytes object that it becomes. It grows as needed.
class Output {
 public:
  Output() = default;
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;
  ~Output() { Py_XDECREF(bytes_); }

  void begin() { at_ = bytes_ == nullptr ? nullptr : start(); }
  void byte(unsigned value) {
    if (at_ == end_) grow(1);
    *at_++ = static_cast<std::uint8_t>(value);
  }
  template <class Number>
  void number(Number value) {
    raw(&value, sizeof value);
  }
  void count(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) byte(static_cast<unsigned>(value & 0x7F) | 0x80);
    byte(static_cast<unsigned>(value));
  }
  void raw(const void* data, std::size_t size) {
    if (size > 0) std::memcpy(skip(size), data, size);
  }
  // Return the place of so many bytes, which are to be written.
  std::uint8_t* skip(std::size_t size) {
    if (static_cast<std::size_t>(end_ - at_) < size) grow(size);
    return std::exchange(at_, at_ + size);
  }

  // The message, until begin() or take().
  const std::uint8_t* data() const { return start(); }
  std::size_t size() const { return static_cast<std::size_t>(at_ - start()); }

  // Return the message, owned; null with an error set. The memory of a small one is used again.
  PyObject* take() {
    const Py_ssize_t length = at_ - start();
    if (length < kFrameBytes) return PyBytes_FromStringAndSize(PyBytes_AS_STRING(bytes_), length);
    _PyBytes_Resize(&bytes_, length);
    end_ = nullptr;
    return std::exchange(bytes_, nullptr);
  }

 private:
  std::uint8_t* start() const { return reinterpret_cast<std::uint8_t*>(PyBytes_AS_STRING(bytes_)); }
  [[gnu::cold, gnu::noinline]] void grow(std::size_t more) {
    const std::size_t used = bytes_ == nullptr ? 0 : static_cast<std::size_t>(at_ - start());
    const std::size_t room = 2 * (used + more) + 128;
    if (bytes_ == nullptr) {
      bytes_ = PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(room));
    } else {
      _PyBytes_Resize(&bytes_, static_cast<Py_ssize_t>(room));
    }
    if (bytes_ == nullptr) {
      PyErr_Clear();
      at_ = end_ = nullptr;
      throw std::bad_alloc();  // which becomes a MemoryError
    }
    at_ = start() + used;
    end_ = start() + room;
  }

  PyObject* bytes_ = nullptr;
  std::uint8_t* at_ = nullptr;
  std::uint8_t* end_ = nullptr;
};

// A message that is being read. Nothing in it is trusted.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : at_(data), end_(data + size) {}

  std::size_t left() const { return static_cast<std::size_t>(end_ - at_); }
  bool is_next(Tag tag) const { return at_ != end_ && *at_ == tag; }
  bool is_run() const { return *at_ >= kInts && *at_ <= kTextRefs; }
  // Return whether there are so many bytes; if not, an error is set.
  bool has(std::uint64_t size) const { return left() >= size || malformed(); }
  std::uint8_t byte() { return *at_++; }
  template <class Number>
  Number number() {
    Number value;
    std::memcpy(&value, raw(sizeof value), sizeof value);
    return value;
  }
  const std::uint8_t* raw(std::size_t size) { return std::exchange(at_, at_ + size); }
  bool count(std::uint64_t& value) {
    value = 0;
    for (unsigned shift = 0; shift < 64 && at_ != end_; shift += 7) {
      const std::uint8_t part = *at_++;
      value |= std::uint64_t{part & 0x7FU} << shift;
      if (part < 0x80) return true;
    }
    return malformed();
  }
  // The size of data that follows.
  bool size(std::uint64_t& value) { return count(value) && has(value); }
  // The count of items that follow, which the rest must be able to hold.
  bool items(std::uint64_t& value) {
    return count(value) && (value <= left() * kMostRun || malformed());
  }

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

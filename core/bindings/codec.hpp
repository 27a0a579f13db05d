// Room: bindings. The codec of objects, for Python.
// Knows: encoders and decoders, what to do with objects that they don't take.
// Does not know: what a message looks like.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "bindings/gil.hpp"
#include "bindings/practice.hpp"
#include "codec/decoder_reductions.hpp"
#include "codec/encoder_reductions.hpp"
#include "codec/wire.hpp"
#include "wait/gate.hpp"

namespace shmcast {

namespace nb = nanobind;

// The bytes of a frame, which stay where they are for as long as this exists. Throws what the frame
// raises if it has none.
class HeldBytes {
 public:
  explicit HeldBytes(PyObject* frame) {
#ifndef Py_GIL_DISABLED
    if (PyByteArray_CheckExact(frame)) {  // most are: without the ways of the buffer protocol
      array_ = reinterpret_cast<PyByteArrayObject*>(Py_NewRef(frame));
      ++array_->ob_exports;
      data_ = PyByteArray_AS_STRING(frame);
      size_ = PyByteArray_GET_SIZE(frame);
      return;
    }
#endif
    if (PyObject_GetBuffer(frame, &view_, PyBUF_SIMPLE) != 0) throw nb::python_error();
    data_ = view_.buf;
    size_ = view_.len;
  }
  HeldBytes(const HeldBytes&) = delete;
  HeldBytes& operator=(const HeldBytes&) = delete;
  ~HeldBytes() {
    if (array_ == nullptr) {
      stops_at_exit([this] { PyBuffer_Release(&view_); });
    } else {
      --array_->ob_exports;
      Py_DECREF(array_);
    }
  }
  const std::uint8_t* data() const { return static_cast<const std::uint8_t*>(data_); }
  std::size_t size() const { return static_cast<std::size_t>(size_); }

 private:
  PyByteArrayObject* array_ = nullptr;  // null: it is another frame
  Py_buffer view_;                      // of another frame
  const void* data_;
  Py_ssize_t size_;
};

// A decoder, and memory for a message that it decodes.
class MessageDecoder {
 public:
  MessageDecoder(const codec::Known& known, PyObject* find) : decoder_(known, find) {}

  // See codec::Decoder.
  PyObject* decode(std::span<const std::uint8_t> message, PyObject* frames,
                   bool is_practice = false) {
    is_well_ = false;
    PyObject* const object = decoder_.decode(message.data(), message.size(), frames, is_practice);
    is_well_ = true;
    return object;
  }
  bool ran_code() const { return decoder_.ran_code(); }
  // Whether it can decode another: it has not thrown.
  bool is_well() const { return is_well_; }

  // Return memory for a message of so many bytes.
  std::byte* place(std::size_t size) {
    if (size > room_) {
      memory_ = std::make_unique_for_overwrite<std::uint8_t[]>(2 * size);
      room_ = 2 * size;
    }
    size_ = size;
    return reinterpret_cast<std::byte*>(memory_.get());
  }
  std::span<const std::uint8_t> message() const { return {memory_.get(), size_}; }
  // Return it as frames, in memory of their own.
  nb::list frames() const {
    const auto* const data = reinterpret_cast<const char*>(memory_.get());
    return list_of(std::vector<nb::object>{
        owned(PyByteArray_FromStringAndSize(data, static_cast<Py_ssize_t>(size_)))});
  }

  bool can_practise = false;  // the message in its memory

 private:
  codec::Decoder decoder_;
  bool is_well_ = true;
  std::unique_ptr<std::uint8_t[]> memory_;
  std::size_t room_ = 0;
  std::size_t size_ = 0;
};

class ObjectCoder {
 public:
  // `functions`: of _codecs/object_classes.py. `own_reducer`, `frame_bytes`: an encoder's. `find`:
  // a decoder's. The next take what this can't: an object, one with what reductions of its
  // parts gave, or a message.
  // `refusals`: a tuple of the errors after which the first is asked all the same.
  ObjectCoder(nb::handle functions, nb::object own_reducer, nb::object find, Py_ssize_t frame_bytes,
              nb::object encode_otherwise, nb::object encode_again, nb::object decode_otherwise,
              nb::object refusals)
      : own_reducer_(std::move(own_reducer)),
        find_(std::move(find)),
        encode_otherwise_(std::move(encode_otherwise)),
        encode_again_(std::move(encode_again)),
        decode_otherwise_(std::move(decode_otherwise)),
        refusals_(std::move(refusals)),
        frame_bytes_(frame_bytes) {
    if (!known_.take(functions.attr("CORE").ptr())) throw nb::python_error();
  }

  // A message that was encoded: frames, or the bytes of its only one, if they are few. Those are in
  // memory of its encoder, which nobody else has meanwhile.
  class Encoded {
   public:
    explicit Encoded(ObjectCoder& coder) : coder_(coder) {}
    Encoded(const Encoded&) = delete;
    Encoded& operator=(const Encoded&) = delete;
    ~Encoded() { give_back(); }

    const nb::object& frames() const { return frames_; }  // null: there are bytes
    std::span<const std::byte> bytes() const { return bytes_; }
    // Return the frames, which it has no more.
    nb::object take_frames() {
      return frames_.is_valid() ? std::move(frames_) : owned(encoder_->list());
    }

   private:
    friend ObjectCoder;
    // Take over the encoder, and what it has written. Returns whether there is something. (One that
    // has thrown is not used again.)
    bool take(bool is_written, std::unique_ptr<codec::Encoder>& encoder) {
      encoder_ = std::move(encoder);
      if (!is_written) return false;
      bytes_ = encoder_->small_message();
      if (bytes_.empty()) frames_ = nb::steal(encoder_->list());
      return !bytes_.empty() || frames_.is_valid();
    }
    void give_back() {
      if (encoder_ != nullptr) coder_.encoder_ = std::move(encoder_);
    }
    // The bytes of the message, as a ring takes them, with the memory beside it.
    Py_ssize_t size() const {
      return frames_.is_valid() ? size_of(frames_.ptr(), Memory::all)
                                : size_with_entry(bytes_.size());
    }

    ObjectCoder& coder_;
    std::unique_ptr<codec::Encoder> encoder_;
    std::span<const std::byte> bytes_;
    nb::object frames_;
  };

  void encode(nb::handle object, Encoded& message) {
#ifndef Py_GIL_DISABLED  // without it, other threads may change the object meanwhile
    if (--skipped_ < 0) {
      std::unique_ptr<codec::Encoder> encoder = take_encoder();
      const bool is_written = message.take(encoder->write(object.ptr()), encoder);
      Ref given = message.encoder_->take_given();
      if (keeps_sent_) {
        const bool can_practise = is_written && message.encoder_->was_plain() &&
                                  message.size() < Practice::kMostBytes &&
                                  message.encoder_->viewed_bytes() < kMostKept;
        keep(sent_, can_practise ? nb::borrow(object) : nb::none());
      }
      if (message.bytes_.empty()) message.give_back();
      if (is_written) {
        misses_ = skipped_ = 0;
        return;
      }
      if (PyErr_Occurred() != nullptr) {
        if (PyErr_ExceptionMatches(refusals_.ptr()) == 0) throw nb::python_error();
        PyErr_Clear();  // (pickle will raise it, too)
      }
      // Where most objects are not taken, trying costs more than it gives.
      misses_ = std::min(misses_ + 1, kMostMisses);
      skipped_ = (1 << misses_) - 2;
      if (given) {
        message.frames_ = call(encode_again_, object, nb::steal(given.release()));
        return;
      }
    }
#endif
    message.frames_ = call(encode_otherwise_, object);
  }
  nb::object encode(nb::handle object) {
    Encoded message(*this);
    encode(object, message);
    return message.take_frames();
  }

  // Encode the object that was sent last once more, which runs no code of others. If that can't be,
  // or nothing was sent since this was first called, encode another.
  void practise_encode(nb::handle otherwise, Encoded& message) {
    if constexpr (kPractises) keeps_sent_ = true;
    if (sent_.is_none()) return encode(otherwise, message);
    std::unique_ptr<codec::Encoder> encoder = take_encoder();
    if (message.take(encoder->practise(sent_.ptr()), encoder)) return;
    PyErr_Clear();
    message.give_back();
    keep(sent_, nb::none());
    encode(otherwise, message);
  }
  nb::object practise_encode(nb::handle otherwise) {
    Encoded message(*this);
    practise_encode(otherwise, message);
    return message.take_frames();
  }

  // A decoder, which nobody else has meanwhile, and a message in its memory.
  class Decoding {
   public:
    explicit Decoding(ObjectCoder& coder) : coder_(coder) {}
    Decoding(const Decoding&) = delete;
    Decoding& operator=(const Decoding&) = delete;
    ~Decoding() {
      if (decoder_ != nullptr && decoder_->is_well()) coder_.give_back(std::move(decoder_));
    }
    // Return memory for a message of so many bytes; null: they are too many.
    std::byte* place(std::size_t size) {
      return size <= kMostPlaced ? decoder().place(size) : nullptr;
    }
    MessageDecoder& decoder() {
      if (decoder_ == nullptr) decoder_ = coder_.take_decoder();
      return *decoder_;
    }

   private:
    static constexpr std::size_t kMostPlaced = 64 * 1024;
    ObjectCoder& coder_;
    std::unique_ptr<MessageDecoder> decoder_;
  };

  nb::object decode(const nb::list& frames) {
    if (frames.size() == 0) return call(decode_otherwise_, frames);
    const HeldBytes bytes(PyList_GET_ITEM(frames.ptr(), 0));
    if (!is_ours({bytes.data(), bytes.size()})) return call(decode_otherwise_, frames);
    Decoding decoding(*this);
    MessageDecoder& decoder = decoding.decoder();
    PyObject* const object = decoder.decode({bytes.data(), bytes.size()}, frames.ptr());
    if constexpr (kPractises) {
      const bool can_practise = object != nullptr && !decoder.ran_code() &&
                                practice_.takes(size_of(frames.ptr(), Memory::none));
      received_ = can_practise ? without_memory(frames) : nb::none();
    }
    decoder.can_practise = false;
    return owned(object);
  }
  // Decode a message that was placed.
  nb::object decode(Decoding& decoding) {
    MessageDecoder& placed = decoding.decoder();
    const auto bytes = placed.message();
    placed.can_practise = false;
    if (!is_ours(bytes)) return call(decode_otherwise_, placed.frames());
    PyObject* const object = placed.decode(bytes, nullptr);
    if constexpr (kPractises) {
      placed.can_practise =
          object != nullptr && !placed.ran_code() && practice_.takes(size_with_entry(bytes.size()));
      received_ = nb::none();
    }
    return owned(object);
  }

  // Return the message that was decoded last, if it can be decoded for practice.
  nb::object practice_frames() {
    Decoding decoding(*this);
    const MessageDecoder& placed = decoding.decoder();
    return placed.can_practise ? placed.frames() : received_;
  }

  // Decode such a message once more.
  nb::object practise_decode(const nb::list& frames) {
    if (frames.size() > 0) {
      const HeldBytes bytes(PyList_GET_ITEM(frames.ptr(), 0));
      Decoding decoding(*this);
      practise(decoding.decoder(), {bytes.data(), bytes.size()}, frames.ptr(),
               size_of(frames.ptr(), Memory::none));
    }
    return nb::none();
  }
  nb::object practise_decode(Decoding& decoding) {
    const auto bytes = decoding.decoder().message();
    practise(decoding.decoder(), bytes, nullptr, size_with_entry(bytes.size()));
    return nb::none();
  }

 private:
  static constexpr int kMostMisses = 6;
  static constexpr std::size_t kMostKept = 1024 * 1024;
  static constexpr Py_ssize_t kEntry = 8;  // of the frame table

  static bool is_ours(std::span<const std::uint8_t> message) {
    return !message.empty() && message[0] == codec::kMagic;
  }

  void practise(MessageDecoder& by, std::span<const std::uint8_t> message, PyObject* frames,
                Py_ssize_t size) {
    if (!kPractises || !is_ours(message)) return;
    const std::int64_t began = monotonic_ns();
    PyObject* const object = by.decode(message, frames, true);
    Py_XDECREF(object);
    PyErr_Clear();
    if (practice_.goes_on(object != nullptr, monotonic_ns() - began, size)) return;
    received_ = nb::none();
    by.can_practise = false;
  }

  static Py_ssize_t size_with_entry(std::size_t bytes) {
    return static_cast<Py_ssize_t>(bytes) + kEntry;
  }
  // Return the bytes of a message, as a ring takes them, with the memory beside it or without;
  // much, if it has other frames.
  enum class Memory : std::uint8_t { all, none };
  static Py_ssize_t size_of(PyObject* frames, Memory beside) {
    constexpr Py_ssize_t kMost = Practice::kMostBytes;
    Py_ssize_t size = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(frames); ++i) {
      PyObject* const frame = PyList_GET_ITEM(frames, i);
      const Py_ssize_t own = i > 0 && beside == Memory::none ? 0
                             : PyByteArray_CheckExact(frame) ? PyByteArray_GET_SIZE(frame)
                             : PyBytes_CheckExact(frame)     ? PyBytes_GET_SIZE(frame)
                             : PyMemoryView_Check(frame)     ? PyMemoryView_GET_BUFFER(frame)->len
                                                             : kMost;
      size = std::min(size + own + kEntry, kMost);
    }
    return size;
  }
  // Put a value in the place of one that may be the last reference to a user's object.
  static void keep(Reference& place, nb::object value) {
    const Reference last = std::exchange(place, std::move(value));
  }

  // One is taken out while it is used: an object whose reduction encodes another needs two.
  std::unique_ptr<codec::Encoder> take_encoder() {
    if (encoder_ != nullptr) return std::move(encoder_);
    return std::make_unique<codec::Encoder>(known_, own_reducer_.ptr(), frame_bytes_);
  }

  // Return a message to be decoded for practice: without the memory beside it, which is the
  // program's, or a part of the arena. A decoder makes empty arrays then.
  nb::object without_memory(const nb::list& frames) const {
    if (frames.size() == 1) return frames;
    nb::list bare = list_of(std::vector<nb::object>(frames.size(), empty_));
    bare[0] = frames[0];
    return bare;
  }

  std::unique_ptr<MessageDecoder> take_decoder() {
    std::unique_ptr<MessageDecoder> decoder;
    {
      const nb::ft_lock_guard guard(mutex_);
      decoder = std::move(decoder_);
    }
    if (decoder != nullptr) return decoder;
    return std::make_unique<MessageDecoder>(known_, find_.ptr());
  }
  void give_back(std::unique_ptr<MessageDecoder> decoder) {
    const nb::ft_lock_guard guard(mutex_);
    std::swap(decoder_, decoder);
  }

  codec::Known known_;
  nb::object own_reducer_;
  nb::object find_;
  nb::object encode_otherwise_;
  nb::object encode_again_;
  nb::object decode_otherwise_;
  nb::object refusals_;
  Py_ssize_t frame_bytes_;
  std::unique_ptr<codec::Encoder> encoder_;
  std::unique_ptr<MessageDecoder> decoder_;
  nb::ft_mutex mutex_;
  Reference sent_ = nb::none();  // the last object, if it is plain and is to be kept
  nb::object received_ =
      nb::none();  // the last message, if it may be decoded again, and was frames
  nb::object empty_ = owned(PyByteArray_FromStringAndSize(nullptr, 0));
  Practice practice_;
  bool keeps_sent_ = false;
  int misses_ = 0;   // in a row
  int skipped_ = 0;  // objects that are not tried next
};

}  // namespace shmcast

// Room: bindings. The codec of objects, for Python.
// Knows: encoders and decoders, what to do with objects that they don't take.
// Does not know: what a message looks like.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

#include "bindings/convert.hpp"
#include "bindings/gil.hpp"
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

  nb::object encode(nb::handle object) {
#ifndef Py_GIL_DISABLED  // without it, other threads may change the object meanwhile
    if (--skipped_ < 0) {
      std::unique_ptr<codec::Encoder> encoder = take_encoder();
      PyObject* const frames = encoder->encode(object.ptr());
      Ref given = encoder->take_given();
      if (keeps_sent_) {
        const bool can_practise = frames != nullptr && encoder->was_plain() &&
                                  size_of(frames, Memory::all) < kMostPractised &&
                                  encoder->viewed_bytes() < kMostKept;
        keep(sent_, can_practise ? nb::borrow(object) : nb::none());
      }
      encoder_ = std::move(encoder);
      if (frames != nullptr) {
        misses_ = skipped_ = 0;
        return nb::steal(frames);
      }
      if (PyErr_Occurred() != nullptr) {
        if (PyErr_ExceptionMatches(refusals_.ptr()) == 0) throw nb::python_error();
        PyErr_Clear();  // (pickle will raise it, too)
      }
      // Where most objects are not taken, trying costs more than it gives.
      misses_ = std::min(misses_ + 1, kMostMisses);
      skipped_ = (1 << misses_) - 2;
      if (given) return call(encode_again_, object, nb::steal(given.release()));
    }
#endif
    return call(encode_otherwise_, object);
  }

  nb::object decode(const nb::list& frames) {
    PyObject* object = nullptr;
    if (!try_to_decode(frames, false, object)) return call(decode_otherwise_, frames);
    return owned(object);
  }

  // Encode the object that was sent last once more, which runs no code of others. If that can't be,
  // or nothing was sent since this was first called, encode another.
  nb::object practise_encode(nb::handle otherwise) {
    keeps_sent_ = true;
    if (sent_.is_none()) return encode(otherwise);
    std::unique_ptr<codec::Encoder> encoder = take_encoder();
    PyObject* const frames = encoder->practise(sent_.ptr());
    encoder_ = std::move(encoder);
    if (frames != nullptr) return nb::steal(frames);
    keep(sent_, nb::none());
    return encode(otherwise);
  }

  // Return the message that was decoded last, if it can be decoded for practice.
  nb::object practice_frames() const { return received_; }

  // Decode such a message once more. One that takes long is given up for a while, and so are others
  // of its size. (Three times in a row, because the first round meets cold caches. Not for ever,
  // because a busy machine makes any message take long.)
  nb::object practise_decode(const nb::list& frames) {
    decode_in_time(frames);
    return nb::none();
  }

 private:
  static constexpr int kMostMisses = 6;
  static constexpr std::int64_t kLongNs = 20'000;
  static constexpr Py_ssize_t kMostPractised = 64 * 1024;
  static constexpr std::size_t kMostKept = 1024 * 1024;
  static constexpr int kShortestPause = 64;  // messages
  static constexpr int kLongestPause = 4096;

  void decode_in_time(const nb::list& frames) {
    const std::int64_t began = monotonic_ns();
    PyObject* object = nullptr;
    if (!try_to_decode(frames, true, object)) return;
    Py_XDECREF(object);
    PyErr_Clear();
    const bool is_quick = object != nullptr && monotonic_ns() - began < kLongNs;
    slow_rounds_ = is_quick ? 0 : slow_rounds_ + 1;
    if (is_quick) pause_ = kShortestPause;
    if (object != nullptr && slow_rounds_ < 3) return;
    if (object != nullptr) {
      too_long_ = std::min(too_long_, size_of(frames.ptr(), Memory::none));
      left_of_pause_ = pause_;
      pause_ = std::min(2 * pause_, kLongestPause);
    }
    slow_rounds_ = 0;
    received_ = nb::none();
  }

  // Return the bytes of a message, as a ring takes them, with the memory beside it or without;
  // much, if it has other frames.
  enum class Memory : std::uint8_t { all, none };
  static Py_ssize_t size_of(PyObject* frames, Memory beside) {
    constexpr Py_ssize_t kEntry = 8;  // of the frame table
    Py_ssize_t size = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(frames); ++i) {
      PyObject* const frame = PyList_GET_ITEM(frames, i);
      const Py_ssize_t own = i > 0 && beside == Memory::none ? 0
                             : PyByteArray_CheckExact(frame) ? PyByteArray_GET_SIZE(frame)
                             : PyBytes_CheckExact(frame)     ? PyBytes_GET_SIZE(frame)
                             : PyMemoryView_Check(frame)     ? PyMemoryView_GET_BUFFER(frame)->len
                                                             : kMostPractised;
      size = std::min(size + own + kEntry, kMostPractised);
    }
    return size;
  }
  // Whether to practise a message of this size, one of those that count for a pause.
  bool may_be_practised(Py_ssize_t size) {
    if (size < too_long_) return true;
    if (left_of_pause_ > 0) {
      --left_of_pause_;
      return false;
    }
    too_long_ = kMostPractised;
    return size < too_long_;
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

  // Decode a message; null: an error is set. Returns false if it is none of ours. One that can be
  // decoded for practice is kept.
  bool try_to_decode(const nb::list& frames, bool is_practice, PyObject*& object) {
    if (frames.size() == 0) return false;
    const HeldBytes bytes(PyList_GET_ITEM(frames.ptr(), 0));
    const std::uint8_t* const data = bytes.data();
    if (bytes.size() == 0 || data[0] != codec::kMagic) return false;
    std::unique_ptr<codec::Decoder> decoder;
    {
      const nb::ft_lock_guard guard(mutex_);
      decoder = std::move(decoder_);
    }
    if (decoder == nullptr) decoder = std::make_unique<codec::Decoder>(known_, find_.ptr());
    object = decoder->decode(data, bytes.size(), frames.ptr(), is_practice);
    if (!is_practice) {
      const bool can_practise = object != nullptr && !decoder->ran_code() &&
                                may_be_practised(size_of(frames.ptr(), Memory::none));
      received_ = can_practise ? without_memory(frames) : nb::none();
    }
    const nb::ft_lock_guard guard(mutex_);
    std::swap(decoder_, decoder);
    return true;
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
  std::unique_ptr<codec::Decoder> decoder_;
  nb::ft_mutex mutex_;
  Reference sent_ = nb::none();       // the last object, if it is plain and is to be kept
  nb::object received_ = nb::none();  // the last message, if it may be decoded again
  nb::object empty_ = owned(PyByteArray_FromStringAndSize(nullptr, 0));
  bool keeps_sent_ = false;
  int slow_rounds_ = 0;                   // of practice, in a row
  Py_ssize_t too_long_ = kMostPractised;  // messages of this size are not practised now
  int pause_ = kShortestPause;            // the next one
  int left_of_pause_ = 0;
  int misses_ = 0;   // in a row
  int skipped_ = 0;  // objects that are not tried next
};

}  // namespace shmcast

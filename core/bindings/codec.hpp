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
#include "codec/decoder_instances.hpp"
#include "codec/encoder_instances.hpp"
#include "codec/python.hpp"
#include "codec/wire.hpp"

namespace shmcast {

namespace nb = nanobind;

class ObjectCoder {
 public:
  // `functions`: of _codecs/object_classes.py. `make_reducers`: given a list for frames, returns an
  // encoder's own_reducer, which may add to it. `find`: a decoder's. The last two take what this
  // can't: an object, or a message.
  ObjectCoder(nb::handle functions, nb::object make_reducers, nb::object find,
              Py_ssize_t frame_bytes, nb::object encode_otherwise, nb::object decode_otherwise)
      : make_reducers_(std::move(make_reducers)),
        find_(std::move(find)),
        encode_otherwise_(std::move(encode_otherwise)),
        decode_otherwise_(std::move(decode_otherwise)),
        frame_bytes_(frame_bytes) {
    if (!known_.find(functions.ptr())) throw nb::python_error();
  }

  nb::object encode(nb::handle object) {
#ifndef Py_GIL_DISABLED  // without it, other threads may change the object meanwhile
    if (--skipped_ < 0) {
      // One is taken out while it is used: an object whose reduction encodes another needs two.
      std::unique_ptr<codec::Encoder> encoder =
          encoder_ != nullptr ? std::move(encoder_) : new_encoder();
      PyObject* const frames = encoder->encode(object.ptr());
      encoder_ = std::move(encoder);
      if (frames != nullptr) {
        misses_ = skipped_ = 0;
        return nb::steal(frames);
      }
      if (PyErr_Occurred() != nullptr) throw nb::python_error();
      // Where most objects are not taken, trying costs more than it gives.
      misses_ = std::min(misses_ + 1, kMostMisses);
      skipped_ = (1 << misses_) - 2;
    }
#endif
    return call(encode_otherwise_, object);
  }

  nb::object decode(const nb::list& frames) {
    if (frames.size() == 0) return call(decode_otherwise_, frames);
    Py_buffer view;
    if (PyObject_GetBuffer(PyList_GET_ITEM(frames.ptr(), 0), &view, PyBUF_SIMPLE) != 0) {
      throw nb::python_error();
    }
    const auto* const data = static_cast<const std::uint8_t*>(view.buf);
    PyObject* object = nullptr;
    const bool is_ours = view.len > 0 && data[0] == codec::kMagic;
    if (is_ours) {
      std::unique_ptr<codec::Decoder> decoder;
      {
        const nb::ft_lock_guard guard(mutex_);
        decoder = std::move(decoder_);
      }
      if (decoder == nullptr) {
        decoder = std::make_unique<codec::Decoder>(known_, find_.ptr());
      }
      object = decoder->decode(data, static_cast<std::size_t>(view.len), frames.ptr());
      const nb::ft_lock_guard guard(mutex_);
      std::swap(decoder_, decoder);
    }
    PyBuffer_Release(&view);
    return is_ours ? owned(object) : call(decode_otherwise_, frames);
  }

 private:
  static constexpr int kMostMisses = 6;

  std::unique_ptr<codec::Encoder> new_encoder() const {
    const nb::list frames;
    const nb::object own_reducer = call(make_reducers_, frames);
    return std::make_unique<codec::Encoder>(known_, own_reducer.ptr(), frames.ptr(), frame_bytes_);
  }

  codec::Known known_;
  nb::object make_reducers_;
  nb::object find_;
  nb::object encode_otherwise_;
  nb::object decode_otherwise_;
  Py_ssize_t frame_bytes_;
  std::unique_ptr<codec::Encoder> encoder_;
  std::unique_ptr<codec::Decoder> decoder_;
  nb::ft_mutex mutex_;
  int misses_ = 0;   // in a row
  int skipped_ = 0;  // objects that are not tried next
};

}  // namespace shmcast

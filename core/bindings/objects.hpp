// Room: bindings. Objects into a ring and out of it, in one step each, for Python.
// Knows: that a codec makes frames of objects and objects of frames, and when the core's own codec
// and a ring need none in between.
// Does not know: what errors mean, or how messages wait.
#pragma once

#include <Python.h>
#include <frameobject.h>
#include <nanobind/nanobind.h>

#include <cstddef>
#include <utility>

#include "bindings/codec.hpp"
#include "bindings/gil.hpp"
#include "bindings/kept_frames.hpp"
#include "bindings/reader.hpp"
#include "bindings/translation.hpp"
#include "bindings/writer.hpp"

namespace shmcast {

namespace nb = nanobind;

// Frames that no code runs in. One of them is in the traceback of an error that a codec has raised:
// this tells it from what a ring raises, whatever other threads or handlers do meanwhile. They live
// as long as the process.
inline PyFrameObject* encoding = nullptr;
inline PyFrameObject* decoding = nullptr;

inline PyFrameObject* new_frame(const char* name) {
  const nb::object code = owned(reinterpret_cast<PyObject*>(PyCode_NewEmpty("shmcast", name, 1)));
  auto* const frame = PyFrame_New(PyThreadState_Get(), reinterpret_cast<PyCodeObject*>(code.ptr()),
                                  new_dict().ptr(), nullptr);
  if (frame == nullptr) throw nb::python_error();
#if PY_VERSION_HEX < 0x030B0000
  Py_CLEAR(frame->f_back);
#endif
  return frame;
}

// Call once, when the module is loaded.
inline void set_up_codec_frames() {
  encoding = new_frame("encode");
  decoding = new_frame("decode");
}

// Run a call of a codec, and note where if it throws.
template <class Run>
auto noting(PyFrameObject* const& where, Run run) {
  try {
    return run();
  } catch (...) {
    set_error();
    PyTraceBack_Here(where);
    throw nb::python_error();
  }
}

// What puts objects into an outbox of frames.
class ObjectOutbox {
 public:
  // `encode`: makes frames of an object. `outbox`: takes them under a time-out. `coder`: it is the
  // method of this one, or None.
  ObjectOutbox(nb::object encode, nb::object outbox, nb::object coder, bool is_practice)
      : is_practice_(is_practice),
        encode_(std::move(encode)),
        outbox_(std::move(outbox)),
        coder_object_(std::move(coder)) {
    if (coder_object_.is_none() || !nb::isinstance<PyRingWriter>(outbox_)) return;
    coder_ = nb::inst_ptr<ObjectCoder>(coder_object_);
    ring_ = nb::inst_ptr<PyRingWriter>(outbox_);
  }

  void send(nb::handle object, nb::handle timeout) {
    if (coder_ == nullptr) return send_frames(object, timeout);
    ObjectCoder::Encoded message(*coder_);
    noting(encoding, [&] {
      is_practice_ ? coder_->practise_encode(object, message) : coder_->encode(object, message);
    });
    ring_->send({message.frames(), message.bytes()}, timeout);
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(encode_.ptr());
    Py_VISIT(outbox_.ptr());
    Py_VISIT(coder_object_.ptr());
    return 0;
  }

 private:
  void send_frames(nb::handle object, nb::handle timeout) const {
    const nb::object frames = noting(encoding, [&] { return call(encode_, object); });
    const int failed =
        stops_at_exit([&] { return PyObject_SetItem(outbox_.ptr(), timeout.ptr(), frames.ptr()); });
    if (failed != 0) throw nb::python_error();
  }

  // (First what a message needs: the object is cold then.)
  ObjectCoder* coder_ = nullptr;  // null: there are frames in between
  PyRingWriter* ring_ = nullptr;
  bool is_practice_;
  Reference encode_;
  Reference outbox_;
  Reference coder_object_;
};

// What takes objects out of a source of frames.
class ObjectInbox {
 public:
  // `messages`: gives frames for a time-out and `copy`. `keep`: takes them back. `decode`: makes an
  // object of them. `coder`: it is the method of this one, or None.
  ObjectInbox(nb::object messages, nb::object keep, nb::object decode, nb::object coder,
              bool is_practice)
      : is_practice_(is_practice),
        messages_(std::move(messages)),
        keep_(std::move(keep)),
        decode_(std::move(decode)),
        coder_object_(std::move(coder)) {
    if (coder_object_.is_none() || !nb::isinstance<PyRingReader>(messages_)) return;
    coder_ = nb::inst_ptr<ObjectCoder>(coder_object_);
    ring_ = nb::inst_ptr<PyRingReader>(messages_);
  }

  // Return the next object. If that fails after its message was taken, the message is kept.
  nb::object receive(nb::handle call, nb::handle timeout, bool copy) {
    if (coder_ == nullptr) return receive_frames(call);
    ObjectCoder::Decoding message(*coder_);
    const auto place = [&](std::size_t size) { return message.place(size); };
    nb::object frames = ring_->consume_or_place(timeout, copy, place);
    if (frames.is_valid()) {
      return object_of(std::move(frames),
                       [this](nb::handle list) { return decode(nb::borrow<nb::list>(list)); });
    }
    const auto placed = [&](const auto&...) -> nb::object { return message.decoder().frames(); };
    return delivered(decoded([&] { return decode(message); }, placed), placed);
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(messages_.ptr());
    Py_VISIT(keep_.ptr());
    Py_VISIT(decode_.ptr());
    Py_VISIT(coder_object_.ptr());
    return 0;
  }

 private:
  nb::object receive_frames(nb::handle call) const {
    nb::object frames =
        owned(stops_at_exit([&] { return PyObject_GetItem(messages_.ptr(), call.ptr()); }));
    return object_of(std::move(frames),
                     [this](nb::handle list) { return shmcast::call(decode_, list); });
  }

  template <class Message>
  nb::object decode(Message&& message) {
    return is_practice_ ? coder_->practise_decode(message) : coder_->decode(message);
  }

  // Return the object of a message, whose frames have gone then: to free them may take long.
  template <class Decode>
  nb::object object_of(nb::object frames, Decode decode) const {
    if (!PyList_CheckExact(frames.ptr()) && nb::isinstance<Decoded>(frames)) {
      return delivered(nb::inst_ptr<Decoded>(frames)->object(), as_decoded);
    }
    nb::object object = decoded([&] { return decode(frames); }, [&] { return frames; });
    {
      const Reference freed(std::move(frames));
    }
    return delivered(std::move(object), as_decoded);
  }

  // Run a decoding and return its object. If it fails, the message is kept.
  template <class Decode, class Frames>
  nb::object decoded(Decode decode, Frames frames) const {
    try {
      return noting(decoding, decode);
    } catch (nb::python_error&) {
      // First of all: nothing can come between, not even a signal.
      call(keep_, frames());
      throw;
    }
  }

  // Return the object, last of all. A signal that came meanwhile would be handled on the way back,
  // where its handler's error would take the object's place: then the next call returns what `kept`
  // makes of it.
  template <class Kept>
  nb::object delivered(nb::object object, Kept kept) const {
    try {
      handle_signals();
    } catch (nb::python_error&) {
      call(keep_, kept(object));
      throw;
    }
    return object;
  }
  static nb::object as_decoded(const nb::object& object) { return nb::cast(Decoded(object)); }

  ObjectCoder* coder_ = nullptr;  // null: there are frames in between
  PyRingReader* ring_ = nullptr;
  bool is_practice_;
  Reference messages_;
  Reference keep_;
  Reference decode_;
  Reference coder_object_;
};

}  // namespace shmcast

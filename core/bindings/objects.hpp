// Room: bindings. Objects into a ring and out of it, in one step each, for Python.
// Knows: that a codec makes frames of objects and objects of frames, and when the core's own codec
// and a ring need none in between.
// Does not know: what errors mean, or how messages wait.
#pragma once

#include <Python.h>
#include <frameobject.h>
#include <nanobind/nanobind.h>

#include <cstddef>
#include <optional>
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

// Return container[key].
inline nb::object item(nb::handle container, nb::handle key) {
  return owned(stops_at_exit([&] { return PyObject_GetItem(container.ptr(), key.ptr()); }));
}

// Makes objects of messages, for what returns them in the step that has received them.
class ObjectMaker {
 public:
  // `decode`: makes an object of frames. `coder`: it is the method of this one, or None.
  ObjectMaker(nb::object decode, nb::object coder, bool is_practice)
      : is_practice_(is_practice), decode_(std::move(decode)), coder_object_(std::move(coder)) {
    if (!coder_object_.is_none()) coder_ = nb::inst_ptr<ObjectCoder>(coder_object_);
  }

  // Return the object of frames, or of what is Decoded.
  nb::object object_of(const nb::object& frames) {
    const bool are_in_list = PyList_CheckExact(frames.ptr());
    if (!are_in_list && nb::isinstance<Decoded>(frames)) {
      return nb::inst_ptr<Decoded>(frames)->object();
    }
    return noting(decoding, [&] {
      const bool is_ours = coder_ != nullptr && are_in_list;
      return is_ours ? decode(nb::borrow<nb::list>(frames)) : call(decode_, frames);
    });
  }

  // A message that was received: frames, or bytes in memory of a decoder of the core's, which
  // nobody else has meanwhile.
  class Message {
   public:
    explicit Message(ObjectMaker& maker) : maker_(maker) {
      if (maker.coder_ != nullptr) placed_.emplace(*maker.coder_);
    }

    // See PyRingReader::consume_or_place(); and what that has returned.
    std::byte* place(std::size_t size) { return placed_ ? placed_->place(size) : nullptr; }
    void set(nb::object frames) {
      is_placed_ = !frames.is_valid();
      frames_ = std::move(frames);
    }
    bool is_none() const { return frames_.is_none(); }

    // Return its object, which `make` makes of frames. These have gone then: to free them may take
    // long. If that fails, `keep` is given the message.
    template <class Make, class Keep>
    nb::object object(Make make, Keep keep) {
      try {
        if (is_placed_) return noting(decoding, [&] { return maker_.decode(*placed_); });
        nb::object made = make(frames_);
        if (!is_none()) {
          const Reference freed(std::move(frames_));
        }
        return made;
      } catch (nb::python_error&) {
        keep(kept(nb::object()));  // first of all: nothing can come between, not even a signal
        throw;
      }
    }

    // Run the steps that remain with its object, handle_signals() last of all: a signal that came
    // meanwhile would be handled on the way back, where its handler's error would take the object's
    // place. If they throw, `keep` is given what the next call returns.
    template <class Steps, class Keep>
    void finish(const nb::object& object, Steps steps, Keep keep) {
      try {
        steps();
      } catch (nb::python_error&) {
        keep(kept(object));
        throw;
      }
    }

   private:
    nb::object kept(const nb::object& object) {
      if (is_placed_) return placed_->decoder().frames();
      return frames_.is_valid() ? frames_ : nb::cast(Decoded(object));
    }

    ObjectMaker& maker_;
    std::optional<ObjectCoder::Decoding> placed_;
    bool is_placed_ = false;
    nb::object frames_;
  };

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(decode_.ptr());
    Py_VISIT(coder_object_.ptr());
    return 0;
  }

 private:
  template <class Encoded>
  nb::object decode(Encoded&& message) {
    return is_practice_ ? coder_->practise_decode(message) : coder_->decode(message);
  }

  ObjectCoder* coder_ = nullptr;  // null: there are frames in between
  bool is_practice_;
  Reference decode_;
  Reference coder_object_;
};

// What takes objects out of a source of frames.
class ObjectInbox {
 public:
  // `messages`: gives frames for a time-out and `copy`. `keep`: takes them back. The others: see
  // ObjectMaker.
  ObjectInbox(nb::object messages, nb::object keep, nb::object decode, nb::object coder,
              bool is_practice)
      : maker_(std::move(decode), std::move(coder), is_practice),
        messages_(std::move(messages)),
        keep_(std::move(keep)) {
    if (nb::isinstance<PyRingReader>(messages_)) ring_ = nb::inst_ptr<PyRingReader>(messages_);
  }

  // Return the next object. If that fails after its message was taken, the message is kept.
  nb::object receive(nb::handle asked, nb::handle timeout, bool copy) {
    ObjectMaker::Message message(maker_);
    const auto place = [&](std::size_t size) { return message.place(size); };
    message.set(ring_ != nullptr ? ring_->consume_or_place(timeout, copy, place)
                                 : item(messages_, asked));
    const auto make = [this](const nb::object& frames) { return maker_.object_of(frames); };
    const auto keep = [this](nb::object kept) { call(keep_, std::move(kept)); };
    nb::object object = message.object(make, keep);
    message.finish(object, handle_signals, keep);
    return object;
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(messages_.ptr());
    Py_VISIT(keep_.ptr());
    return maker_.traverse(visit, arg);
  }

 private:
  PyRingReader* ring_ = nullptr;  // null: it is another source
  ObjectMaker maker_;
  Reference messages_;
  Reference keep_;
};

}  // namespace shmcast

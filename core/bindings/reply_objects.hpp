// Room: bindings. Objects out of the replies of members, in one step each, for Python.
// Knows: what is given for a member that has died, and who says what it means that a reply can't be
// decoded.
// Does not know: how replies are taken or objects made, or what errors mean.
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "bindings/gil.hpp"
#include "bindings/hub.hpp"
#include "bindings/objects.hpp"
#include "python/python.hpp"

namespace shmcast {

namespace nb = nanobind;

// A member's index, and what was received of it.
inline nb::object pair(std::uint32_t index, const nb::object& received) {
  const nb::object number = nb::cast(index);
  return owned(stops_at_exit([&] { return PyTuple_Pack(2, number.ptr(), received.ptr()); }));
}

// What takes objects out of the replies of members.
class ReplyInbox {
 public:
  // `replies`: a PyHub, or what gives for a time-out, `copy` and whom what one gives. `keep`: takes
  // a member's reply back. `death_of`: returns the error that says how a member has died.
  // `not_decoded`: raises what it means that a reply of a member, which was kept, has become no
  // object. The others: see ObjectMaker.
  ReplyInbox(nb::object replies, nb::object keep, nb::object death_of, nb::object not_decoded,
             nb::object decode, nb::object coder, bool is_practice)
      : maker_(std::move(decode), std::move(coder), is_practice),
        replies_(std::move(replies)),
        keep_(std::move(keep)),
        death_of_(std::move(death_of)),
        not_decoded_(std::move(not_decoded)) {
    if (nb::isinstance<PyHub>(replies_)) hub_ = nb::inst_ptr<PyHub>(replies_);
  }

  // Return the object of the next reply of `whom`: a member's; None: of any, with its index before
  // it; Ellipsis: a list, with one of each. The death of one member who was asked for is raised,
  // another one is in the place of an object. What fails after replies were taken keeps them.
  nb::object receive(nb::handle asked, nb::handle timeout, bool copy, nb::handle whom) {
    if (whom.ptr() == Py_Ellipsis) return receive_all(asked, timeout, copy);
    const bool is_any = whom.is_none();
    ObjectMaker::Message message(maker_);
    const auto place = [&](std::size_t size) { return message.place(size); };
    auto [index, reply] = hub_ == nullptr ? reply_of(asked, whom)
                          : is_any        ? hub_->receive_any(timeout, copy, place)
                                          : receive_of(whom, timeout, copy, place);
    message.set(std::move(reply));
    const auto keep = [&, index = index](nb::object kept) { keep_of(index, std::move(kept)); };
    nb::object object = telling(index, [&, index = index] {
      return message.object([&](const nb::object& frames) { return object_of(index, frames); },
                            keep);
    });
    const bool is_dead = message.is_none();
    const auto last_steps = [&, index = index] {
      if (is_any) object = pair(index, object);
      handle_signals();
    };
    message.finish(nb::object(object), last_steps, keep);
    if (is_dead && !is_any) raise(object);
    return object;
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(replies_.ptr());
    Py_VISIT(keep_.ptr());
    Py_VISIT(death_of_.ptr());
    Py_VISIT(not_decoded_.ptr());
    return maker_.traverse(visit, arg);
  }

 private:
  using Reply = std::pair<std::uint32_t, nb::object>;  // whose, and what a PyHub returns of it

  nb::object receive_all(nb::handle asked, nb::handle timeout, bool copy) {
    // (They are freed last of all: until then, a signal may have all of them taken back.)
    const std::vector<nb::object> replies =
        hub_ == nullptr ? replies_of_all(asked) : hub_->receive_all(timeout, copy);
    std::vector<Reference> objects;
    objects.reserve(replies.size());
    try {
      for (std::uint32_t i = 0; i < replies.size(); ++i) {
        objects.emplace_back(object_of(i, replies[i]));
      }
      nb::object list = list_of(objects);
      handle_signals();
      return list;
    } catch (nb::python_error&) {
      for (std::uint32_t i = 0; i < replies.size(); ++i) keep_of(i, replies[i]);
      const auto failed = static_cast<std::uint32_t>(objects.size());
      if (failed == replies.size()) throw;
      return telling(failed, []() -> nb::object { throw; });
    }
  }

  template <class Place>
  Reply receive_of(nb::handle whom, nb::handle timeout, bool copy, Place place) {
    const auto index = nb::cast<std::uint32_t>(whom);
    return {index, hub_->receive_of(index, timeout, copy, place)};
  }

  // What stands in for a hub.
  Reply reply_of(nb::handle asked, nb::handle whom) const {
    nb::object got = item(replies_, asked);
    if (!whom.is_none()) return {nb::cast<std::uint32_t>(whom), std::move(got)};
    const auto both = nb::cast<nb::tuple>(got);
    return {nb::cast<std::uint32_t>(both[0]), nb::borrow(both[1])};
  }
  std::vector<nb::object> replies_of_all(nb::handle asked) const {
    std::vector<nb::object> all;
    const auto list = nb::cast<nb::list>(item(replies_, asked));
    for (const nb::handle reply : list) all.push_back(nb::borrow(reply));
    return all;
  }

  // Return what stands for a reply: the object of its frames, or an error that says how the member
  // has died.
  nb::object object_of(std::uint32_t index, const nb::object& frames) {
    if (!frames.is_none()) return maker_.object_of(frames);
    return noting(decoding, [&] { return call(death_of_, index); });
  }

  void keep_of(std::uint32_t index, nb::object reply) {
    hub_ == nullptr ? void(call(keep_, index, reply)) : hub_->keep(index, std::move(reply));
  }

  // Run what makes an object of a member's reply. If that fails, let it be said what it means, in
  // an error that is noted as told.
  template <class Make>
  nb::object telling(std::uint32_t index, Make make) {
    try {
      return make();
    } catch (nb::python_error& error) {
      error.restore();
      const Reference raised = nb::steal(take_error());
      return noting(decoding, [&] { return call(not_decoded_, index, raised); });
    }
  }

  // Raise it, noted as told: it needs no other meaning.
  [[noreturn]] static void raise(const nb::object& death) {
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(death.ptr())), death.ptr());
    PyTraceBack_Here(decoding);
    throw nb::python_error();
  }

  PyHub* hub_ = nullptr;  // null: something stands in for it
  ObjectMaker maker_;
  Reference replies_;
  Reference keep_;
  Reference death_of_;
  Reference not_decoded_;
};

}  // namespace shmcast

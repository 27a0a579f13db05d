// Room: bindings. The hub's part of the Python module `_core`, which _core.pyi documents.
// Knows: names, arguments and constructors as Python sees them, and its calls for each reply.
// Does not know: what they do.
//
// A translation unit of its own: in that of the ring and the codec, so much more code would leave
// the compiler less to spend on what is inlined there (12 % of the time of decoding).
#include "bindings/hub_module.hpp"

#include <Python.h>
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/awaitable.hpp"
#include "bindings/gil.hpp"
#include "bindings/hub.hpp"
#include "bindings/hub_writers.hpp"
#include "bindings/reader.hpp"
#include "bindings/reply_objects.hpp"
#include "bindings/slots.hpp"
#include "hub/tail.hpp"
#include "layout.hpp"
#include "wait/waiter.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace shmcast {
namespace {

// Return what is asked for in brackets; null at the end: no time-out was given.
struct Asked {
  nb::handle timeout;
  bool copy;
  nb::handle whom;
};
Asked asked_of(PyObject* call, Py_ssize_t fewest, const char* usage) {
  const Py_ssize_t count = PyTuple_CheckExact(call) ? PyTuple_GET_SIZE(call) : 0;
  if (count < fewest || count > 3 || !PyBool_Check(PyTuple_GET_ITEM(call, count - 2))) {
    throw nb::type_error(usage);
  }
  return {count == 2 ? kLook : nb::handle(PyTuple_GET_ITEM(call, 0)),
          PyTuple_GET_ITEM(call, count - 2) == Py_True, PyTuple_GET_ITEM(call, count - 1)};
}

// Return frames, or what is made of them. If a signal's handler raises, or to make it fails, all is
// kept.
template <class Make, class Keep>
nb::object given(Make make, Keep keep) {
  try {
    handle_signals();
    return make();
  } catch (nb::python_error&) {
    keep();
    throw;
  }
}

nb::object reply_of(PyHub& hub, const Asked& asked) {
  const auto index = nb::cast<std::uint32_t>(asked.whom);
  const nb::object reply = hub.receive_of(index, asked.timeout, asked.copy, kNowhere);
  return given([&] { return reply; }, [&] { hub.keep(index, reply); });
}

nb::object reply_of_any(PyHub& hub, const Asked& asked) {
  const auto got = hub.receive_any(asked.timeout, asked.copy, kNowhere);
  return given([&] { return pair(got.first, got.second); },
               [&] { hub.keep(got.first, got.second); });
}

nb::object replies_of_all(PyHub& hub, const Asked& asked) {
  const std::vector<nb::object> all = hub.receive_all(asked.timeout, asked.copy);
  return given([&] { return list_of(all); },
               [&] {
                 for (std::uint32_t i = 0; i < all.size(); ++i) hub.keep(i, all[i]);
               });
}

// hub[timeout, copy, of whom]: a member's index; None: of any; ...: of all. hub[copy, of whom] is a
// look.
PyObject* get_reply(PyObject* self, PyObject* call) {
  return in_slot<PyObject*>(nullptr, [&] {
    const Asked asked = asked_of(call, 2, "hub[timeout, copy, of whom]");
    auto& hub = object_of<PyHub>(self);
    const auto receive = [&] {
      if (asked.whom.is_none()) return reply_of_any(hub, asked);
      return asked.whom.ptr() == Py_Ellipsis ? replies_of_all(hub, asked) : reply_of(hub, asked);
    };
    return (is_look(asked.timeout) ? hub.look(receive) : receive()).release().ptr();
  });
}

// inbox[timeout, copy, of whom]
PyObject* get_reply_object(PyObject* self, PyObject* call) {
  return in_slot<PyObject*>(nullptr, [&] {
    const Asked asked = asked_of(call, 3, "inbox[timeout, copy, of whom]");
    auto& inbox = object_of<ReplyInbox>(self);
    return inbox.receive(call, asked.timeout, asked.copy, asked.whom).release().ptr();
  });
}

// Take back what hub[timeout, copy, of whom] has returned: the next replies of these members are
// these again. In one step: no signal comes between.
void keep(PyHub& hub, nb::handle whom, nb::handle received) {
  if (whom.is_none()) {
    const auto pair = nb::cast<nb::tuple>(received);
    hub.keep(nb::cast<std::uint32_t>(pair[0]), nb::borrow(pair[1]));
  } else if (whom.ptr() == Py_Ellipsis) {
    std::uint32_t index = 0;
    for (const nb::handle reply : nb::cast<nb::list>(received)) {
      hub.keep(index++, nb::borrow(reply));
    }
  } else {
    hub.keep(nb::cast<std::uint32_t>(whom), nb::borrow(received));
  }
}

PyType_Slot hub_slots[] = {{Py_mp_subscript, reinterpret_cast<void*>(&get_reply)}, {0, nullptr}};
PyType_Slot reply_inbox_slots[] = {
    {Py_mp_subscript, reinterpret_cast<void*>(&get_reply_object)},
    {Py_tp_traverse, reinterpret_cast<void*>(&traverse_box<ReplyInbox>)},
    {0, nullptr}};

}  // namespace

void bind_hub(nb::module_& m) {
  m.def(
      "tail_bytes",
      [](std::uint32_t members, const Geometry& replies) {
        return TailGeometry{members, replies}.bytes();
      },
      "members"_a, "replies"_a);
  nb::class_<PyHubWriter, PyRingWriter>(m, "HubWriter")
      .def(nb::init<nb::handle, const Geometry&, const nb::bytes&, const WaitPolicy&, nb::object,
                    nb::object, const Identity&, nb::object, nb::object, const std::string&,
                    std::uint32_t, const std::string&>(),
           "memory"_a, "geometry"_a, "nonce"_a, "wait"_a, "cpu_quota"_a, "watch"_a.none(), "who"_a,
           "arena"_a.none(), "spill"_a = nb::none(), "label"_a = "", "nodes"_a = 1, "name"_a = "");
  nb::class_<PyReplyWriter, PyRingWriter>(m, "ReplyWriter")
      .def(nb::init<nb::handle, const nb::object&, const Geometry&, const nb::bytes&,
                    const WaitPolicy&, nb::object, nb::object>(),
           "memory"_a, "reader"_a, "replies"_a, "nonce"_a, "wait"_a, "cpu_quota"_a,
           "watch"_a.none())
      .def("interrupt", &PyReplyWriter::interrupt_calls)
      .def("barrier", &PyReplyWriter::pass_barrier, "timeout"_a = nb::none())
      .def("barriers_passed", &PyReplyWriter::barriers_passed)
      .def("absent", &PyReplyWriter::absent)
      .def(
          "publish",
          [](PyReplyWriter& writer, nb::handle frames, nb::handle timeout) {
            writer.send({frames, {}}, timeout);
          },
          "frames"_a, "timeout"_a = nb::none());
  nb::class_<PyHub, Awaitable>(m, "Hub", nb::type_slots(hub_slots))
      .def(nb::init<nb::handle, nb::object, const Geometry&, const nb::bytes&, const WaitPolicy&,
                    nb::object, nb::object, nb::object, const Identity&>(),
           "memory"_a, "writer"_a, "replies"_a, "nonce"_a, "wait"_a, "cpu_quota"_a,
           "warmup"_a.none(), "watch"_a.none(), "who"_a)
      .def("interrupt", &PyHub::interrupt_calls)
      .def("barrier", &PyHub::pass_barrier, "timeout"_a = nb::none())
      .def("barriers_passed", &PyHub::barriers_passed)
      .def("absent", &PyHub::absent)
      .def("keep", &keep, "whom"_a.none(), "received"_a.none())
      .def(
          "discard",
          [](PyHub& hub, std::uint32_t index) {
            nb::object reply = hub.discard(index);
            return reply.is_valid() ? reply : nb::none();
          },
          "index"_a)
      .def("awaited", &PyHub::awaited)
      .def("asked",
           [](const PyHub& hub) -> nb::object {
             if (hub.asked() == PyHub::kAny) return nb::none();
             return hub.asked() == PyHub::kEach ? nothing() : nb::int_(hub.asked());
           })
      .def("lags", &PyHub::lags)
      .def("member_figures", &PyHub::member_figures);
  nb::class_<ReplyInbox>(m, "ReplyInbox", nb::type_slots(reply_inbox_slots))
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, nb::object, nb::object, bool>(),
           "replies"_a, "keep"_a, "death_of"_a, "not_decoded"_a, "decode"_a, "coder"_a.none(),
           "is_practice"_a = false);
}

}  // namespace shmcast

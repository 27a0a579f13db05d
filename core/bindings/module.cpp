// Room: bindings. The Python module `_core`, which _core.pyi documents.
// Knows: names, arguments and constructors as Python sees them, one function for each kind.
// Does not know: what they do.
//
// All of the core but the hub is this one translation unit, so that a message's path is inlined.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <system_error>
#include <utility>

#include "arena/arena.hpp"
#include "arena/mapping.hpp"
#include "bindings/arena_objects.hpp"
#include "bindings/awaitable.hpp"
#include "bindings/codec.hpp"
#include "bindings/convert.hpp"
#include "bindings/endpoint.hpp"
#include "bindings/errors.hpp"
#include "bindings/fork.hpp"
#include "bindings/gil.hpp"
#include "bindings/hub_module.hpp"
#include "bindings/main_interpreter.hpp"
#include "bindings/objects.hpp"
#include "bindings/observe.hpp"
#include "bindings/reader.hpp"
#include "bindings/slots.hpp"
#include "bindings/translation.hpp"
#include "bindings/writer.hpp"
#include "layout.hpp"
#include "pickle/pieces.hpp"
#include "pickle/plain.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "ring/reader.hpp"
#include "wait/gate.hpp"
#include "wait/hints.hpp"
#include "wait/waiter.hpp"
#include "watch/life_lock.hpp"
#include "watch/ownership.hpp"
#include "watch/watcher.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace shmcast {
namespace {

void bind_errors(nb::module_& m) {
  nb::exception<TimedOut>(m, "TimedOut");
  nb::exception<EndpointClosed>(m, "EndpointClosed");
  nb::exception<Interrupted>(m, "Interrupted");
  nb::exception<ConcurrentUse>(m, "ConcurrentUse");
  nb::exception<Forked>(m, "Forked");
  nb::exception<BadTimeout>(m, "BadTimeout");
  nb::exception<NothingToAnswer>(m, "NothingToAnswer");
  nb::exception<SeatTaken>(m, "SeatTaken");
  nb::exception<LayoutMismatch>(m, "LayoutMismatch");
  nb::exception<SegmentCorrupted>(m, "SegmentCorrupted");
  nb::exception<MessageTooLarge>(m, "MessageTooLarge");
  nb::exception<MemoryChanged>(m, "MemoryChanged");
  nb::register_exception_translator([](const std::exception_ptr& thrown, void*) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::system_error& error) {
      errno = error.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
    }
  });
}

void bind_waiting(nb::module_& m) {
  using Mode = WaitPolicy::Mode;
  nb::class_<WaitPolicy>(m, "WaitPolicy")
      .def_static("spin", [] { return WaitPolicy{Mode::spin, kForever}; })
      .def_static("park", [] { return WaitPolicy{Mode::park, 0}; })
      .def_static(
          "adaptive", [](std::int64_t ns) { return WaitPolicy{Mode::adaptive, ns}; },
          "max_spin_ns"_a);
  m.def("read_file", &read_file, "path"_a);
  m.def("idle_hint", [] { return best_hint().name; });
}

void bind_pickle(nb::module_& m) {
  m.def(
      "piece_collector",
      [](const nb::list& pieces, const nb::list& buffers) {
        return owned(stops_at_exit([&] { return piece_collector(pieces.ptr(), buffers.ptr()); }));
      },
      "pieces"_a, "buffers"_a);
  if (add_plain_pickle(m.ptr()) != 0) throw nb::python_error();
}

void bind_codec(nb::module_& m) {
  nb::class_<ObjectCoder>(m, "ObjectCoder", nb::type_slots(coder_slots))
      .def(nb::init<nb::handle, nb::object, nb::object, Py_ssize_t, nb::object, nb::object,
                    nb::object, nb::object>(),
           "functions"_a, "own_reducer"_a, "find"_a, "frame_bytes"_a, "encode_otherwise"_a,
           "encode_again"_a, "decode_otherwise"_a, "refusals"_a)
      .def("practice_frames", &ObjectCoder::practice_frames);
}

// Foreign memory, as Python objects.
void bind_memory(nb::module_& m) {
  nb::class_<View>(m, "View", nb::type_slots(buffer_slots<View>()));
  // Tensors export no buffer, and torch's own way to one, through numpy, takes ten times as long.
  m.def(
      "view",
      [](std::uintptr_t address, std::size_t nbytes, nb::handle owner) {
        return View(reinterpret_cast<std::byte*>(address), nbytes, nb::borrow(owner));
      },
      "address"_a, "nbytes"_a, "owner"_a);
  nb::class_<StorageView>(m, "StorageView", nb::type_slots(buffer_slots<StorageView>()))
      .def(
          "__init__",
          [](StorageView* self, nb::handle storage, std::size_t offset, std::size_t nbytes) {
            new (self) StorageView(nb::borrow(storage), offset, nbytes);
          },
          "storage"_a, "offset"_a, "nbytes"_a)
      .def_prop_ro("is_intact", &StorageView::is_intact);
  // In one call, so that no other thread can resize the storage meanwhile.
  m.def(
      "copy_storage",
      [](nb::handle storage, std::size_t offset, std::size_t nbytes) {
        const StorageView part(nb::borrow(storage), offset, nbytes);
        return nb::bytearray(part.data(), part.size());
      },
      "storage"_a, "offset"_a, "nbytes"_a);
}

void bind_arena(nb::module_& m) {
  m.attr("EXTENTS") = Arena::kExtents;
  nb::class_<Claim>(m, "Claim");
  nb::class_<ArenaMapping>(m, "Mapping", nb::is_weak_referenceable(),
                           nb::type_slots(buffer_slots<ArenaMapping>()))
      .def(
          "__init__",
          [](ArenaMapping* self, int fd, std::size_t nbytes, bool writable, bool dump, bool keep_fd,
             nb::object room, std::uint64_t offset) {
            new (self) ArenaMapping(fd, nbytes, writable ? Access::write : Access::read,
                                    MappingOptions{offset, dump, keep_fd});
            self->room = std::move(room);
          },
          "fd"_a, "nbytes"_a, "writable"_a, "dump"_a = false, "keep_fd"_a = true,
          "room"_a = nb::none(), "offset"_a = 0)
      .def("populate",
           [](const ArenaMapping& mapping) {
             const WithoutGil released;
             populate_pages(mapping.bytes().data(), mapping.bytes().size());
           })
      .def_prop_ro("address",
                   [](const ArenaMapping& mapping) {
                     return reinterpret_cast<std::uintptr_t>(mapping.bytes().data());
                   })
      .def_prop_rw(
          "keeper", [](const ArenaMapping& mapping) { return nb::object(mapping.keeper); },
          [](ArenaMapping& mapping, nb::object keeper) { mapping.keeper = std::move(keeper); },
          nb::for_setter(nb::arg().none()))
      .def(
          "reserve",
          [](ArenaMapping& mapping, std::uint64_t nbytes) {
            const std::uint64_t room = mapping.room_bytes();
            const WithoutGil released;
            return mapping.reserve(nbytes, room);
          },
          "nbytes"_a);
  nb::class_<Lease>(m, "Lease", nb::type_slots(buffer_slots<Lease>()))
      .def_prop_ro("is_pinned", &Lease::is_pinned)
      .def_prop_ro(
          "address",
          [](const Lease& lease) { return reinterpret_cast<std::uintptr_t>(lease.data()); })
      .def_prop_ro("nbytes", &Lease::size)
      .def("copy_on_write", [](nb::handle self) {
        return nb::cast(new CopyOnWrite(nb::borrow(self), nb::cast<Lease&>(self)),
                        nb::rv_policy::take_ownership);
      });
  nb::class_<PartialLease>(m, "PartialLease", nb::type_slots(buffer_slots<PartialLease>()))
      .def(nb::init<nb::object, nb::object>(), "lease"_a, "copied"_a)
      .def_prop_ro("lease", &PartialLease::lease)
      .def_prop_ro("copied", &PartialLease::copied);
  nb::class_<CopyOnWrite>(m, "CopyOnWrite", nb::type_slots(buffer_slots<CopyOnWrite>()));
  nb::class_<Loan>(m, "Loan", nb::type_slots(buffer_slots<Loan>()), nb::is_weak_referenceable())
      .def_prop_ro("extent", &Loan::id)
      .def_ro("views", &Loan::views)
      .def("remember", &Loan::remember)
      .def_static("covers", &Loan::covers, "address"_a);
}

// Return the members of a segment in which this process has no endpoint.
nb::list peers_in(nb::handle memory, const Geometry& geometry, const nb::bytes& nonce) {
  Py_buffer view;
  if (stops_at_exit([&] { return PyObject_GetBuffer(memory.ptr(), &view, PyBUF_WRITABLE); }) != 0)
    throw nb::python_error();
  const std::unique_ptr<Py_buffer, decltype(&PyBuffer_Release)> held(&view, &PyBuffer_Release);
  const std::span<std::byte> bytes(static_cast<std::byte*>(view.buf),
                                   static_cast<std::size_t>(view.len));
  return list_of(peers(Segment::attach(bytes, geometry, nonce_of(nonce))));
}

void bind_members(nb::module_& m) {
  nb::class_<Geometry>(m, "Geometry")
      .def(nb::init<std::uint32_t, std::uint32_t, std::uint64_t, std::uint32_t, std::uint64_t,
                    std::uint64_t>(),
           "readers"_a, "slots"_a, "slot_capacity"_a, "extents"_a, "spill_bytes"_a = 0,
           "tail"_a = 0)
      .def_prop_ro("segment_bytes", &Geometry::segment_bytes)
      .def_prop_ro("spill_offset", &Geometry::spill_offset)
      .def_prop_ro("file_bytes", &Geometry::file_bytes);
  nb::class_<Identity>(m, "Identity")
      .def(
          "__init__",
          [](Identity* self, std::uint64_t start_time, std::uint64_t pid_namespace, bool lock) {
            const auto pid = static_cast<std::uint32_t>(getpid());
            new (self) Identity{start_time, pid_namespace, pid, lock ? 1u : 0u};
          },
          "start_time"_a, "pid_namespace"_a, "holds_lock"_a = false);
  nb::class_<Peer>(m, "Peer")
      .def_ro("index", &Peer::index)
      .def_ro("seat", &Peer::seat)
      .def_prop_ro("state", [](const Peer& peer) { return name_of(Seat::state(peer.seat)); })
      .def_prop_ro("pid", [](const Peer& peer) { return Seat::pid(peer.seat); })
      .def_prop_ro("start_time", [](const Peer& peer) { return peer.identity.start_time; })
      .def_prop_ro("pid_namespace", [](const Peer& peer) { return peer.identity.pid_namespace; })
      .def_prop_ro("holds_lock", [](const Peer& peer) { return peer.identity.holds_lock == 1; })
      .def_ro("behind", &Peer::behind)
      .def_ro("takeovers", &Peer::takeovers)
      .def_prop_ro("predecessor_pid", [](const Peer& peer) { return Seat::pid(peer.predecessor); })
      .def_prop_ro("predecessor_state",
                   [](const Peer& peer) { return name_of(Seat::state(peer.predecessor)); });
  m.def("peers", &peers_in, "memory"_a, "geometry"_a, "nonce"_a);
  m.def("observe", &observe, "fd"_a);
  m.def("latency_bounds", &latency_bounds);
  m.attr("LATENCY_SAMPLING") = Latencies::kEvery;
  m.attr("LABEL_BYTES") = kLabelBytes;
  m.attr("LAYOUT_VERSION") = kLayoutVersion;
  m.attr("VACANT") = kVacantSeat;
  m.attr("NONCE_OFFSET") = offsetof(Header, nonce);
}

// Return a bool; None: it is not known.
nb::object yes_or_no(Locked found) {
  return found == Locked::unknown ? nb::none() : nb::cast(found == Locked::yes);
}

void bind_watch(nb::module_& m) {
  nb::class_<LifeLock>(m, "LifeLock")
      .def(
          "__init__",
          [](LifeLock* self, int fd, std::int64_t place) {
            // A fork in another thread would keep the lock.
            const std::lock_guard lock(Watcher::mutex());
            new (self) LifeLock(fd, place);
          },
          "fd"_a, "place"_a)
      .def("release", &LifeLock::release);
  m.def(
      "is_locked", [](int fd, std::int64_t place) { return yes_or_no(is_locked(fd, place)); },
      "fd"_a, "place"_a);
  m.def("has_members", [](int fd) { return yes_or_no(has_members(fd)); }, "fd"_a);
  m.def("watch_generation", &Watcher::generation);
  m.def(
      "is_readable",
      [](int fd) {
        pollfd one{fd, POLLIN, 0};
        return poll(&one, 1, 0) == 1 && (one.revents & POLLIN) != 0;
      },
      "fd"_a);
}

void bind_endpoints(nb::module_& m) {
  nb::class_<Endpoint>(m, "Endpoint")
      .def("peers", &Endpoint::look_at_peers)
      .def("wait_ready", &Endpoint::wait_ready, "timeout"_a = nb::none())
      .def("close", &Endpoint::close)
      .def("give_up", &Endpoint::give_up)
      .def("detach", &Endpoint::detach)
      .def("hold", &Endpoint::hold, "lock"_a.none())
      .def("watch_process", &Endpoint::watch_process, "pidfd"_a)
      .def("watch_lock", &Endpoint::watch_lock, "fd"_a, "place"_a)
      .def_static("unwatch", &Watcher::remove, "watch"_a)
      .def("set_alarm_fd", &Endpoint::set_alarm_fd, "fd"_a)
      .def("interrupt", &Endpoint::interrupt_call)
      .def("set_policy", &Endpoint::set_policy, "wait"_a)
      .def("set_patience", &Endpoint::set_patience, "seconds"_a.none())
      .def("alarm", &Endpoint::alarm)
      .def("attached", &Endpoint::attached)
      .def("figures", &Endpoint::figures)
      .def("begin_tensor_set", &Endpoint::begin_tensor_set)
      .def("tensor_sets", &Endpoint::tensor_sets)
      .def("tell_death", &Endpoint::tell_death, "place"_a)
      .def("told_death", &Endpoint::told_death);

  nb::class_<PyRingWriter, Endpoint>(m, "RingWriter", nb::type_slots(writer_slots))
      .def(nb::init<nb::handle, const Geometry&, const nb::bytes&, const WaitPolicy&, nb::object,
                    nb::object, const Identity&, nb::object, nb::object, const std::string&,
                    std::uint32_t, const std::string&>(),
           "memory"_a, "geometry"_a, "nonce"_a, "wait"_a, "cpu_quota"_a, "watch"_a.none(), "who"_a,
           "arena"_a.none(), "spill"_a = nb::none(), "label"_a = "", "nodes"_a = 1, "name"_a = "")
      .def("loan", &PyRingWriter::loan, "nbytes"_a)
      .def("is_done", &PyRingWriter::is_done, "extent"_a, "look"_a)
      .def("sent", &PyRingWriter::sent)
      .def("memory_figures", &PyRingWriter::memory_figures)
      .def(
          "publish",
          [](PyRingWriter& writer, nb::handle frames, nb::handle timeout) {
            writer.publish({frames, {}}, timeout);
          },
          "frames"_a, "timeout"_a = nb::none())
      .def("warm", &PyRingWriter::warm, "warmup"_a.none())
      .def("is_sent", &PyRingWriter::is_sent)
      .def("forget_sent", &PyRingWriter::forget_sent)
      .def("lags", &PyRingWriter::lags)
      .def("reader_figures", &PyRingWriter::reader_figures);

  nb::class_<Awaitable, Endpoint>(m, "Awaitable")
      .def("listen", &Awaitable::listen, "pid_namespace"_a)
      .def("drain", &Awaitable::drain)
      .def("rearm", &Awaitable::rearm)
      .def("disarm", &Awaitable::disarm)
      .def("close_pipe", &Awaitable::close_pipe)
      .def("is_armed", &Awaitable::is_armed)
      .def("opened", &Awaitable::opened)
      .def("refused", &Awaitable::refused)
      .def("expect_stand_in", &Awaitable::expect_stand_in)
      .def("stand_in", &Awaitable::stand_in);

  nb::class_<PyRingReader, Awaitable>(m, "RingReader", nb::type_slots(reader_slots))
      .def(nb::init<nb::handle, const Geometry&, const nb::bytes&, std::uint32_t, const WaitPolicy&,
                    nb::object, nb::object, nb::object, const Identity&, std::uint64_t, nb::object,
                    bool, nb::object, const std::string&>(),
           "memory"_a, "geometry"_a, "nonce"_a, "index"_a, "wait"_a, "cpu_quota"_a,
           "warmup"_a.none(), "watch"_a.none(), "who"_a, "found"_a, "arena"_a.none(),
           "may_hold"_a = false, "spill"_a = nb::none(), "name"_a = "")
      .def("consume", &PyRingReader::consume, "timeout"_a = nb::none(), "copy"_a = true)
      .def("keep", &PyRingReader::keep, "frames"_a)
      .def("discard", &PyRingReader::discard);
}

void bind_objects(nb::module_& m) {
  m.attr("ENCODING") = nb::borrow(reinterpret_cast<PyObject*>(encoding));
  m.attr("DECODING") = nb::borrow(reinterpret_cast<PyObject*>(decoding));
  nb::class_<ObjectOutbox>(m, "ObjectOutbox", nb::type_slots(outbox_slots))
      .def(nb::init<nb::object, nb::object, nb::object, bool>(), "encode"_a, "outbox"_a,
           "coder"_a.none(), "is_practice"_a = false);
  nb::class_<Decoded>(m, "Decoded")
      .def_prop_ro("object", &Decoded::object)
      .def("__iter__", [](const Decoded&) { return nb::iter(nb::tuple()); });
  nb::class_<ObjectInbox>(m, "ObjectInbox", nb::type_slots(inbox_slots))
      .def(nb::init<nb::object, nb::object, nb::object, nb::object, bool>(), "messages"_a, "keep"_a,
           "decode"_a, "coder"_a.none(), "is_practice"_a = false);
}

}  // namespace
}  // namespace shmcast

// The module's entry is made by NB_MODULE under another name, see below.
#define PyInit__core init_for_main_interpreter
NB_MODULE(_core, m) {
  using namespace shmcast;
  set_up_translation();
  set_up_codec_frames();
  count_forks();
  Watcher::guard_forks();
  // A program may still hold arrays over the arena when the interpreter exits: no leak.
  nb::set_leak_warnings(false);
  bind_errors(m);
  bind_waiting(m);
  bind_pickle(m);
  bind_codec(m);
  bind_memory(m);
  bind_arena(m);
  bind_members(m);
  bind_watch(m);
  bind_endpoints(m);
  bind_objects(m);
  bind_hub(m);
}
#undef PyInit__core

extern "C" NB_EXPORT PyObject* PyInit__core() {
  return shmcast::for_main_interpreter(init_for_main_interpreter());
}

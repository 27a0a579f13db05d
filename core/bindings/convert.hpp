// Room: bindings. Conversions between Python's values and the core's.
// Knows: time-outs, figures, seat states, nonces.
// Does not know: endpoints.
#pragma once

#include <fcntl.h>
#include <nanobind/nanobind.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "bindings/errors.hpp"
#include "bindings/gil.hpp"
#include "layout.hpp"
#include "ring/message.hpp"
#include "wait/gate.hpp"

namespace shmcast {

namespace nb = nanobind;

// Return a time-out in nanoseconds: kForever for None and for whatever is longer, however large.
// Throws BadTimeout for what is negative, nan or no number.
inline std::int64_t timeout_ns(nb::handle timeout) {
  if (timeout.is_none()) return kForever;
  const double seconds = stops_at_exit([=] { return PyFloat_AsDouble(timeout.ptr()); });
  if (seconds == -1 && PyErr_Occurred() != nullptr) {
    // An integer that no double can hold is a number all the same.
    const bool is_huge = PyErr_ExceptionMatches(PyExc_OverflowError) != 0;
    const bool is_known = is_huge || PyErr_ExceptionMatches(PyExc_TypeError) != 0 ||
                          PyErr_ExceptionMatches(PyExc_ValueError) != 0;
    if (!is_known) throw nb::python_error();  // of a signal handler, say
    PyErr_Clear();
    const nb::object zero = nb::steal(PyLong_FromLong(0));
    const int is_positive = is_huge ? stops_at_exit([&] {
      return PyObject_RichCompareBool(timeout.ptr(), zero.ptr(), Py_GT);
    })
                                    : 0;
    if (is_positive < 0) throw nb::python_error();
    if (is_positive != 0) return kForever;
  }
  if (!(seconds >= 0)) throw BadTimeout("timeout must be None or a number of seconds >= 0");
  return seconds < 9e9 ? static_cast<std::int64_t>(seconds * 1e9) : kForever;
}

// Return what a file of the kernel holds, as bytes; or the OSError, which who calls would have to
// catch, and with it what signal handlers raise. None runs meanwhile, and leaves the file open.
inline nb::object read_file(const char* path) {
  std::string text;
  const int failure = [&] {
    const WithoutGil waiting;  // (for a lock of another process's memory, as cmdline does)
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return errno;
    char part[4096];
    ssize_t size;
    while ((size = read(fd, part, sizeof part)) > 0 || (size < 0 && errno == EINTR)) {
      if (size > 0) text.append(part, static_cast<std::size_t>(size));
    }
    const int error = size < 0 ? errno : 0;
    close(fd);
    return error;
  }();
  if (failure != 0) {
    return owned(stops_at_exit([=] {
      return PyObject_CallFunction(PyExc_OSError, "iss", failure, std::strerror(failure), path);
    }));
  }
  return nb::bytes(text.data(), text.size());
}

// Return the counts of latencies, by bucket.
inline nb::tuple counts_of(const Latencies& latencies) {
  constexpr auto kCount = static_cast<Py_ssize_t>(Latencies::kBuckets);
  nb::object counts = owned(stops_at_exit([] { return PyTuple_New(kCount); }));
  for (Py_ssize_t i = 0; i < kCount; ++i) {
    PyTuple_SET_ITEM(counts.ptr(), i, nb::cast(peek(latencies.counts[i])).release().ptr());
  }
  return nb::steal<nb::tuple>(counts.release());
}

// Return where the buckets end, in seconds, but for the last, which has no end.
inline nb::list latency_bounds() {
  std::vector<double> bounds;
  for (std::size_t bucket = 0; bucket + 1 < Latencies::kBuckets; ++bucket) {
    bounds.push_back(static_cast<double>(Latencies::end_of(bucket)) / 1e9);
  }
  return list_of(bounds);
}

// Return a member's figures by the names of the fields of `Statistics`; only readers have
// latencies.
inline nb::dict as_dict(const Figures& now, const Latencies* latencies = nullptr) {
  nb::dict figures = new_dict();
  figures["messages"] = peek(now.messages);
  figures["payload_bytes"] = peek(now.bytes);
  figures["fragments"] = peek(now.fragments);
  figures["abandoned"] = peek(now.abandoned);
  figures["spins"] = peek(now.spins);
  figures["parks"] = peek(now.parks);
  figures["wakeups"] = peek(now.wakeups);
  figures["wakes"] = peek(now.wakes);
  figures["preemptions"] = peek(now.preemptions);
  figures["parked_crowded"] = peek(now.parked_crowded);
  figures["parked_preempted"] = peek(now.parked_preempted);
  figures["parked_beside_peer"] = peek(now.parked_beside_peer);
  figures["parked_unpaced"] = peek(now.parked_unpaced);
  figures["spun_seconds"] = static_cast<double>(peek(now.spun_ns)) / 1e9;
  figures["parked_seconds"] = static_cast<double>(peek(now.parked_ns)) / 1e9;
  figures["gap_seconds"] = static_cast<double>(peek(now.gap_ns)) / 1e9;
  figures["tensor_sets"] = peek(now.tensor_sets);
  figures["arena_frames"] = peek(now.arena_frames);
  figures["arena_full"] = peek(now.arena_full);
  figures["spilled"] = peek(now.spilled);
  figures["spill_full"] = peek(now.spill_full);
  figures["non_temporal_bytes"] = peek(now.non_temporal_bytes);
  if (latencies != nullptr) {
    figures["latencies"] = counts_of(*latencies);
    figures["latency_seconds"] = static_cast<double>(peek(latencies->sum_ns)) / 1e9;
  }
  return figures;
}

// Return the name of a seat's state. Throws SegmentCorrupted.
inline const char* name_of(SeatState state) {
  switch (state) {
    case SeatState::vacant: return "vacant";
    case SeatState::attached: return "attached";
    case SeatState::left: return "left";
    case SeatState::dropped: return "dropped";
    case SeatState::claimed: return "claimed";
    case SeatState::rejoining: return "rejoining";
    case SeatState::failed: return "failed";
  }
  throw SegmentCorrupted("a seat's state is " + std::to_string(static_cast<unsigned>(state)));
}

inline Segment::Nonce nonce_of(const nb::bytes& nonce) {
  if (nonce.size() != kNonceBytes) throw nb::value_error("a nonce has 16 bytes");
  return Segment::Nonce(static_cast<const std::byte*>(nonce.data()), kNonceBytes);
}

}  // namespace shmcast

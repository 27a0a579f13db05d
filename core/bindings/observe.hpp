// Room: bindings. What somebody sees of a segment who takes no part in it, as a dict.
// Knows: its keys.
// Does not know: where it is in the segment.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <string_view>
#include <vector>

#include "bindings/convert.hpp"
#include "bindings/gil.hpp"
#include "layout.hpp"
#include "observe/observation.hpp"
#include "ring/members.hpp"

namespace shmcast {

namespace nb = nanobind;

inline nb::object text_of(std::string_view utf8) {
  return owned(stops_at_exit([utf8] {
    return PyUnicode_DecodeUTF8(utf8.data(), static_cast<Py_ssize_t>(utf8.size()), "replace");
  }));
}

// Return what is seen of the segment that is open as `fd`; see _core.pyi.
inline nb::dict observe(int fd) {
  const Observation seen(fd);
  const Segment segment = seen.segment();
  const Header& header = segment.header();
  const Geometry& geometry = seen.geometry();
  std::vector<nb::object> names;
  std::vector<nb::dict> figures;
  std::vector<nb::object> sleeps;
  std::vector<nb::object> replies;
  for (std::uint32_t i = 0; i <= geometry.readers; ++i) {
    const Latencies* latencies = i < geometry.readers ? &segment.latencies(i) : nullptr;
    names.push_back(text_of(seen.name(i)));
    sleeps.push_back(nb::cast(seen.sleeps(i)));
    figures.push_back(as_dict(segment.reader_figures(i), latencies));
  }
  for (const Replies& of : seen.replies()) {
    const double waited = static_cast<double>(of.waited_ns) / 1e9;
    replies.push_back(nb::make_tuple(of.messages, of.behind, waited, of.has_no_room));
  }
  std::vector<nb::object> barriers;
  for (const std::uint64_t number : seen.barriers()) {
    barriers.push_back(number == kNever ? nb::none() : nb::cast(number));
  }
  const std::uint64_t wake_at = peek(segment.writer_seat().wake_at);
  nb::dict dict = new_dict();
  dict["label"] = text_of(seen.label());
  dict["made"] = static_cast<double>(header.made_ns) / 1e9;
  dict["nodes"] = std::max(header.nodes, 1u);
  dict["is_between_two"] = header.nodes == kBetweenTwo;
  dict["slots"] = geometry.slots;
  dict["slot_bytes"] = geometry.slot_capacity;
  dict["arena_bytes"] = header.arena_bytes;
  dict["spill_bytes"] = geometry.spill_bytes;
  dict["is_hub"] = geometry.tail != 0;
  dict["sent"] = static_cast<double>(seen.sent_ns()) / 1e9;
  dict["replied"] = static_cast<double>(seen.replied_ns()) / 1e9;
  dict["waits_until"] = wake_at == kNever ? nb::none() : nb::cast(wake_at);
  dict["peers"] = list_of(peers(segment));
  dict["names"] = list_of(names);
  dict["figures"] = list_of(figures);
  dict["sleeps"] = list_of(sleeps);
  dict["replies"] = list_of(replies);
  dict["barriers"] = list_of(barriers);
  return dict;
}

}  // namespace shmcast

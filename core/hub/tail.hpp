// Room: hub. What a hub's segment has behind the slots: where its members' replies lie.
// Knows: offsets in the tail, and that each ring of replies is a segment with one reader.
// Does not know: how anybody waits, or who the members are.
//
//   | Bell | Lane x members | barriers x (members + 1) | segment of one reader x members |
//   | asked-by x members |
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "layout.hpp"

namespace shmcast {

// How the replies of a member go on after those of one that has died. Written by who takes its
// place, before it can answer from there.
struct alignas(kLinePair) Lane {
  std::uint64_t begins_at;  // the fragment with which the replies of the present member begin
  std::uint64_t takeovers;  // Member::takeovers when it came: so many had the place before
  // Written by the hub, when it attaches who has taken the place.
  std::uint64_t joined_at;         // the messages sent before: it is asked by all that follow
  std::uint64_t joined_takeovers;  // Member::takeovers then
};

struct TailGeometry {
  std::uint32_t members;
  Geometry replies;  // of a member's ring

  std::uint64_t lane_offset(std::uint64_t index) const {
    return sizeof(Bell) + index * sizeof(Lane);
  }
  // How many barriers each member has come to, and behind them the hub. In a barrier everybody
  // looks at the words of all, so that they share lines. Each is written once in a barrier.
  std::uint64_t barriers_offset(std::uint64_t index) const {
    return lane_offset(members) + index * sizeof(std::uint64_t);
  }
  std::uint64_t ring_offset(std::uint64_t index) const {
    return whole_pairs(barriers_offset(members + 1)) + index * ring_stride();
  }
  // Rings lie an odd number of line pairs apart: the slots that a hub looks at for any reply spread
  // over all cache sets.
  std::uint64_t ring_stride() const {
    return (replies.segment_bytes() / kLinePair | 1) * kLinePair;
  }
  // By which message each reply of a member was asked for, by the reply's first fragment: twice as
  // many as there are slots, so that the hub can read it when it has made room for the next one.
  std::uint64_t asked_slots() const { return 2 * std::uint64_t{replies.slots}; }
  std::uint64_t asked_offset(std::uint64_t index) const {
    const std::uint64_t bytes = asked_slots() * sizeof(std::uint64_t);
    return ring_offset(members) + index * whole_pairs(bytes);
  }
  std::uint64_t bytes() const { return asked_offset(members); }

 private:
  static std::uint64_t whole_pairs(std::uint64_t bytes) {
    return (bytes + kLinePair - 1) / kLinePair * kLinePair;
  }
};

// The tail in memory, as typed words. Copies refer to the same memory and do not own it.
class Tail {
 public:
  // Throws LayoutMismatch: the segment is none of such a hub.
  Tail(const Segment& messages, const Geometry& replies)
      : base_(messages.tail().data()), geometry_{messages.geometry().readers, replies} {
    if (messages.tail().size() != geometry_.bytes()) {
      throw LayoutMismatch("the segment's tail is " + std::to_string(messages.tail().size()) +
                           " bytes, expected " + std::to_string(geometry_.bytes()));
    }
  }

  Bell& bell() const { return *reinterpret_cast<Bell*>(base_); }
  Lane& lane(std::uint32_t index) const {
    return *reinterpret_cast<Lane*>(base_ + geometry_.lane_offset(index));
  }
  std::uint64_t& barriers(std::uint32_t index) const {
    return *reinterpret_cast<std::uint64_t*>(base_ + geometry_.barriers_offset(index));
  }
  // The number of the message that has asked for the reply of a member which begins with a
  // fragment.
  std::uint64_t& asked_by(std::uint32_t index, std::uint64_t fragment) const {
    auto* const asked = reinterpret_cast<std::uint64_t*>(base_ + geometry_.asked_offset(index));
    return asked[fragment % geometry_.asked_slots()];
  }
  // Format the ring of a member's replies, or attach to it. Its reader, the hub, parks on the bell.
  Segment format_ring(std::uint32_t index, Segment::Nonce nonce, const Identity& hub) const {
    return Segment::format(ring(index), geometry_.replies, nonce, hub).with_readers_at(bell());
  }
  Segment attach_ring(std::uint32_t index, Segment::Nonce nonce) const {
    return Segment::attach(ring(index), geometry_.replies, nonce).with_readers_at(bell());
  }

 private:
  std::span<std::byte> ring(std::uint32_t index) const {
    return {base_ + geometry_.ring_offset(index),
            static_cast<std::size_t>(geometry_.replies.segment_bytes())};
  }

  std::byte* base_;
  TailGeometry geometry_;
};

}  // namespace shmcast

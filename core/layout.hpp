// The segment's memory layout: the only file that knows an offset.
//
//   | Header | Lobby | WriterSeat | Member x readers | Figures x (readers + 1) | Held x readers |
//   | Slot x slots |
//
// The arena, if there is one, is a segment of its own without any structure; what is known of its
// extents is here, in the readers' rows of Held.
//
// Words that different processes write never share a pair of cache lines (the adjacent-line
// prefetcher fetches lines in pairs). All words are plain integers; whoever shares one reaches it
// through std::atomic_ref, and payload is copied with plain memcpy, ordered by the slot's `seq`.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>

namespace shmcast {

inline constexpr std::size_t kLine = 64;
inline constexpr std::size_t kLinePair = 2 * kLine;
inline constexpr std::uint64_t kMagic = 0x0074'7361'636d'6873;  // "shmcast\0"
inline constexpr std::uint32_t kLayoutVersion = 5;
inline constexpr std::size_t kNonceBytes = 16;
inline constexpr std::uint64_t kNever = UINT64_MAX;

static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free,
              "a lock inside std::atomic_ref would not be shared between processes");

// Which process a member is. A pid is used again, but not with the same start time; and it means
// something only to processes of its pid namespace.
struct Identity {
  std::uint64_t start_time;     // field 22 of /proc/<pid>/stat
  std::uint64_t pid_namespace;  // inode of /proc/<pid>/ns/pid
  std::uint32_t pid;
};

// Written once by the writer, before any reader can know the segment's name; `magic` last.
struct alignas(kLinePair) Header {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t readers;
  std::uint32_t slots;
  std::uint64_t slot_capacity;  // payload bytes of one slot
  std::uint64_t slot_stride;    // bytes from one slot to the next
  std::uint64_t segment_bytes;
  std::uint64_t extents;  // of the arena; 0: there is none
  std::byte nonce[kNonceBytes];
  Identity writer;
};

// What everybody looks at and nobody writes while messages flow without parking.
struct alignas(kLinePair) Lobby {
  std::uint64_t gate;      // Gate on which readers park; the writer wakes them
  std::uint32_t arrivals;  // how often a seat was taken
  std::uint32_t rejoins;   // how often in the place of a reader that has died
  std::uint32_t left;      // readers that have closed
  std::uint32_t closed;    // 1 once the writer has closed
};

struct alignas(kLinePair) WriterSeat {
  std::uint64_t wake_at;  // the consumed count that a reader reports by waking; kNever: awake
  std::uint64_t gate;     // Gate on which the writer parks; readers wake it
};

enum class SeatState : std::uint32_t {
  vacant,
  attached,
  left,       // closed in order
  dropped,    // died, and the writer goes on without it
  claimed,    // in the place of one that died, by a process that has yet to say who it is
  rejoining,  // the same, said; the writer will attach it at its next message
};

// Who has a reader's seat, packed into one word, which is changed by compare-and-swap: a pid that
// was read with a state can't stand for another.
struct Seat {
  static constexpr std::uint64_t pack(std::uint32_t pid, SeatState state) {
    return std::uint64_t{pid} << 32 | static_cast<std::uint32_t>(state);
  }
  static constexpr std::uint32_t pid(std::uint64_t word) {
    return static_cast<std::uint32_t>(word >> 32);
  }
  static constexpr SeatState state(std::uint64_t word) {
    return static_cast<SeatState>(static_cast<std::uint32_t>(word));
  }
};

struct alignas(kLinePair) Member {
  std::uint64_t consumed;  // fragments consumed so far; kNever: none is waited for
  std::uint64_t seat;      // a Seat
  Identity identity;       // told after the seat is taken; its pid is in `seat`
};

// What a member has done so far: it alone writes, any member may read. Figures for people.
struct alignas(kLinePair) Figures {
  std::uint64_t messages;
  std::uint64_t bytes;        // of frames; tables and headers not counted
  std::uint64_t fragments;    // slots used
  std::uint64_t abandoned;    // messages given up half-way (time-out or signal in the writer)
  std::uint64_t spins;        // waits that ended while spinning
  std::uint64_t parks;        // times that the thread went to sleep
  std::uint64_t wakeups;      // sleeps that ended with what was waited for
  std::uint64_t wakes;        // system calls made to wake others
  std::uint64_t preemptions;  // spins given up because the core was taken away
  std::uint64_t spun_ns;
  std::uint64_t parked_ns;
  std::uint64_t gap_ns;        // the median gap that was learned; 0: none yet
  std::uint64_t tensor_sets;   // sets of device tensors whose broadcasts it has begun
  std::uint64_t arena_frames;  // frames sent or received in the arena
  std::uint64_t arena_full;    // frames and loans that found no room there
};

// A figure has one writer; relaxed, because it orders nothing.
inline std::uint64_t peek(const std::uint64_t& figure) {
  // (atomic_ref of const needs C++26)
  return std::atomic_ref(const_cast<std::uint64_t&>(figure)).load(std::memory_order_relaxed);
}
inline void put(std::uint64_t& figure, std::uint64_t value) {
  std::atomic_ref(figure).store(value, std::memory_order_relaxed);
}
inline void add(std::uint64_t& figure, std::uint64_t n) { put(figure, peek(figure) + n); }

// A message of at most kLine - sizeof(Slot) bytes travels in one cache line, with its `seq`.
struct Slot {
  std::uint64_t seq;         // fragment number + 1 of what the slot holds; 0: nothing yet
  std::uint64_t descriptor;  // a Descriptor, or 0 in the fragments that continue a message
  std::int64_t sent_ns;      // when the message was sent, by the writer's CLOCK_MONOTONIC
  std::byte* payload() { return reinterpret_cast<std::byte*>(this + 1); }
};

// The first fragment's summary of its message, packed into one word:
// bit 63 marks a message's start, 23 bits count its frames, 40 bits its bytes (frame table
// included).
struct Descriptor {
  static constexpr unsigned kByteBits = 40;
  static constexpr unsigned kFrameBits = 23;
  static constexpr std::uint64_t kStart = std::uint64_t{1} << 63;
  static constexpr std::uint64_t kMaxBytes = (std::uint64_t{1} << kByteBits) - 1;
  static constexpr std::uint64_t kMaxFrames = (std::uint64_t{1} << kFrameBits) - 1;

  static constexpr std::uint64_t pack(std::uint64_t frames, std::uint64_t bytes) {
    return kStart | frames << kByteBits | bytes;
  }
  static constexpr bool starts(std::uint64_t word) { return (word & kStart) != 0; }
  static constexpr std::uint64_t frames(std::uint64_t word) {
    return (word >> kByteBits) & kMaxFrames;
  }
  static constexpr std::uint64_t bytes(std::uint64_t word) { return word & kMaxBytes; }
};

// Bytes of a message's frame table. One frame needs none: its size is the message's.
constexpr std::uint64_t table_bytes(std::uint64_t frames) {
  return frames > 1 ? frames * sizeof(std::uint64_t) : 0;
}

using ArenaOffset = std::uint64_t;

// How many of a reader's views lie in an extent, by extent; the reader alone changes it. With it
// the reader says more than its count of consumed fragments does: that it is through with an
// extent.
using Held = std::uint32_t;

// What the frame table says of a frame: its size; and if it lies in the arena, in which extent.
// Of such a frame the message has an ArenaOffset only.
struct FrameEntry {
  static constexpr unsigned kByteBits = Descriptor::kByteBits;
  static constexpr unsigned kExtentBits = 16;
  static constexpr std::uint64_t kInArena = std::uint64_t{1} << 63;

  static constexpr std::uint64_t in_arena(std::uint32_t extent, std::uint64_t bytes) {
    return kInArena | std::uint64_t{extent} << kByteBits | bytes;
  }
  static constexpr bool is_in_arena(std::uint64_t word) { return (word & kInArena) != 0; }
  static constexpr std::uint32_t extent(std::uint64_t word) {
    return (word >> kByteBits) & ((1u << kExtentBits) - 1);
  }
  static constexpr std::uint64_t bytes(std::uint64_t word) { return word & Descriptor::kMaxBytes; }
  // Of the message's own bytes.
  static constexpr std::uint64_t inline_bytes(std::uint64_t word) {
    return is_in_arena(word) ? sizeof(ArenaOffset) : word;
  }
};

struct Geometry {
  std::uint32_t readers;
  std::uint32_t slots;  // a power of two
  std::uint64_t slot_capacity;
  std::uint32_t extents = 0;  // of the arena; 0: there is none

  // Slots are an odd number of line pairs apart, so that their headers spread over all cache sets.
  std::uint64_t slot_stride() const {
    const std::uint64_t pairs = (sizeof(Slot) + slot_capacity + kLinePair - 1) / kLinePair;
    return (pairs | 1) * kLinePair;
  }
  // A reader's row of Held fills whole line pairs.
  std::uint64_t held_stride() const {
    return (extents * sizeof(Held) + kLinePair - 1) / kLinePair * kLinePair;
  }
  std::uint64_t held_offset(std::uint64_t index) const {
    return figures_offset(readers + 1) + index * held_stride();
  }
  std::uint64_t slots_offset() const { return held_offset(readers); }
  std::uint64_t member_offset(std::uint64_t index) const {
    return sizeof(Header) + sizeof(Lobby) + sizeof(WriterSeat) + index * sizeof(Member);
  }
  std::uint64_t figures_offset(std::uint64_t index) const {
    return member_offset(readers) + index * sizeof(Figures);
  }
  std::uint64_t segment_bytes() const { return slots_offset() + slots * slot_stride(); }
};

// The attach found a segment that is not the one the handle speaks of, or not a segment at all.
struct LayoutMismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A mapped segment as typed words. Copies refer to the same memory and do not own it.
class Segment {
 public:
  using Nonce = std::span<const std::byte, kNonceBytes>;

  // Formats fresh (zeroed) memory. `memory` must hold geometry.segment_bytes().
  static Segment format(std::span<std::byte> memory, const Geometry& geometry, Nonce nonce,
                        const Identity& writer) {
    Segment segment(memory.data(), geometry);
    Header& header = segment.header();
    header.version = kLayoutVersion;
    header.readers = geometry.readers;
    header.slots = geometry.slots;
    header.slot_capacity = geometry.slot_capacity;
    header.slot_stride = geometry.slot_stride();
    header.segment_bytes = geometry.segment_bytes();
    header.extents = geometry.extents;
    std::memcpy(header.nonce, nonce.data(), kNonceBytes);
    header.writer = writer;
    segment.writer_seat().wake_at = kNever;
    // release: pairs with the acquire in attach(); whoever sees the magic sees the fields.
    std::atomic_ref(header.magic).store(kMagic, std::memory_order_release);
    return segment;
  }

  // Checks every header field against what the handle promised; throws LayoutMismatch.
  static Segment attach(std::span<std::byte> memory, const Geometry& geometry, Nonce nonce) {
    if (memory.size() < sizeof(Header)) mismatch("size in bytes", sizeof(Header), memory.size());
    Segment segment(memory.data(), geometry);
    Header& header = segment.header();
    // acquire: pairs with the release in format().
    expect("magic number", kMagic, std::atomic_ref(header.magic).load(std::memory_order_acquire));
    expect("layout version", kLayoutVersion, header.version);
    expect("reader count", geometry.readers, header.readers);
    expect("slot count", geometry.slots, header.slots);
    expect("slot capacity", geometry.slot_capacity, header.slot_capacity);
    expect("slot stride", geometry.slot_stride(), header.slot_stride);
    expect("extent count", geometry.extents, header.extents);
    expect("size in bytes, by its header,", geometry.segment_bytes(), header.segment_bytes);
    expect("size in bytes, as mapped,", geometry.segment_bytes(), memory.size());
    if (header.writer.pid == 0) throw LayoutMismatch("the segment's writer pid is 0");
    if (!std::equal(nonce.begin(), nonce.end(), header.nonce)) {
      throw LayoutMismatch("the segment's nonce is not the handle's: another segment of this name");
    }
    return segment;
  }

  const Geometry& geometry() const { return geometry_; }
  Header& header() const { return at<Header>(0); }
  Lobby& lobby() const { return at<Lobby>(sizeof(Header)); }
  WriterSeat& writer_seat() const { return at<WriterSeat>(sizeof(Header) + sizeof(Lobby)); }
  Member& member(std::uint32_t index) const { return at<Member>(geometry_.member_offset(index)); }
  Figures& reader_figures(std::uint32_t index) const {
    return at<Figures>(geometry_.figures_offset(index));
  }
  Figures& writer_figures() const { return reader_figures(geometry_.readers); }
  Held& held(std::uint32_t index, std::uint32_t extent) const {
    return at<Held>(geometry_.held_offset(index) + extent * sizeof(Held));
  }
  Slot& slot_of(std::uint64_t fragment) const {
    return at<Slot>(slots_offset_ + (fragment & (geometry_.slots - 1)) * stride_);
  }

 private:
  Segment(std::byte* base, const Geometry& geometry)
      : base_(base),
        geometry_(geometry),
        slots_offset_(geometry.slots_offset()),
        stride_(geometry.slot_stride()) {}

  template <class T>
  T& at(std::uint64_t offset) const {
    return *reinterpret_cast<T*>(base_ + offset);
  }

  [[noreturn]] static void mismatch(const char* field, std::uint64_t want, std::uint64_t got) {
    throw LayoutMismatch(std::string("the segment's ") + field + " is " + std::to_string(got) +
                         ", expected " + std::to_string(want));
  }
  static void expect(const char* field, std::uint64_t want, std::uint64_t got) {
    if (want != got) mismatch(field, want, got);
  }

  std::byte* base_;
  Geometry geometry_;
  std::uint64_t slots_offset_;
  std::uint64_t stride_;
};

}  // namespace shmcast

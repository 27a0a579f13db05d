// Room: layout. The segment's memory layout.
// Knows: every offset, every packed word, the header's checks. No other file knows an offset, but
// for what is in a tail.
// Does not know: how anybody waits, or in which order the words are written.
//
//   | Header | Lobby | WriterSeat | Member x readers | Figures x (readers + 1) |
//   | CpuMask x (readers + 1) | Latencies x readers | Name x (readers + 1) | Held x readers |
//   | Slot x slots | tail |
//
// The tail, of a hub's segment only, begins with a Bell; hub/tail.hpp knows the rest.
//
// An arena is a second segment without any structure of its own. What readers hold of its extents
// is counted here, in their rows of Held.
//
// Behind all that, where a mapping of its own can begin, the file may go on with the spill: room
// for what does not fit the slots while readers are busy. It has no structure either.
//
// Words that different processes write never share a pair of cache lines, because the adjacent-line
// prefetcher fetches lines in pairs. All words are plain integers. Access shared ones through
// std::atomic_ref; copy payload with plain loads and stores, ordered by the slot's `seq`.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "figures.hpp"

// The package's, which its build tells; the core's own tests have none.
#ifndef SHMCAST_VERSION
#define SHMCAST_VERSION ""
#endif

namespace shmcast {

inline constexpr std::uint64_t kMagic = 0x0074'7361'636d'6873;  // "shmcast\0"
// Counts every change of what processes tell one another: here, or in the codec's wire.
inline constexpr std::uint32_t kLayoutVersion = 16;
inline constexpr std::uint32_t kFirstVersionOfThisHeader = 7;
inline constexpr std::size_t kNonceBytes = 16;
inline constexpr std::size_t kLabelBytes = 224;
inline constexpr std::size_t kPackageBytes = 32;
inline constexpr std::size_t kHugePage = 2 * 1024 * 1024;
inline constexpr std::uint64_t kNever = UINT64_MAX;

static_assert(std::atomic_ref<std::uint64_t>::is_always_lock_free,
              "a lock inside std::atomic_ref would not be shared between processes");

// Which process a member is. The kernel reuses pids, but not together with a start time. A pid is
// meaningful only within its pid namespace.
struct Identity {
  std::uint64_t start_time;     // field 22 of /proc/<pid>/stat, as the host's clock counts
  std::uint64_t pid_namespace;  // inode of /proc/<pid>/ns/pid
  std::uint32_t pid;
  std::uint64_t holds_lock = 0;  // 1: it holds the LifeLock of its place while it takes part
};

// In place of nodes: the segment is one rank's messages to another, which the sender holds back for
// as long as they are not received, while its program goes on.
inline constexpr std::uint32_t kBetweenTwo = 0;

// What a segment says of itself to people who look at a host's segments.
struct Description {
  std::string_view label;         // UTF-8; of more than kLabelBytes the end is lost
  std::uint32_t nodes = 1;        // over which its group is spread; 0: see kBetweenTwo
  std::uint64_t arena_bytes = 0;  // at most
  std::int64_t made_ns = 0;       // CLOCK_REALTIME
};

// Written once by the writer, `magic` last, before any reader can know the segment's name. Every
// version has these fields at these places: others tell by them that they can't read the rest.
struct alignas(kLinePair) Header {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t readers;
  std::uint32_t slots;
  std::uint32_t nodes;          // this, and made_ns to label: a Description's
  std::uint64_t slot_capacity;  // payload bytes of one slot
  std::uint64_t slot_stride;    // bytes from one slot to the next
  std::uint64_t segment_bytes;
  std::uint64_t extents;      // of the arena; 0: there is none
  std::uint64_t spill_bytes;  // 0: there is no spill
  std::byte nonce[kNonceBytes];
  Identity writer;
  std::int64_t made_ns;
  std::uint64_t arena_bytes;
  char label[kLabelBytes];
  char package[kPackageBytes];  // its version, as the writer has it; before 14: the label's end
};
static_assert(sizeof(Header) == 3 * kLinePair, "other versions read so much");

// What every member reads, and nobody writes while messages flow without parking.
struct alignas(kLinePair) Lobby {
  std::uint64_t gate;        // the Gate on which readers park; the writer wakes them
  std::uint32_t arrivals;    // times that a seat was taken, or given up by a living process
  std::uint32_t rejoins;     // times that the seat of a dead reader was taken
  std::uint32_t left;        // readers that have closed
  std::uint32_t closed;      // an End: whether the writer has ended, and how
  std::uint32_t unmapped;    // readers that can't map the spill, so far: nothing may go there
  std::uint32_t first_dead;  // 1 + the place of who died first, as was told; 0: nobody
};

struct alignas(kLinePair) WriterSeat {
  std::uint64_t wake_at;  // wake the writer at this consumed count; kNever: it is awake
  std::uint64_t gate;     // the Gate on which the writer parks; readers wake it
  std::uint64_t cpu;      // where the writer last published, see LastCpu
};

// How an endpoint has ended that told so itself.
enum class End : std::uint32_t {
  none,
  left,    // in order, by close()
  failed,  // otherwise, in a process that lives: collected, or left by an exception
};

enum class SeatState : std::uint32_t {
  vacant,
  attached,
  left,       // closed in order
  dropped,    // died or failed, and the writer continues without it
  claimed,    // taken over from a dead reader by a process that has yet to write its identity
  rejoining,  // taken over, identity written; the writer attaches it at its next message
  failed,     // ended otherwise than by close(), in a process that lives and may have views
};

// Who has a reader's seat. Pid and state share one word, changed by compare-and-swap, so that a
// state always belongs to the pid it was read with.
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

// How an event loop is told to look: by a byte in a pipe of its process, which whoever wakes it
// opens. The loop's process writes all but what says otherwise.
struct Doorbell {
  std::uint64_t inode;          // of the pipe, written last; 0: there is none
  std::uint64_t pid_namespace;  // in which `pid` has its meaning
  std::uint32_t pid;
  std::uint32_t fd;       // of the pipe, in that process
  std::uint32_t armed;    // 1: a byte is wanted; whoever writes it has set this to 0
  std::uint32_t opened;   // how many others have opened this pipe; written by them
  std::uint32_t refused;  // and how many could not
};

struct alignas(kLinePair) Member {
  std::uint64_t consumed;     // fragments consumed so far; kNever: the writer does not wait for it
  std::uint64_t seat;         // a Seat
  Identity identity;          // written after the seat is taken; the pid is in `seat`
  std::uint64_t cpu;          // where the reader last consumed, see LastCpu
  std::uint64_t takeovers;    // times that the seat was taken over from a dead reader
  std::uint64_t predecessor;  // the Seat as the last of them found it
  std::uint64_t read_ns[2];   // to copy out a full slot, by the Stores that filled it; 0: not known
  Doorbell doorbell;          // where the reader's loop awaits, if it does
};
static_assert(sizeof(Member) == kLinePair);

// The CPUs that a member may run on, written by itself now and then. All zero: any CPU, as far as
// is known. Machines with more CPUs fold theirs into these bits.
struct alignas(kLinePair) CpuMask {
  static constexpr std::size_t kBits = 1024;
  std::uint64_t words[kBits / 64];
};

// A message of at most kLine - sizeof(Slot) bytes shares one cache line with its `seq`.
struct Slot {
  std::uint64_t seq;         // number of the fragment in this slot, plus 1; 0: nothing yet
  std::uint64_t descriptor;  // a Descriptor
  std::int64_t sent_ns;      // when the message was sent, by the writer's CLOCK_MONOTONIC
  std::byte* payload() { return reinterpret_cast<std::byte*>(this + 1); }
};

// The number of a reader's views into one extent; the reader alone changes it. The consumed count
// says that a message was received, this one says that its memory is no longer in use.
using Held = std::uint32_t;

// Where a hub parks, whatever it waits for: room for a message, or a reply of any member.
struct alignas(kLinePair) Bell {
  std::uint64_t gate;  // a Gate, in place of the WriterSeat's; for rings of replies, of the Lobby's
  Doorbell
      doorbell;  // where the hub's loop awaits replies; for these rings, in place of a Member's
};

struct Geometry {
  std::uint32_t readers;
  std::uint32_t slots;  // a power of two
  std::uint64_t slot_capacity;
  std::uint32_t extents = 0;      // of the arena; 0: there is none
  std::uint64_t spill_bytes = 0;  // 0: there is no spill
  std::uint64_t tail = 0;  // bytes behind the slots, a hub's; 0: the segment is none of a hub

  // Keep slots an odd number of line pairs apart, so that their headers spread over all cache sets.
  std::uint64_t slot_stride() const {
    const std::uint64_t pairs = (sizeof(Slot) + slot_capacity + kLinePair - 1) / kLinePair;
    return (pairs | 1) * kLinePair;
  }
  // A reader's row of Held occupies whole line pairs.
  std::uint64_t held_stride() const {
    return (extents * sizeof(Held) + kLinePair - 1) / kLinePair * kLinePair;
  }
  std::uint64_t latencies_offset(std::uint64_t index) const {
    return cpus_offset(readers + 1) + index * sizeof(Latencies);
  }
  std::uint64_t names_offset(std::uint64_t index) const {
    return latencies_offset(readers) + index * sizeof(Name);
  }
  std::uint64_t held_offset(std::uint64_t index) const {
    return names_offset(readers + 1) + index * held_stride();
  }
  std::uint64_t slots_offset() const { return held_offset(readers); }
  static constexpr std::uint64_t writer_seat_offset() { return sizeof(Header) + sizeof(Lobby); }
  std::uint64_t member_offset(std::uint64_t index) const {
    return writer_seat_offset() + sizeof(WriterSeat) + index * sizeof(Member);
  }
  std::uint64_t figures_offset(std::uint64_t index) const {
    return member_offset(readers) + index * sizeof(Figures);
  }
  std::uint64_t cpus_offset(std::uint64_t index) const {
    return figures_offset(readers + 1) + index * sizeof(CpuMask);
  }
  std::uint64_t tail_offset() const { return slots_offset() + slots * slot_stride(); }
  std::uint64_t segment_bytes() const { return tail_offset() + tail; }
  // Where the spill begins in the file: huge pages can back it from its first byte on.
  std::uint64_t spill_offset() const {
    return (segment_bytes() + kHugePage - 1) / kHugePage * kHugePage;
  }
  std::uint64_t file_bytes() const {
    return spill_bytes == 0 ? segment_bytes() : spill_offset() + spill_bytes;
  }
};

// The memory is not the segment that the handle describes, or not a segment at all.
struct LayoutMismatch : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A mapped segment as typed words. Copies refer to the same memory and do not own it.
class Segment {
 public:
  using Nonce = std::span<const std::byte, kNonceBytes>;

  // Format fresh (zeroed) memory of at least geometry.segment_bytes() bytes.
  static Segment format(std::span<std::byte> memory, const Geometry& geometry, Nonce nonce,
                        const Identity& writer, const Description& description = {}) {
    Segment segment(memory.data(), geometry);
    Header& header = segment.header();
    header.version = kLayoutVersion;
    header.readers = geometry.readers;
    header.slots = geometry.slots;
    header.slot_capacity = geometry.slot_capacity;
    header.slot_stride = geometry.slot_stride();
    header.segment_bytes = geometry.segment_bytes();
    header.extents = geometry.extents;
    header.spill_bytes = geometry.spill_bytes;
    std::memcpy(header.nonce, nonce.data(), kNonceBytes);
    header.writer = writer;
    header.nodes = description.nodes;
    header.arena_bytes = description.arena_bytes;
    header.made_ns = description.made_ns;
    write_text(header.label, description.label);
    write_text(header.package, SHMCAST_VERSION);
    segment.writer_seat().wake_at = kNever;
    // release: pairs with the acquire in attach(); who sees the magic number sees the fields.
    std::atomic_ref(header.magic).store(kMagic, std::memory_order_release);
    return segment;
  }

  // Check every header field against what the handle promises. Throws LayoutMismatch.
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
    expect("spill's size", geometry.spill_bytes, header.spill_bytes);
    expect("size in bytes, by its header,", geometry.segment_bytes(), header.segment_bytes);
    expect("size in bytes, as mapped,", geometry.segment_bytes(), memory.size());
    if (header.writer.pid == 0) throw LayoutMismatch("the segment's writer pid is 0");
    if (!std::equal(nonce.begin(), nonce.end(), header.nonce)) {
      throw LayoutMismatch("the segment's nonce is not the handle's: another segment of this name");
    }
    return segment;
  }

  // The beginning of a copy of a segment, without slots and tail: for people to look at.
  static Segment of_copy(std::span<std::byte> copy, Geometry geometry) {
    geometry.tail = 0;
    return Segment(copy.data(), geometry);
  }

  const Geometry& geometry() const { return geometry_; }
  Header& header() const { return at<Header>(0); }
  Lobby& lobby() const { return at<Lobby>(sizeof(Header)); }
  WriterSeat& writer_seat() const { return at<WriterSeat>(Geometry::writer_seat_offset()); }
  // The words of the Gates on which the readers park, and the writer.
  std::uint64_t& readers_gate() const { return *readers_gate_; }
  std::uint64_t& writer_gate() const { return *writer_gate_; }
  // Where the readers' loops await, which is where the reader `index` does or, at a Bell, all do.
  std::uint32_t doorbells() const { return bell_ == nullptr ? geometry_.readers : 1; }
  Doorbell& doorbell(std::uint32_t index) const {
    return bell_ == nullptr ? member(index).doorbell : bell_->doorbell;
  }
  // Where the writer's loop awaits; nullptr: no writer but a hub awaits anything.
  Doorbell* writer_doorbell() const {
    return geometry_.tail == 0 ? nullptr : &at<Bell>(geometry_.tail_offset()).doorbell;
  }
  // Return the same segment, whose readers wait at a hub's Bell: whoever takes part must know.
  Segment with_readers_at(Bell& bell) const {
    Segment segment = *this;
    segment.bell_ = &bell;
    segment.readers_gate_ = &bell.gate;
    return segment;
  }
  std::span<std::byte> tail() const {
    return {base_ + geometry_.tail_offset(), static_cast<std::size_t>(geometry_.tail)};
  }
  Member& member(std::uint32_t index) const { return at<Member>(geometry_.member_offset(index)); }
  Figures& reader_figures(std::uint32_t index) const {
    return at<Figures>(geometry_.figures_offset(index));
  }
  Figures& writer_figures() const { return reader_figures(geometry_.readers); }
  // Of a reader by index; the writer's is at the number of readers.
  CpuMask& cpus(std::uint32_t index) const { return at<CpuMask>(geometry_.cpus_offset(index)); }
  Latencies& latencies(std::uint32_t index) const {
    return at<Latencies>(geometry_.latencies_offset(index));
  }
  Name& name(std::uint32_t index) const { return at<Name>(geometry_.names_offset(index)); }
  Held& held(std::uint32_t index, std::uint32_t extent) const {
    return at<Held>(geometry_.held_offset(index) + extent * sizeof(Held));
  }
  std::span<std::byte> slots() const {
    return {base_ + slots_offset_, static_cast<std::size_t>(geometry_.slots * stride_)};
  }
  Slot& slot_of(std::uint64_t fragment) const {
    return at<Slot>(slots_offset_ + (fragment & (geometry_.slots - 1)) * stride_);
  }

 private:
  Segment(std::byte* base, const Geometry& geometry)
      : base_(base),
        geometry_(geometry),
        slots_offset_(geometry.slots_offset()),
        stride_(geometry.slot_stride()),
        readers_gate_(&lobby().gate),
        writer_gate_(geometry.tail == 0 ? &writer_seat().gate
                                        : &at<Bell>(geometry.tail_offset()).gate) {}

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
  std::uint64_t* readers_gate_;
  std::uint64_t* writer_gate_;
  Bell* bell_ = nullptr;
};

}  // namespace shmcast

// Room: observe. A segment as somebody sees it who takes no part in it.
// Knows: which copies of a segment's parts can be believed. Everything is read by pread(2): what a
// writer that fails in its set-up cuts off is an error then, and never a SIGBUS; and nothing
// changes between its check and its use. Does not know: whether a process is alive, or what
// anything means to people.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "descriptor.hpp"
#include "hub/tail.hpp"
#include "layout.hpp"
#include "wait/gate.hpp"

namespace shmcast {

// What a hub has of a member's replies.
struct Replies {
  std::uint64_t messages;   // that the member has sent
  std::uint64_t behind;     // fragments of them that the hub has not taken out of the ring
  std::uint64_t waited_ns;  // that the member has waited for room for them, and in barriers
  bool has_no_room;         // the ring is full, or the member waits for room
};

class Observation {
 public:
  static constexpr std::uint32_t kMostReaders = 4096;  // as the package makes them
  static constexpr std::int64_t kNothingSent = 0;

  // Look at the segment that is open as `fd`, for reading at least. Throws LayoutMismatch, which
  // says why there is nothing to see; and std::system_error.
  explicit Observation(int fd) : fd_(fd), file_bytes_(size_of(fd)) {
    Header header;
    read(&header, sizeof header, 0);
    const Geometry geometry = checked(header);
    const std::uint64_t nbytes = geometry.held_offset(0);
    copy_.reset(new (std::align_val_t{kLinePair}) std::byte[nbytes]);
    read(copy_.get(), nbytes, 0);
    // Once more the header that was checked: somebody may have written to it.
    std::memcpy(copy_.get(), &header, sizeof header);
    geometry_ = geometry;
    sent_ns_ = last_sent(geometry_, 0, peek(segment().writer_figures().fragments));
    if (geometry.tail != 0) observe_replies();
  }

  const Geometry& geometry() const { return geometry_; }
  // The segment's beginning, for what does not look at slots.
  Segment segment() const {
    return Segment::of_copy({copy_.get(), geometry_.held_offset(0)}, geometry_);
  }
  std::string_view label() const { return read_text(segment().header().label); }
  std::string_view name(std::uint32_t member) const {
    return read_text(segment().name(member).text);
  }
  // When the last message was sent, by the writer's CLOCK_MONOTONIC. kNothingSent: it is not known.
  std::int64_t sent_ns() const { return sent_ns_; }
  // When the last reply was, likewise.
  std::int64_t replied_ns() const { return replied_ns_; }
  // Of each member of a hub.
  const std::vector<Replies>& replies() const { return replies_; }
  // How many barriers each member of a hub has come to, and behind them the hub; kNever: nobody
  // waits for it any more.
  const std::vector<std::uint64_t>& barriers() const { return barriers_; }
  // Return whether a member sleeps until it is woken, as far as that can be seen: of a reader
  // whether its loop does, of a hub whether a thread or its loop does, of any other writer nothing.
  bool sleeps(std::uint32_t member) const {
    if (member == geometry_.readers) return hub_sleeps_;
    return segment().member(member).doorbell.armed != 0;
  }

 private:
  struct Aligned {
    void operator()(std::byte* bytes) const {
      ::operator delete[](bytes, std::align_val_t{kLinePair});
    }
  };
  // So many fragments back the start of the last message is looked for.
  static constexpr std::uint64_t kMostFragments = 64;

  static std::uint64_t size_of(int fd) {
    struct stat found{};
    if (fstat(fd, &found) != 0) throw_errno("fstat");
    return static_cast<std::uint64_t>(found.st_size);
  }

  void read(void* to, std::size_t nbytes, std::uint64_t offset) const {
    auto* next = static_cast<std::byte*>(to);
    while (nbytes > 0) {
      const ssize_t got = pread(fd_, next, nbytes, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw_errno("pread");
      if (got == 0) throw LayoutMismatch("it is being made, or was given up");
      next += got;
      nbytes -= static_cast<std::size_t>(got);
      offset += static_cast<std::uint64_t>(got);
    }
  }

  // Return the shape that a header tells, if it fits the file.
  Geometry checked(const Header& header) const {
    if (header.magic == 0) throw LayoutMismatch("it is being made, or was given up");
    if (header.magic != kMagic) throw LayoutMismatch("it is no segment of shmcast's");
    if (header.version != kLayoutVersion) {
      std::string package(read_text(header.package));
      // Of a version that is not known here, these may be other bytes.
      std::replace_if(
          package.begin(), package.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
      throw LayoutMismatch("it has layout version " + std::to_string(header.version) +
                           (package.empty() ? "" : ", of shmcast " + package) +
                           "; this shmcast reads version " + std::to_string(kLayoutVersion));
    }
    Geometry geometry{header.readers, header.slots, header.slot_capacity,
                      static_cast<std::uint32_t>(header.extents), header.spill_bytes};
    // In this order: no product can overflow.
    const bool fits = header.readers > 0 && header.readers <= kMostReaders &&
                      header.extents <= FrameEntry::extent(UINT64_MAX) + std::uint64_t{1} &&
                      std::has_single_bit(header.slots) && header.slot_capacity <= file_bytes_ &&
                      header.slot_stride == geometry.slot_stride() &&
                      header.slots <= file_bytes_ / header.slot_stride &&
                      geometry.tail_offset() <= header.segment_bytes &&
                      header.segment_bytes <= file_bytes_;
    if (!fits) throw LayoutMismatch("it is damaged: its header does not fit its size");
    geometry.tail = header.segment_bytes - geometry.tail_offset();
    return geometry;
  }

  // Return when the last message of a ring was sent of which so much is published.
  std::int64_t last_sent(const Geometry& ring, std::uint64_t begin, std::uint64_t published) const {
    const std::uint64_t there = std::min<std::uint64_t>(ring.slots, published);
    for (std::uint64_t back = 1; back <= std::min(there, kMostFragments); ++back) {
      const std::uint64_t place = (published - back) & (ring.slots - 1);
      Slot slot;
      read(&slot, sizeof slot, begin + ring.slots_offset() + place * ring.slot_stride());
      if (Descriptor::starts(slot.descriptor)) return slot.sent_ns;
    }
    return kNothingSent;
  }

  void observe_replies() {
    TailGeometry tail{geometry_.readers, {}};
    Header header;
    const std::uint64_t begin = geometry_.tail_offset();
    if (tail.ring_offset(0) + sizeof header > geometry_.tail) damaged();
    read(&header, sizeof header, begin + tail.ring_offset(0));
    if (header.magic == 0) return;  // not made yet
    tail.replies = {1, header.slots, header.slot_capacity};
    if (header.magic != kMagic || header.version != kLayoutVersion || header.readers != 1 ||
        header.slot_capacity > geometry_.tail || header.slots > geometry_.tail ||
        tail.replies.slot_stride() > geometry_.tail / std::max(header.slots, 1u) ||
        tail.bytes() != geometry_.tail) {
      damaged();
    }
    Bell bell;
    read(&bell, sizeof bell, begin);
    hub_sleeps_ = Gate::has_waiters(bell.gate);
    barriers_.resize(geometry_.readers + 1);
    read(barriers_.data(), barriers_.size() * sizeof barriers_[0], begin + tail.barriers_offset(0));
    const Geometry& ring = tail.replies;
    for (std::uint32_t i = 0; i < geometry_.readers; ++i) {
      Figures figures;
      Member hub;
      WriterSeat seat;
      read(&figures, sizeof figures, begin + tail.ring_offset(i) + ring.figures_offset(1));
      read(&hub, sizeof hub, begin + tail.ring_offset(i) + ring.member_offset(0));
      read(&seat, sizeof seat, begin + tail.ring_offset(i) + Geometry::writer_seat_offset());
      const std::int64_t replied = last_sent(ring, begin + tail.ring_offset(i), figures.fragments);
      replied_ns_ = std::max(replied_ns_, replied);
      const std::uint64_t behind =
          hub.consumed < figures.fragments ? figures.fragments - hub.consumed : 0;
      const bool is_full = behind >= ring.slots;  // (one that spins does not say that it waits)
      replies_.push_back({figures.messages, behind, figures.spun_ns + figures.parked_ns,
                          is_full || seat.wake_at != kNever});
    }
  }

  [[noreturn]] static void damaged() {
    throw LayoutMismatch("it is damaged: its replies do not fit its size");
  }
  [[noreturn]] static void throw_errno(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
  }

  int fd_;
  std::uint64_t file_bytes_;
  std::unique_ptr<std::byte[], Aligned> copy_;
  Geometry geometry_{};
  std::int64_t sent_ns_ = kNothingSent;
  std::int64_t replied_ns_ = kNothingSent;
  std::vector<Replies> replies_;
  std::vector<std::uint64_t> barriers_;
  bool hub_sleeps_ = false;
};

}  // namespace shmcast

// A ring and its arena in one process: a sender, and receivers that keep views.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "arena/arena.hpp"
#include "arena/mapping.hpp"
#include "check.hpp"
#include "layout.hpp"
#include "ring/message.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"

namespace shmcast {

inline constexpr std::size_t kArenaBytes = 64 * kPage;

// A file in memory, its arena's mapping, and a ring in ordinary memory.
class Shared {
 public:
  explicit Shared(const Geometry& geometry)
      : geometry_(geometry),
        fd_(memfd_create("arena_test", MFD_CLOEXEC)),
        ring_(static_cast<std::byte*>(std::aligned_alloc(kPage, ring_bytes())), &std::free) {
    CHECK(fd_ >= 0);
    CHECK(ftruncate(fd_, kArenaBytes) == 0);
    std::memset(ring_.get(), 0, ring_bytes());
    mapping_.emplace(fd_, kArenaBytes, Access::write);
  }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { ::close(fd_); }

  Segment format() { return Segment::format(span(), geometry_, Segment::Nonce(kNonce), kWho); }
  Segment attach() { return Segment::attach(span(), geometry_, Segment::Nonce(kNonce)); }
  // One mapping for all threads: the sanitizer tells memory apart by its address.
  Mapping& mapping() { return *mapping_; }
  int fd() const { return fd_; }

 private:
  std::size_t ring_bytes() const { return round_up(geometry_.segment_bytes(), kPage); }
  std::span<std::byte> span() { return {ring_.get(), geometry_.segment_bytes()}; }

  Geometry geometry_;
  int fd_;
  std::unique_ptr<std::byte, decltype(&std::free)> ring_;
  std::optional<Mapping> mapping_;
};

inline Geometry geometry_of(std::uint32_t readers, std::uint32_t slots) {
  return {readers, slots, 128, Arena::kExtents};
}

// Sends as the Python binding does. A message is a frame with its number, then extents filled with
// that number.
class Sender {
 public:
  explicit Sender(Shared& shared)
      : segment_(shared.format()), ring_(segment_, kPark), arena_(shared.mapping(), segment_) {}

  // Send a message with up to `frames` extents, leaving out those that find no room. Returns false
  // if it was abandoned after `patience_ns`.
  bool send(std::uint64_t number, std::size_t frames, std::mt19937_64& random,
            std::int64_t patience_ns = kForever) {
    std::vector<std::uint32_t> ids;
    std::vector<ArenaOffset> offsets;
    std::vector<std::uint64_t> entries{sizeof number};
    for (std::size_t i = 0; i < frames; ++i) {
      const std::size_t bytes = 1 + random() % (24 * kPage);
      const auto id = arena_.allocate(bytes);
      full_ += !id;
      if (!id) continue;
      std::byte* const data = arena_.data(*id);
      CHECK(arena_.offset(data) % kPage == 0);
      CHECK(arena_.find(data, bytes) == id);
      std::memset(data, static_cast<int>(number), bytes);
      ids.push_back(*id);
      offsets.push_back(arena_.offset(data));
      entries.push_back(FrameEntry::in_arena(*id, bytes));
    }
    entries.push_back(filler_.size());
    std::vector<ConstPiece> pieces{{reinterpret_cast<std::byte*>(&number), sizeof number}};
    for (ArenaOffset& offset : offsets) {
      pieces.push_back({reinterpret_cast<std::byte*>(&offset), sizeof offset});
    }
    pieces.push_back({filler_.data(), filler_.size()});
    ring_.begin(pieces, entries);
    for (const std::uint32_t reader : ring_.admitted()) arena_.mark_alive(reader);
    const std::int64_t deadline = deadline_after(patience_ns);
    Outcome outcome;
    do {
      outcome = ring_.advance(deadline, kNoStop);
    } while (outcome == Outcome::interrupted);
    if (outcome == Outcome::ready) {
      ring_.commit();
    } else {
      ring_.abandon();
    }
    for (const std::uint32_t id : ids) {
      arena_.sent(id, ring_.published());
      arena_.give_back(id);
    }
    return outcome == Outcome::ready;
  }

  // End each message with a frame of this size, so that it can have more fragments than the ring
  // has slots.
  void set_filler(std::size_t bytes) { filler_.assign(bytes, std::byte{0xee}); }

  Arena& arena() { return arena_; }
  RingWriter& ring() { return ring_; }
  std::uint64_t full() const { return full_; }

 private:
  Segment segment_;
  RingWriter ring_;
  Arena arena_;
  std::vector<std::byte> filler_;
  std::uint64_t full_ = 0;
};

// One view of a reader, counted as Hold in bindings/arena_objects.hpp does.
class View {
 public:
  View(Held& held, const std::byte* data, std::size_t size, std::uint64_t number)
      : held_(&held), data_(data), size_(size), number_(number) {}
  View(View&& other) noexcept
      : held_(std::exchange(other.held_, nullptr)),
        data_(other.data_),
        size_(other.size_),
        number_(other.number_) {}
  View& operator=(View&& other) noexcept {
    std::swap(held_, other.held_);
    data_ = other.data_;
    size_ = other.size_;
    number_ = other.number_;
    return *this;
  }
  ~View() {
    if (held_ != nullptr) std::atomic_ref(*held_).fetch_sub(1, std::memory_order_release);
  }

  // Kill its reader: nobody uncounts the view.
  void die() { held_ = nullptr; }

  void check() const {
    for (std::size_t i = 0; i < size_; i += 61) CHECK(data_[i] == static_cast<std::byte>(number_));
    CHECK(data_[size_ - 1] == static_cast<std::byte>(number_));
  }

 private:
  Held* held_;
  const std::byte* data_;
  std::size_t size_;
  std::uint64_t number_;
};

// Receives as the Python binding does.
class Receiver {
 public:
  Receiver(Segment segment, Mapping& mapping, std::uint32_t index,
           std::uint64_t found = kVacantSeat)
      : segment_(segment), mapping_(mapping), index_(index), ring_(segment, index, kPark, found) {}

  // Receive the next message. Returns its number and appends its views; nullopt: it was the last.
  std::optional<std::uint64_t> receive(std::vector<View>& views) {
    for (;;) {
      Outcome outcome = resumed([&] { return ring_.begin(kForever, kNoStop); });
      if (outcome == Outcome::closed) return std::nullopt;
      CHECK(outcome == Outcome::ready);
      std::vector<std::uint64_t> entries(ring_.frame_count());
      const MutablePiece table{reinterpret_cast<std::byte*>(entries.data()),
                               table_bytes(entries.size())};
      ring_.into({&table, 1});
      outcome = resumed([&] { return ring_.fetch(kForever, kNoStop); });
      if (outcome == Outcome::abandoned) continue;
      if (outcome == Outcome::closed) return std::nullopt;
      ring_.check_entries(entries);
      std::uint64_t number = 0;
      std::vector<ArenaOffset> offsets(entries.size());
      std::vector<std::byte> filler(entries.back());
      std::vector<MutablePiece> pieces{{reinterpret_cast<std::byte*>(&number), sizeof number}};
      std::vector<Held*> held;
      for (std::size_t i = 1; i + 1 < entries.size(); ++i) {
        pieces.push_back({reinterpret_cast<std::byte*>(&offsets[i]), sizeof(ArenaOffset)});
        held.push_back(&segment_.held(index_, FrameEntry::extent(entries[i])));
        // relaxed: the release of the message's last fragment comes after it.
        std::atomic_ref(*held.back()).fetch_add(1, std::memory_order_relaxed);
      }
      pieces.push_back({filler.data(), filler.size()});
      ring_.into(pieces);
      outcome = resumed([&] { return ring_.fetch(kForever, kNoStop); });
      if (outcome != Outcome::ready) {
        for (Held* one : held) std::atomic_ref(*one).fetch_sub(1, std::memory_order_release);
        if (outcome == Outcome::closed) return std::nullopt;
        continue;
      }
      ring_.end(payload_bytes(entries));
      for (std::size_t i = 1; i + 1 < entries.size(); ++i) {
        views.emplace_back(*held[i - 1], mapping_.bytes().data() + offsets[i],
                           FrameEntry::bytes(entries[i]), number);
      }
      return number;
    }
  }

  void leave() { ring_.leave(); }
  void fail() { ring_.fail(); }

 private:
  template <class Step>
  static Outcome resumed(Step step) {
    for (;;) {
      const Outcome outcome = step();
      if (outcome != Outcome::interrupted) return outcome;
    }
  }

  Segment segment_;
  Mapping& mapping_;
  std::uint32_t index_;
  RingReader ring_;
};

// Check that all of the arena is one free extent.
inline void check_all_free(Arena& arena) {
  const auto id = arena.allocate(kArenaBytes);
  CHECK(id.has_value());
  arena.give_back(*id);
}

}  // namespace shmcast

// Room: ring. The bytes of the fragment that is being received.
// Knows: that they lie in its slot or in the spill, and how far the copy has come.
// Does not know: where they are copied to, or when the fragment is released.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "copy/copies.hpp"
#include "copy/stores.hpp"
#include "layout.hpp"
#include "ring/message.hpp"
#include "ring/slot_copies.hpp"

namespace shmcast {

class Incoming {
 public:
  explicit Incoming(Member& reader) : reads_(reader) {}

  // Set where the spill is mapped.
  void set_spill(std::span<const std::byte> spill) { spill_ = spill; }

  // Begin with a fragment, by its number, whose slot has these bytes.
  void begin(const std::byte* payload, std::uint64_t capacity, std::uint64_t fragment) {
    begin(payload, capacity);
    trial_ = trial(fragment);
  }

  // Begin with a fragment that is spilled: the slot says where its bytes are. Throws
  // SegmentCorrupted.
  [[gnu::noinline]] void begin_spilled(const std::byte* payload, std::uint64_t bytes) {
    SpillOffset offset;
    std::memcpy(&offset, payload, sizeof offset);
    if (bytes == 0 || offset > spill_.size() || bytes > spill_.size() - offset) {
      throw_corrupted("a fragment's end in the spill", offset + bytes, "its size", spill_.size());
    }
    begin(spill_.data() + offset, bytes);
  }

  // Return whether all of it is copied out, and whether nothing is.
  bool is_empty() const { return done_ == size_; }
  bool is_new() const { return done_ == 0; }

  // Copy out what there is, at most `room` bytes. Returns how many.
  std::size_t copy(std::byte* to, std::size_t room) {
    const std::size_t n = std::min<std::uint64_t>(room, size_ - done_);
    if (trial_ && n == size_ && n >= kLeastNonTemporal) [[unlikely]] {
      reads_.try_out(*trial_, to, bytes_, n);
    } else {
      copy_out(to, bytes_ + done_, n);
    }
    done_ += n;
    return n;
  }

  // The fragment is released: the next one is to begin.
  void end() { done_ = 0; }

 private:
  void begin(const std::byte* bytes, std::uint64_t size) {
    bytes_ = bytes;
    size_ = size;
    done_ = 0;
    trial_.reset();
  }

  std::span<const std::byte> spill_;
  const std::byte* bytes_ = nullptr;
  std::uint64_t size_ = 1;
  std::uint64_t done_ = 0;
  std::optional<Stores> trial_;  // of a slot's bytes
  SlotReads reads_;
};

}  // namespace shmcast

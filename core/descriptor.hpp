// Room: layout. The words that describe a message in its slots, each packed into 64 bits.
// Knows: their bits.
// Does not know: where a slot lies, or in which order they are written.
#pragma once

#include <cstdint>

namespace shmcast {

// A summary of the message in its first fragment, packed into one word: bit 63 marks the start of a
// message, 23 bits count its frames, 40 bits its bytes (frame table included). In fragments that
// continue a message it is 0; or bit 62 says that the fragment is spilled, and 40 bits count its
// bytes: the slot then has their SpillOffset only.
struct Descriptor {
  static constexpr unsigned kByteBits = 40;
  static constexpr unsigned kFrameBits = 23;
  static constexpr std::uint64_t kStart = std::uint64_t{1} << 63;
  static constexpr std::uint64_t kSpilled = std::uint64_t{1} << 62;
  static constexpr std::uint64_t kMaxBytes = (std::uint64_t{1} << kByteBits) - 1;
  static constexpr std::uint64_t kMaxFrames = (std::uint64_t{1} << kFrameBits) - 1;

  static constexpr std::uint64_t pack(std::uint64_t frames, std::uint64_t bytes) {
    return kStart | frames << kByteBits | bytes;
  }
  static constexpr bool starts(std::uint64_t word) { return (word & kStart) != 0; }
  static constexpr std::uint64_t spilled(std::uint64_t bytes) { return kSpilled | bytes; }
  static constexpr bool is_spilled(std::uint64_t word) {
    return (word & (kStart | kSpilled)) == kSpilled;
  }
  static constexpr std::uint64_t frames(std::uint64_t word) {
    return (word >> kByteBits) & kMaxFrames;
  }
  static constexpr std::uint64_t bytes(std::uint64_t word) { return word & kMaxBytes; }
};

// Return the bytes of a message's frame table. A single frame needs none: its size is the
// message's.
constexpr std::uint64_t table_bytes(std::uint64_t frames) {
  return frames > 1 ? frames * sizeof(std::uint64_t) : 0;
}

using ArenaOffset = std::uint64_t;
using SpillOffset = std::uint64_t;

// A frame's entry in the frame table: its size and, for a frame in the arena, its extent. Of such a
// frame the message itself carries the ArenaOffset only.
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
  // Return the bytes that the message itself carries for the frame.
  static constexpr std::uint64_t inline_bytes(std::uint64_t word) {
    return is_in_arena(word) ? sizeof(ArenaOffset) : word;
  }
};

}  // namespace shmcast

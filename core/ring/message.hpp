// Room: ring. The message: pieces, errors, and the protocol that writer.hpp and reader.hpp share.
// Knows: slots, sequence numbers, frames as bytes.
// Does not know: what is in a frame, whose process a member is, Python.
//
// The protocol: one writer, N readers, lossless, in order.
//
// A message is a list of frames. Its bytes (a frame table, then the frames) are cut into fragments.
// Fragment f lies in slot f mod n; `seq` = f + 1 says that it is complete. A message may be larger
// than the whole ring: readers copy its first fragments out while the writer fills the next ones.
//
//   writer: wait until every reader has consumed fragment f - n   (acquire Member::consumed)
//           copy the payload, store seq = f + 1                   (release)
//   reader: wait until seq = f + 1                                (acquire)
//           copy the payload, store consumed = f + 1              (release)
//
// RingWriter and RingReader are state machines: any wait can be interrupted and resumed, so that a
// caller can handle signals. Neither is thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>

#include "descriptor.hpp"
#include "layout.hpp"

namespace shmcast {

template <class Byte>
struct Piece {
  Byte* data;
  std::size_t size;
  bool can_vanish = false;  // another thread may unmap it meanwhile: see copy_unless_gone()
};
using ConstPiece = Piece<const std::byte>;
using MutablePiece = Piece<std::byte>;

// A message has more frames or bytes than a Descriptor can express.
struct MessageTooLarge : std::length_error {
  using std::length_error::length_error;
};

// The memory of a frame was freed or replaced while the message was being sent.
struct MemoryChanged : std::runtime_error {
  MemoryChanged()
      : std::runtime_error(
            "a tensor's memory was freed or replaced while it was being sent: another thread has "
            "resized its storage") {}
};

// The segment holds something that no endpoint of this layout writes.
struct SegmentCorrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Throw SegmentCorrupted: the value `got` contradicts `known`. Never inlined, because code that
// builds a string would slow messages down.
[[noreturn, gnu::cold, gnu::noinline]] inline void throw_corrupted(const char* got_name,
                                                                   std::uint64_t got,
                                                                   const char* known_name,
                                                                   std::uint64_t known) {
  throw SegmentCorrupted(std::string(got_name) + " is " + std::to_string(got) +
                         ", which does not fit " + known_name + ", " + std::to_string(known));
}

// Return the bytes of all frames in a frame table.
inline std::uint64_t payload_bytes(std::span<const std::uint64_t> entries) {
  return std::accumulate(
      entries.begin(), entries.end(), std::uint64_t{0},
      [](std::uint64_t sum, std::uint64_t entry) { return sum + FrameEntry::bytes(entry); });
}

}  // namespace shmcast

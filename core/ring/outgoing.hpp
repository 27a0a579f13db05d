// Room: ring. The bytes of the message that is being sent, in the order in which they are copied.
// Knows: the frame table, the frames' memory, and how far the copy has come.
// Does not know: where the bytes go.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <vector>

#include "copy/copies.hpp"
#include "copy/vanishing.hpp"
#include "layout.hpp"
#include "ring/message.hpp"

namespace shmcast {

class Outgoing {
 public:
  // Begin with the table, if there is one, and then the frames. `entries` is the table of a message
  // with a frame in the arena. `frame_bytes`: what the frames have here.
  void begin(std::span<const ConstPiece> frames, std::span<const std::uint64_t> entries,
             std::uint64_t frame_bytes) {
    pieces_.clear();
    is_held_ = true;
    payload_ = frame_bytes;
    const std::uint64_t table = table_bytes(frames.size());
    if (table != 0) {
      entries_.assign(entries.begin(), entries.end());
      if (entries.empty()) {
        for (const ConstPiece& frame : frames) entries_.push_back(frame.size);
      } else {
        payload_ = payload_bytes(entries);
      }
      pieces_.push_back({reinterpret_cast<const std::byte*>(entries_.data()), table});
    }
    std::copy_if(frames.begin(), frames.end(), std::back_inserter(pieces_),
                 [](const ConstPiece& frame) { return frame.size != 0; });
    remaining_ = frame_bytes + table;
    piece_ = 0;
    offset_ = 0;
  }

  // Return the bytes that are still to be copied.
  std::uint64_t remaining() const { return remaining_; }
  void drop() { remaining_ = 0; }
  // Return the bytes of all frames, those in the arena included.
  std::uint64_t payload() const { return payload_; }

  // Whether nothing can unmap the pieces' memory meanwhile. begin() assumes so.
  bool is_held() const { return is_held_; }
  void hold(bool is_held) { is_held_ = is_held; }

  // Copy the next `room` bytes. Throws MemoryChanged.
  void copy(std::byte* to, std::size_t room, Stores stores) {
    remaining_ -= room;
    while (room != 0) {
      const ConstPiece& piece = pieces_[piece_];
      const std::size_t n = std::min(room, piece.size - offset_);
      if (!piece.can_vanish || is_held_) [[likely]] {
        copy_in(to, piece.data + offset_, n, stores);
      } else if (!copy_unless_gone(to, piece.data + offset_, n)) {
        throw MemoryChanged();
      }
      to += n;
      room -= n;
      offset_ += n;
      if (offset_ == piece.size) {
        ++piece_;
        offset_ = 0;
      }
    }
  }

 private:
  std::vector<std::uint64_t> entries_;  // the frame table
  std::vector<ConstPiece> pieces_;      // table and frames, without empty ones
  bool is_held_ = true;
  std::size_t piece_ = 0;  // copied next: pieces_[piece_] from offset_
  std::size_t offset_ = 0;
  std::uint64_t remaining_ = 0;
  std::uint64_t payload_ = 0;
};

}  // namespace shmcast

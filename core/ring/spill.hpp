// Room: ring. Room beside the slots, for long messages whose readers are busy.
// Knows: which bytes of it some reader has yet to take.
// Does not know: where they are mapped, or whether there is memory behind them.
//
// A spilled fragment has its slot like any other, and its bytes here. So they are protected as a
// slot's are: they are free again once every reader has consumed the message that they belong to.
// No reader keeps a view of them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>

#include "descriptor.hpp"
#include "layout.hpp"
#include "wait/gate.hpp"

namespace shmcast {

// Where a spilled part of a message goes.
struct SpillPlace {
  std::byte* data = nullptr;  // nullptr: nowhere, there is no room
  SpillOffset offset = 0;
};

// What a writer asks for such places, one message at a time.
class Spill {
 public:
  // Return a place of so many bytes. It is in use until settle(), and from then on until every
  // reader has consumed `end` fragments.
  virtual SpillPlace take(std::uint64_t bytes) = 0;
  virtual void settle(std::uint64_t end) = 0;

 protected:
  ~Spill() = default;
};

// Return a count of fragments that every reader has consumed; less than kNever in any case, which
// is the end of what is still being sent.
inline std::uint64_t consumed_by_all(const Segment& segment) {
  std::uint64_t least = kNever - 1;
  for (std::uint32_t i = 0; i < segment.geometry().readers; ++i) {
    // acquire: pairs with RingReader::release_slot(), so that the reader's copy is over before what
    // it copied is overwritten, or given back to the system.
    least = std::min(least,
                     std::atomic_ref(segment.member(i).consumed).load(std::memory_order_acquire));
  }
  return least;
}

// What a writer remembers of spilling: whether the message may be spilled, and where its rest goes.
class Spilling {
 public:
  // A shorter message is not worth it, nor a smaller part of one.
  static constexpr std::uint64_t kLeastBytes = 256 * 1024;
  // So long the slowest reader stands still until it counts as busy. Longer if it may be asleep
  // yet; and if there are too few CPUs, a turn of somebody else's.
  static constexpr std::int64_t kPatienceNs = 100'000;
  static constexpr std::int64_t kWakeUpNs = 400'000;
  static constexpr std::int64_t kCrowdedNs = 3'000'000;

  void use(Spill* spill, std::uint64_t least_bytes) {
    spill_ = spill;
    least_bytes_ = least_bytes;
  }

  void begin(std::uint64_t bytes) {
    is_open_ = bytes > least_bytes_;
    if (is_open_) largest_ = std::max(largest_, bytes);
  }
  // Return the size of the largest message that might have been spilled since this was asked last;
  // 0: there was none.
  std::uint64_t take_largest() { return std::exchange(largest_, 0); }
  // Return whether it is not decided yet how the message's rest travels.
  bool is_open() const { return is_open_; }
  // Return whether it is spilled.
  bool is_on() const { return place_.data != nullptr; }

  // Return whether the slowest reader, which has consumed so many fragments now, is known to have
  // stood still there when an earlier message was spilled.
  bool stands_at(std::uint64_t consumed) const { return consumed == stands_at_; }
  // Return whether it has moved since the last look.
  bool has_moved(std::uint64_t consumed, std::int64_t now) {
    if (consumed == seen_at_) return false;
    seen_at_ = consumed;
    moved_ns_ = now;
    return true;
  }
  void woke_readers(std::int64_t now) { woken_ns_ = now; }
  // Return when it counts as busy, if it does not move until then. `sent_ns`: when it could begin
  // with this message.
  std::int64_t patience_ends(std::int64_t sent_ns, bool is_crowded) const {
    const std::int64_t patience = is_crowded ? kCrowdedNs : kPatienceNs;
    const std::int64_t began = std::max(moved_ns_, std::min(sent_ns, kForever - patience));
    return std::max(began + patience, woken_ns_ + kWakeUpNs);
  }

  // Send the rest of the message, `bytes` bytes, through the slots.
  void decline() { is_open_ = false; }
  // Spill it: a reader stands still at `consumed`, and `free` slots are left. Returns false if
  // there is no room. Throws what Spill::take() throws.
  bool start(std::uint64_t bytes, std::uint64_t consumed, std::uint64_t free) {
    is_open_ = false;
    stands_at_ = consumed;
    place_ = spill_->take(bytes);
    // Several parts, so that a reader that comes back copies while the writer does; but few if
    // there are few slots, which later messages need.
    const std::uint64_t parts = std::clamp<std::uint64_t>(free / 8, 1, kMostParts);
    part_bytes_ = std::max((bytes / parts + kLine) / kLine * kLine, least_bytes_);
    return is_on();
  }

  // Return the next place, of part_bytes() bytes or less.
  const SpillPlace& place() const { return place_; }
  std::uint64_t part_bytes() const { return part_bytes_; }
  void filled(std::uint64_t bytes) {
    place_.data += bytes;
    place_.offset += bytes;
  }

  // The message ends, whole or given up, before the fragment `next`.
  void end(std::uint64_t next) {
    is_open_ = false;
    if (!is_on()) return;
    spill_->settle(next);
    place_ = {};
  }

 private:
  static constexpr std::uint64_t kMostParts = 8;

  Spill* spill_ = nullptr;
  std::uint64_t least_bytes_ = kNever;
  bool is_open_ = false;
  std::uint64_t largest_ = 0;
  SpillPlace place_;
  std::uint64_t part_bytes_ = 0;
  std::uint64_t seen_at_ = kNever;
  std::int64_t moved_ns_ = 0;
  std::uint64_t stands_at_ = kNever;
  std::int64_t woken_ns_ = 0;
};

// Which parts of the spill are in use. Messages are consumed in order, so it is a queue.
class SpillQueue {
 public:
  explicit SpillQueue(std::uint64_t bytes) : bytes_(bytes) {}

  // Return the offset of free bytes, which are in use until settle(). Low ones are preferred: their
  // memory was used last. nullopt: no room. `consumed`: by every reader.
  std::optional<SpillOffset> take(std::uint64_t bytes, std::uint64_t consumed) {
    while (!used_.empty() && used_.front().end <= consumed) used_.pop_front();
    const auto offset = lowest(bytes);
    if (offset) used_.push_back({*offset, bytes, kNever});
    return offset;
  }

  // Keep what was taken last in use until every reader has consumed `end` fragments.
  void settle(std::uint64_t end) { used_.back().end = end; }

  // Undo the last take().
  void untake() { used_.pop_back(); }

  // Return whether nothing is in use.
  bool is_free(std::uint64_t consumed) const {
    return used_.empty() || used_.back().end <= consumed;
  }

 private:
  struct Part {
    SpillOffset offset;
    std::uint64_t bytes;
    std::uint64_t end;  // who has consumed so many fragments has all of it; kNever: not known yet
  };

  std::optional<SpillOffset> lowest(std::uint64_t bytes) const {
    const std::uint64_t begin = used_.empty() ? bytes_ : used_.front().offset;
    const std::uint64_t end = used_.empty() ? 0 : used_.back().offset + used_.back().bytes;
    if (end <= begin) {  // what is in use goes on at the bottom, or there is nothing
      return bytes <= begin - end ? std::optional(end) : std::nullopt;
    }
    if (bytes <= begin) return 0;
    return bytes <= bytes_ - end ? std::optional(end) : std::nullopt;
  }

  std::uint64_t bytes_;
  std::deque<Part> used_;  // the oldest first
};

}  // namespace shmcast

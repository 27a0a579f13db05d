// Overwrites words of live rings. Whatever they hold, an endpoint proceeds, waits, or reports that
// the segment is corrupted. It never leaves its memory: the sanitizers would see that.
//
//     fuzz_test [batches [first seed]]
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "arena/arena.hpp"
#include "check.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "ring/reader.hpp"
#include "ring/spill.hpp"
#include "ring/writer.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"

namespace shmcast {
namespace {

using Random = std::mt19937_64;

struct Tally {
  std::uint64_t mutations = 0;
  std::uint64_t sent = 0;
  std::uint64_t spilled = 0;
  std::uint64_t received = 0;
  std::uint64_t refused = 0;  // SegmentCorrupted, LayoutMismatch, a seat that seems taken
};

// A ring's memory, allocated to the byte, and somebody who overwrites its words.
class Memory {
 public:
  Memory(const Geometry& geometry, Random& random)
      : geometry_(geometry),
        random_(random),
        words_(static_cast<std::uint64_t*>(std::aligned_alloc(kLinePair, geometry.segment_bytes())),
               &std::free) {
    std::memset(words_.get(), 0, geometry.segment_bytes());
  }

  std::span<std::byte> bytes() const {
    return {reinterpret_cast<std::byte*>(words_.get()), geometry_.segment_bytes()};
  }

  void mutate() {
    replaced_.clear();
    const std::size_t index = pick();
    if (random_() % 4 != 0) return put(index, value());
    // Two sizes of a frame table that still add up.
    const std::size_t next = index + 1 < size() ? index + 1 : 0;
    const std::uint64_t moved = value();
    put(index, words_.get()[index] + moved);
    put(next, words_.get()[next] - moved);
  }

  // Restore what the last mutation replaced: a ring that stays broken has little more to show.
  void undo() {
    for (const Word& word : replaced_) words_.get()[word.index] = word.value;
    replaced_.clear();
  }

 private:
  struct Word {
    std::size_t index;
    std::uint64_t value;
  };

  std::size_t size() const { return geometry_.segment_bytes() / sizeof(std::uint64_t); }

  void put(std::size_t index, std::uint64_t value) {
    replaced_.push_back({index, words_.get()[index]});
    words_.get()[index] = value;
  }

  // Pick a word, mostly one that steers an endpoint: before the slots, in a slot's header, in a
  // frame table.
  std::size_t pick() {
    const std::uint64_t kind = random_() % 8;
    if (kind == 0) return random_() % size();
    if (kind < 4) {
      const std::uint64_t end = kind == 1 ? geometry_.slots_offset() : geometry_.held_offset(0);
      return random_() % (end / sizeof(std::uint64_t));
    }
    const std::uint64_t slot = random_() % geometry_.slots;
    const std::uint64_t header = sizeof(Slot) / sizeof(std::uint64_t);
    return (geometry_.slots_offset() + slot * geometry_.slot_stride()) / sizeof(std::uint64_t) +
           (kind < 7 ? random_() % header : header + random_() % 4);
  }

  std::uint64_t value() {
    const std::uint64_t little = random_() % 300;
    switch (random_() % 11) {
      case 0: return 0;
      case 1: return UINT64_MAX - little % 4;
      case 2: return std::uint64_t{1} << random_() % 64;
      case 3: return UINT64_MAX >> random_() % 64;
      case 4: return little;
      case 5: return words_.get()[pick()];
      case 6: return Descriptor::pack(random_() % (random_() % 2 == 0 ? 5 : 300), little);
      case 7: return Descriptor::pack(random_() & Descriptor::kMaxFrames, little << 30);
      case 8: return FrameEntry::in_arena(static_cast<std::uint32_t>(random_() % 512), little);
      case 9: return Descriptor::spilled(random_() % 2 == 0 ? little : random_() >> random_() % 64);
      default: return random_();
    }
  }

  Geometry geometry_;
  Random& random_;
  std::unique_ptr<std::uint64_t, decltype(&std::free)> words_;
  std::vector<Word> replaced_;
};

// A spill in ordinary memory, allocated to the byte.
class SmallSpill final : public Spill {
 public:
  explicit SmallSpill(const Segment& segment)
      : segment_(segment),
        bytes_(segment.geometry().spill_bytes),
        queue_(segment.geometry().spill_bytes) {}

  SpillPlace take(std::uint64_t bytes) override {
    const auto offset = queue_.take(bytes, consumed_by_all(segment_));
    return offset ? SpillPlace{bytes_.data() + *offset, *offset} : SpillPlace{};
  }
  void settle(std::uint64_t end) override { queue_.settle(end); }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  Segment segment_;
  std::vector<std::byte> bytes_;
  SpillQueue queue_;
};

// A writer that sends one message after the other, each in as many steps as it takes.
class Sender {
 public:
  Sender(Segment segment, SmallSpill& spill, Random& random)
      : random_(random), segment_(segment), ring_(segment, kPark) {
    if (segment.geometry().spill_bytes != 0) ring_.set_spill(spill, 300);
  }

  void step(Tally& tally) {
    if (!sending_) begin();
    try {
      ring_.wait_ready(0, kNoStop);
      const std::uint64_t before = peek(ring_.figures().spilled);
      const Outcome outcome = ring_.advance(random_() % 2 == 0 ? 0 : 1, kNoStop);
      tally.spilled += peek(ring_.figures().spilled) == before + 1;
      if (outcome == Outcome::ready) ring_.commit();
      tally.sent += outcome == Outcome::ready;
      sending_ = outcome == Outcome::timed_out && random_() % 8 != 0;
      if (outcome != Outcome::ready && !sending_) ring_.abandon();
    } catch (const SegmentCorrupted&) {
      ++tally.refused;
      ring_.abandon();
      sending_ = false;
    }
    CHECK(!lags(segment_).empty());
    ring_.fetch_ahead();
    for (const Peer& peer : peers(segment_)) {
      const bool is_reader = peer.index < segment_.geometry().readers;
      if (is_reader && random_() % 64 == 0) ring_.drop(peer.index, peer.seat);
    }
  }

 private:
  void begin() {
    frames_.resize(random_() % 4);
    std::vector<ConstPiece> pieces;
    for (auto& frame : frames_) {
      frame.assign(random_() % (random_() % 4 == 0 ? 3000 : 60), static_cast<std::byte>(random_()));
      pieces.push_back({frame.data(), frame.size()});
    }
    std::vector<std::uint64_t> entries;
    if (frames_.size() > 1 && segment_.geometry().extents != 0 && random_() % 2 == 0) {
      frames_[0].resize(sizeof(ArenaOffset));
      pieces[0] = {frames_[0].data(), frames_[0].size()};
      for (const ConstPiece& piece : pieces) entries.push_back(piece.size);
      const auto extent = static_cast<std::uint32_t>(random_() % segment_.geometry().extents);
      entries[0] = FrameEntry::in_arena(extent, random_() % 100'000);
    }
    ring_.begin(pieces, entries);
    sending_ = true;
  }

  Random& random_;
  Segment segment_;
  RingWriter ring_;
  bool sending_ = false;
  std::vector<std::vector<std::byte>> frames_;
};

// A reader that receives as the Python binding does, with little memory.
class Receiver {
 public:
  Receiver(Segment segment, const SmallSpill& spill, std::uint32_t index, std::uint64_t found)
      : segment_(segment), index_(index), ring_(segment, index, kPark, found) {
    ring_.set_spill(spill.bytes());
  }

  void step(Tally& tally) {
    try {
      ring_.wait_ready(0, kNoStop);
      while (advance()) {
      }
      if (phase_ == Phase::whole) {
        ++tally.received;
        phase_ = Phase::idle;
      }
    } catch (const SegmentCorrupted&) {
      ++tally.refused;
    }
  }

 private:
  enum class Phase : std::uint8_t { idle, table, frames, whole };
  static constexpr std::uint64_t kMostFrames = 1 << 12;
  static constexpr std::uint64_t kMostBytes = 1 << 16;

  // Take one step. Returns false if there is nothing more to do now.
  bool advance() {
    switch (phase_) {
      case Phase::idle:
        if (ring_.begin(0, kNoStop) != Outcome::ready) return false;
        if (ring_.frame_count() > kMostFrames) return drop();
        places_ = !places_;
        if (places_ && ring_.frame_count() == 1 && ring_.is_immediate()) return place();
        sizes_.assign(ring_.frame_count(), ring_.remaining());
        return sizes_.size() > 1 ? begin_table() : begin_frames();
      case Phase::table: return fetch() && begin_frames();
      case Phase::frames:
        if (!fetch()) return false;
        ring_.end(payload_);
        phase_ = Phase::whole;
        return false;
      case Phase::whole: return false;
    }
    return false;
  }

  // Copy out a message of one slot in one step.
  bool place() {
    frames_.assign(1, std::vector<std::byte>(ring_.remaining()));
    ring_.copy_whole(frames_[0].data());
    ring_.end(frames_[0].size());
    phase_ = Phase::whole;
    return false;
  }

  bool begin_table() {
    const MutablePiece table{reinterpret_cast<std::byte*>(sizes_.data()),
                             table_bytes(sizes_.size())};
    ring_.into({&table, 1});
    phase_ = Phase::table;
    return true;
  }

  bool begin_frames() {
    try {
      ring_.check_entries(sizes_);
      for (const std::uint64_t entry : sizes_) hold(entry);
    } catch (const SegmentCorrupted&) {
      drop();
      throw;
    }
    payload_ = ring_.remaining();
    if (payload_ > kMostBytes) return drop();
    frames_.clear();
    std::vector<MutablePiece> pieces;
    for (const std::uint64_t entry : sizes_) {
      const std::uint64_t size = FrameEntry::inline_bytes(entry);
      frames_.emplace_back(size);  // each on its own: the sanitizers see a byte too much
      pieces.push_back({frames_.back().data(), size});
    }
    ring_.into(pieces);
    phase_ = Phase::frames;
    return true;
  }

  // Count a view of a frame in the arena and uncount it again, as if the frame had been copied.
  void hold(std::uint64_t entry) const {
    if (!FrameEntry::is_in_arena(entry)) return;
    const std::uint32_t extents = segment_.geometry().extents;
    const std::uint32_t extent = FrameEntry::extent(entry);
    if (extent >= extents)
      throw_corrupted("a frame's extent", extent, "the arena's count", extents);
    std::atomic_ref(segment_.held(index_, extent)).fetch_add(1, std::memory_order_relaxed);
    std::atomic_ref(segment_.held(index_, extent)).fetch_sub(1, std::memory_order_release);
  }

  bool fetch() {
    // What lies in one slot is there, and is whole.
    const bool at_once = ring_.is_immediate();
    const Outcome outcome = ring_.fetch(0, kNoStop);
    CHECK(!at_once || outcome == Outcome::ready);
    if (outcome == Outcome::abandoned) phase_ = Phase::idle;
    return outcome == Outcome::ready;
  }

  bool drop() {
    ring_.drop();
    phase_ = Phase::idle;
    return true;
  }

  Segment segment_;
  std::uint32_t index_;
  RingReader ring_;
  Phase phase_ = Phase::idle;
  bool places_ = false;  // the next message, if it can
  std::vector<std::uint64_t> sizes_;
  std::vector<std::vector<std::byte>> frames_;
  std::uint64_t payload_ = 0;
};

void one_ring(std::uint64_t seed, Tally& tally) {
  Random random(seed);
  const Geometry geometry{static_cast<std::uint32_t>(1 + random() % 3),
                          std::uint32_t{2} << random() % 3, 128 * (1 + random() % 2),
                          random() % 2 == 0 ? 0 : Arena::kExtents,
                          random() % 2 == 0 ? 0 : random() % 10'000};
  Memory memory(geometry, random);
  const Segment segment = Segment::format(memory.bytes(), geometry, Segment::Nonce(kNonce), kWho);
  SmallSpill spill(segment);
  Sender sender(segment, spill, random);
  std::vector<Receiver> receivers;
  const auto attach = [&](std::uint32_t index, std::uint64_t found) {
    try {
      const Segment theirs = Segment::attach(memory.bytes(), geometry, Segment::Nonce(kNonce));
      if (take_seat(theirs, index, kWho, found)) {
        receivers.emplace_back(theirs, spill, index, found);
      }
    } catch (const LayoutMismatch&) {
      ++tally.refused;
    }
  };
  for (std::uint32_t index = 0; index < geometry.readers; ++index) {
    if (random() % 8 == 0) memory.mutate();
    attach(index, kVacantSeat);
    memory.undo();
  }
  for (int round = 0; round < 100; ++round) {
    sender.step(tally);
    const bool mutates = random() % 4 == 0;
    if (mutates) memory.mutate();
    tally.mutations += mutates;
    for (Receiver& receiver : receivers) {
      if (random() % 4 != 0) receiver.step(tally);
    }
    if (random() % 64 == 0) {  // in the place of whoever is there
      const auto index = static_cast<std::uint32_t>(random() % geometry.readers);
      attach(index, peek(segment.member(index).seat));
    }
    if (random() % 4 == 0) memory.undo();
  }
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const std::uint64_t batches = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 4;
  std::uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
  for (std::uint64_t batch = 0; batch < batches; ++batch) {
    std::printf("    from seed %lu\n", static_cast<unsigned long>(seed));
    std::fflush(stdout);
    Tally tally;
    for (const std::uint64_t end = seed + 300; seed < end; ++seed) one_ring(seed, tally);
    CHECK(tally.spilled != 0);
    std::printf("ok  %lu mutations: %lu messages sent (%lu spilled), %lu received, %lu refusals\n",
                static_cast<unsigned long>(tally.mutations), static_cast<unsigned long>(tally.sent),
                static_cast<unsigned long>(tally.spilled),
                static_cast<unsigned long>(tally.received),
                static_cast<unsigned long>(tally.refused));
  }
}

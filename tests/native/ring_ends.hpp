// A ring in ordinary memory. Its messages come from a seeded generator which every thread can
// repeat, so that a reader checks each byte that it receives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <vector>

#include "layout.hpp"
#include "ring/message.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"

namespace shmcast {

using Message = std::vector<std::vector<std::byte>>;

// Return the k-th message of a run: few frames, of sizes around the slot's and beyond the ring's.
inline Message make_message(std::uint64_t seed, std::uint64_t k, std::uint64_t capacity) {
  std::mt19937_64 random(seed * 1'000'003 + k);
  Message message(random() % 4);
  for (auto& frame : message) {
    const std::uint64_t around = capacity * (random() % 3) + random() % 7;
    const std::uint64_t sizes[] = {random() % 64, around < 3 ? 0 : around - 3, random() % 5000};
    frame.resize(sizes[random() % 3]);
    for (auto& byte : frame) byte = static_cast<std::byte>(random());
  }
  return message;
}

inline std::vector<ConstPiece> pieces_of(const Message& message) {
  std::vector<ConstPiece> pieces;
  for (const auto& frame : message) pieces.push_back({frame.data(), frame.size()});
  return pieces;
}

// A ring in ordinary memory, aligned as a mapping is.
class Memory {
 public:
  explicit Memory(const Geometry& geometry)
      : geometry_(geometry),
        bytes_(static_cast<std::byte*>(std::aligned_alloc(4096, rounded())), &std::free) {
    std::memset(bytes_.get(), 0, rounded());
  }
  Segment format() { return Segment::format(span(), geometry_, Segment::Nonce(kNonce), kWho); }
  Segment attach() { return Segment::attach(span(), geometry_, Segment::Nonce(kNonce)); }
  std::span<std::byte> span() { return {bytes_.get(), geometry_.segment_bytes()}; }
  const Geometry& geometry() const { return geometry_; }

 private:
  std::size_t rounded() const { return (geometry_.segment_bytes() + 4095) / 4096 * 4096; }
  Geometry geometry_;
  std::unique_ptr<std::byte, decltype(&std::free)> bytes_;
};

// Receive one message as the Python binding does. `closed`: there is none left.
inline Outcome receive(RingReader& reader, Message& message, std::int64_t timeout_ns = kForever) {
  const std::int64_t deadline = deadline_after(timeout_ns);
  const auto resumed = [&](auto step) {
    for (;;) {
      const Outcome outcome = step();
      if (outcome != Outcome::interrupted) return outcome;
    }
  };
  for (;;) {
    Outcome outcome = resumed([&] { return reader.begin(deadline, kNoStop); });
    if (outcome != Outcome::ready) return outcome;
    if (reader.frame_count() == 1 && reader.is_immediate()) {
      message.assign(1, std::vector<std::byte>(reader.remaining()));
      reader.copy_whole(message[0].data());
      reader.end(message[0].size());
      return outcome;
    }
    std::vector<std::uint64_t> sizes(reader.frame_count());
    if (sizes.size() > 1) {
      const MutablePiece table{reinterpret_cast<std::byte*>(sizes.data()),
                               table_bytes(sizes.size())};
      reader.into({&table, 1});
      outcome = resumed([&] { return reader.fetch(deadline, kNoStop); });
      if (outcome == Outcome::abandoned) continue;
      if (outcome != Outcome::ready) return outcome;
    } else if (sizes.size() == 1) {
      sizes[0] = reader.remaining();
    }
    reader.check_entries(sizes);
    const std::uint64_t payload = reader.remaining();
    message.clear();
    std::vector<MutablePiece> pieces;
    for (const std::uint64_t size : sizes) message.emplace_back(size);
    for (auto& frame : message) pieces.push_back({frame.data(), frame.size()});
    reader.into(pieces);
    outcome = resumed([&] { return reader.fetch(deadline, kNoStop); });
    if (outcome == Outcome::abandoned) continue;
    if (outcome == Outcome::ready) reader.end(payload);
    return outcome;
  }
}

inline Outcome publish(RingWriter& writer, const Message& message,
                       std::int64_t timeout_ns = kForever) {
  writer.begin(pieces_of(message));
  const std::int64_t deadline = deadline_after(timeout_ns);
  Outcome outcome;
  do {
    outcome = writer.advance(deadline, kNoStop);
  } while (outcome == Outcome::interrupted);
  if (outcome == Outcome::ready) {
    writer.commit();
  } else {
    writer.abandon();
  }
  return outcome;
}

}  // namespace shmcast

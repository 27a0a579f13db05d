// Writer and readers as threads over one ring, to be run under ThreadSanitizer (make tsan).
//
// Messages are made from a seeded generator that every thread can repeat, so that a reader checks
// each byte it gets. Exits with 1 at the first thing that is not as promised.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <thread>

#include "check.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"

namespace shmcast {
namespace {

constexpr std::byte kNonce[kNonceBytes] = {std::byte{1}, std::byte{2}};
constexpr Identity kWho{1, 1, 1};
constexpr Identity kOther{2, 1, 2};
constexpr auto kNoStop = [] { return false; };
constexpr WaitPolicy kPark{WaitPolicy::Mode::park, 0};
constexpr WaitPolicy kAdaptive{WaitPolicy::Mode::adaptive, 20'000};

using Message = std::vector<std::vector<std::byte>>;

// The k-th message of a run: few frames, of sizes around the slot's and beyond the ring's.
Message make_message(std::uint64_t seed, std::uint64_t k, std::uint64_t capacity) {
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

std::vector<ConstPiece> pieces_of(const Message& message) {
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

// Receives one message as the Python binding does; `closed` if there is none left.
Outcome receive(RingReader& reader, Message& message, std::int64_t timeout_ns = kForever) {
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

Outcome publish(RingWriter& writer, const Message& message, std::int64_t timeout_ns = kForever) {
  writer.begin(pieces_of(message));
  const std::int64_t deadline = deadline_after(timeout_ns);
  Outcome outcome;
  do {
    outcome = writer.advance(deadline, kNoStop);
  } while (outcome == Outcome::interrupted);
  if (outcome != Outcome::ready) writer.abandon();
  return outcome;
}

struct Run {
  const char* name;
  Geometry geometry;
  std::uint64_t messages;
  WaitPolicy policy;
};

// Everything arrives, whole, in order, at every reader; then the close does.
void lossless_in_order(const Run& run) {
  Memory memory(run.geometry);
  RingWriter writer(memory.format(), run.policy);
  std::vector<std::thread> readers;
  for (std::uint32_t index = 0; index < run.geometry.readers; ++index) {
    readers.emplace_back([&, index] {
      const Segment segment = memory.attach();
      CHECK(RingReader::attach(segment, index, kWho));
      RingReader reader(segment, index, run.policy);
      Message message;
      for (std::uint64_t k = 0; k < run.messages; ++k) {
        CHECK(receive(reader, message) == Outcome::ready);
        CHECK(message == make_message(7, k, run.geometry.slot_capacity));
      }
      CHECK(receive(reader, message) == Outcome::closed);
      CHECK(peek(reader.figures().messages) == run.messages);
      reader.leave();
    });
  }
  for (std::uint64_t k = 0; k < run.messages; ++k) {
    const Message message = make_message(7, k, run.geometry.slot_capacity);
    CHECK(publish(writer, message) == Outcome::ready);
  }
  writer.close();
  for (auto& reader : readers) reader.join();
  CHECK(publish(writer, {{std::byte{1}}}) == Outcome::closed);
  std::printf("ok  %s: %lu messages, %lu fragments, writer parked %lu times\n", run.name,
              static_cast<unsigned long>(run.messages),
              static_cast<unsigned long>(peek(writer.figures().fragments)),
              static_cast<unsigned long>(peek(writer.figures().parks)));
}

// Both sides park for every message: one lost wake-up and this never ends. The readers' answers
// travel through a second ring, so that nobody is ever ahead.
void no_lost_wake_up(std::uint64_t rounds) {
  const Geometry geometry{1, 2, 128};
  Memory there(geometry);
  Memory back(geometry);
  RingWriter ping(there.format(), kPark);
  const Segment back_segment = back.format();
  std::thread peer([&] {
    const Segment segment = there.attach();
    CHECK(RingReader::attach(segment, 0, kWho));
    RingReader reader(segment, 0, kPark);
    RingWriter pong(back_segment, kPark);
    Message message;
    for (std::uint64_t k = 0; k < rounds; ++k) {
      CHECK(receive(reader, message) == Outcome::ready);
      CHECK(publish(pong, message) == Outcome::ready);
    }
  });
  const Segment segment = back.attach();
  CHECK(RingReader::attach(segment, 0, kWho));
  RingReader reader(segment, 0, kPark);
  Message message;
  for (std::uint64_t k = 0; k < rounds; ++k) {
    const Message sent{{static_cast<std::byte>(k)}};
    CHECK(publish(ping, sent) == Outcome::ready);
    CHECK(receive(reader, message) == Outcome::ready);
    CHECK(message == sent);
  }
  peer.join();
  std::printf("ok  no lost wake-up: %lu round trips, reader parked %lu times\n",
              static_cast<unsigned long>(rounds),
              static_cast<unsigned long>(peek(reader.figures().parks)));
}

// A message given up half-way is delivered to nobody; the next one is delivered to all.
void abandoned_message(std::uint64_t rounds) {
  const Geometry geometry{2, 4, 128};
  Memory memory(geometry);
  RingWriter writer(memory.format(), kPark);
  std::atomic<std::uint64_t> delivered{0};  // to reader 0; relaxed would do, it only throttles
  std::vector<std::thread> readers;
  for (std::uint32_t index = 0; index < 2; ++index) {
    readers.emplace_back([&, index] {
      const Segment segment = memory.attach();
      CHECK(RingReader::attach(segment, index, kWho));
      RingReader reader(segment, index, kPark);
      Message message;
      for (std::uint64_t k = 0; k < rounds; ++k) {
        CHECK(receive(reader, message) == Outcome::ready);
        CHECK(message == make_message(11, k, geometry.slot_capacity));
        if (index == 0) delivered = k + 1;
      }
      CHECK(receive(reader, message) == Outcome::closed);
    });
  }
  std::uint64_t abandoned = 0;
  for (std::uint64_t k = 0; k < rounds; ++k) {
    // Far larger than the ring, with no time at all: never whole, often begun.
    const Message huge{std::vector<std::byte>(1 << 20, std::byte{0xee})};
    CHECK(publish(writer, huge, 0) == Outcome::timed_out);
    ++abandoned;
    CHECK(publish(writer, make_message(11, k, geometry.slot_capacity)) == Outcome::ready);
  }
  CHECK(peek(writer.figures().abandoned) == abandoned);
  writer.close();
  for (auto& reader : readers) reader.join();
  CHECK(delivered == rounds);
  std::printf("ok  abandoned messages: %lu\n", static_cast<unsigned long>(abandoned));
}

// What a reader drops at its start, as one without memory for it must, costs it that message only.
void dropped_message(std::uint64_t rounds) {
  const Geometry geometry{1, 4, 128};
  Memory memory(geometry);
  RingWriter writer(memory.format(), kPark);
  std::thread peer([&] {
    const Segment segment = memory.attach();
    CHECK(RingReader::attach(segment, 0, kWho));
    RingReader reader(segment, 0, kPark);
    Message message;
    for (std::uint64_t k = 0; k < rounds; ++k) {
      if (k % 2 == 0) {
        Outcome outcome;
        do {
          outcome = reader.begin(kForever, kNoStop);
        } while (outcome == Outcome::interrupted);
        CHECK(outcome == Outcome::ready);
        reader.drop();
      } else {
        CHECK(receive(reader, message) == Outcome::ready);
        CHECK(message == make_message(17, k, geometry.slot_capacity));
      }
    }
  });
  for (std::uint64_t k = 0; k < rounds; ++k) {
    const Message message = make_message(17, k, geometry.slot_capacity);
    CHECK(publish(writer, message) == Outcome::ready);
  }
  peer.join();
  std::printf("ok  dropped messages\n");
}

// A reader that stops half-way does not hold the writer up once it has left.
void a_reader_leaves() {
  const Geometry geometry{2, 4, 128};
  Memory memory(geometry);
  RingWriter writer(memory.format(), kPark);
  const Segment segment = memory.attach();
  CHECK(RingReader::attach(segment, 0, kWho));
  CHECK(!RingReader::attach(segment, 0, kOther));
  CHECK(RingReader::attach(segment, 1, kWho));
  std::thread lazy([&] {
    RingReader reader(segment, 0, kPark);
    Message message;
    CHECK(receive(reader, message) == Outcome::ready);
    reader.leave();
  });
  std::thread eager([&] {
    RingReader reader(segment, 1, kPark);
    Message message;
    for (std::uint64_t k = 0; k < 100; ++k) {
      CHECK(receive(reader, message) == Outcome::ready);
      CHECK(message == make_message(13, k, geometry.slot_capacity));
    }
  });
  for (std::uint64_t k = 0; k < 100; ++k) {
    CHECK(publish(writer, make_message(13, k, geometry.slot_capacity)) == Outcome::ready);
  }
  lazy.join();
  eager.join();
  std::printf("ok  a reader leaves\n");
}

// A message that says its number, in a frame before the others.
Message numbered(std::uint64_t k, std::uint64_t capacity) {
  Message message = make_message(19, k, capacity);
  std::vector<std::byte> number(sizeof k);
  std::memcpy(number.data(), &k, sizeof k);
  message.insert(message.begin(), number);
  return message;
}

// Seat 1 is taken by one process after the other: each dies somewhere, even while it rejoins. The
// writer drops the dead where they hold it up. The reader of seat 0 gets everything, and each of
// the others what was sent from its admission on.
void the_dead_are_replaced(std::uint64_t messages) {
  const Geometry geometry{2, 4, 128};
  Memory memory(geometry);
  RingWriter writer(memory.format(), kPark);
  std::atomic<std::uint32_t> dead{0};  // all processes up to this one
  std::atomic<bool> is_over{false};
  std::uint64_t received = 0;
  std::thread survivor([&] {
    const Segment segment = memory.attach();
    CHECK(RingReader::attach(segment, 0, kWho));
    RingReader reader(segment, 0, kPark);
    Message message;
    for (std::uint64_t k = 0; k < messages; ++k) {
      CHECK(receive(reader, message) == Outcome::ready);
      CHECK(message == numbered(k, geometry.slot_capacity));
    }
    CHECK(receive(reader, message) == Outcome::closed);
  });
  std::thread mortals([&] {
    std::mt19937_64 random(23);
    const Segment segment = memory.attach();
    for (std::uint32_t pid = 1; !is_over; ++pid) {
      const std::uint64_t found = peers(segment)[1].seat;
      CHECK(Seat::pid(found) == pid - 1);
      if (!RingReader::attach(segment, 1, {1, 1, pid}, found)) {  // it was dropped just now
        --pid;
        continue;
      }
      RingReader reader(segment, 1, kPark, found);
      Message message;
      std::uint64_t next = kNever;
      for (std::uint64_t life = random() % 20; life != 0; --life) {
        if (receive(reader, message) != Outcome::ready) break;
        std::uint64_t k;
        std::memcpy(&k, message[0].data(), sizeof k);
        CHECK(next == kNever || k == next);
        CHECK(message == numbered(k, geometry.slot_capacity));
        next = k + 1;
        ++received;
      }
      dead = pid;
    }
  });
  for (std::uint64_t k = 0; k < messages; ++k) {
    const Message message = numbered(k, geometry.slot_capacity);
    writer.begin(pieces_of(message));
    while (writer.advance(deadline_after(1'000'000), kNoStop) != Outcome::ready) {
      const Peer mortal = peers(memory.attach())[1];
      const SeatState state = Seat::state(mortal.seat);
      const bool is_held = state != SeatState::vacant && state != SeatState::dropped;
      if (is_held && Seat::pid(mortal.seat) <= dead) writer.drop(1, mortal.seat);
    }
  }
  is_over = true;
  writer.close();
  survivor.join();
  mortals.join();
  CHECK(received != 0);
  std::printf("ok  the dead are replaced: %u of them got %lu messages\n", dead.load(),
              static_cast<unsigned long>(received));
}

void limits() {
  const Geometry geometry{1, 2, 128};
  Memory memory(geometry);
  RingWriter writer(memory.format(), kPark);
  const std::vector<ConstPiece> many(Descriptor::kMaxFrames + 1, ConstPiece{nullptr, 0});
  bool refused = false;
  try {
    writer.begin(many);
  } catch (const MessageTooLarge&) {
    refused = true;
  }
  CHECK(refused);
  // With nobody reading, two slots are all there is.
  CHECK(publish(writer, {{}}, 0) == Outcome::ready);
  CHECK(publish(writer, {{}}, 0) == Outcome::ready);
  CHECK(publish(writer, {{}}, 1'000'000) == Outcome::timed_out);
  std::printf("ok  limits\n");
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const std::uint64_t scale = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  for (const WaitPolicy& policy : {kPark, kAdaptive}) {
    lossless_in_order({"1 reader, 2 tiny slots", {1, 2, 128}, 2000 * scale, policy});
    lossless_in_order({"3 readers, 4 slots", {3, 4, 256}, 1000 * scale, policy});
    lossless_in_order({"8 readers, 64 slots", {8, 64, 1024}, 500 * scale, policy});
  }
  no_lost_wake_up(10'000 * scale);
  abandoned_message(300 * scale);
  dropped_message(1000 * scale);
  a_reader_leaves();
  the_dead_are_replaced(2000 * scale);
  limits();
}

// Every message arrives whole and in order, as long as nobody dies. Writer and readers are threads
// over one ring, to be run under ThreadSanitizer.
//
//     ring_test [scale]
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "check.hpp"
#include "layout.hpp"
#include "ring/message.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"
#include "ring_ends.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {
namespace {

constexpr Identity kOther{2, 1, 2};
constexpr WaitPolicy kAdaptive{WaitPolicy::Mode::adaptive, 20'000};

struct Run {
  const char* name;
  Geometry geometry;
  std::uint64_t messages;
  WaitPolicy policy;
};

// Every message reaches every reader whole and in order; then the close does.
void lossless_in_order(const Run& run) {
  Memory memory(run.geometry);
  RingWriter writer(memory.format(), run.policy);
  std::vector<std::thread> readers;
  for (std::uint32_t index = 0; index < run.geometry.readers; ++index) {
    readers.emplace_back([&, index] {
      const Segment segment = memory.attach();
      CHECK(take_seat(segment, index, kWho));
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
    CHECK(take_seat(segment, 0, kWho));
    RingReader reader(segment, 0, kPark);
    RingWriter pong(back_segment, kPark);
    Message message;
    for (std::uint64_t k = 0; k < rounds; ++k) {
      CHECK(receive(reader, message) == Outcome::ready);
      CHECK(publish(pong, message) == Outcome::ready);
    }
  });
  const Segment segment = back.attach();
  CHECK(take_seat(segment, 0, kWho));
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
      CHECK(take_seat(segment, index, kWho));
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

// A reader that drops a message at its start, because it lacks the memory, loses that message only.
void dropped_message(std::uint64_t rounds) {
  const Geometry geometry{1, 4, 128};
  Memory memory(geometry);
  RingWriter writer(memory.format(), kPark);
  std::thread peer([&] {
    const Segment segment = memory.attach();
    CHECK(take_seat(segment, 0, kWho));
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

// A reader that stops half-way does not block the writer once it has left.
void a_reader_leaves() {
  const Geometry geometry{2, 4, 128};
  Memory memory(geometry);
  RingWriter writer(memory.format(), kPark);
  const Segment segment = memory.attach();
  CHECK(take_seat(segment, 0, kWho));
  CHECK(!take_seat(segment, 0, kOther));
  CHECK(take_seat(segment, 1, kWho));
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

// A call whose time is over takes what was published by then, and no more.
void a_late_call_takes_what_was_there() {
  const Geometry geometry{1, 64, 128};
  Memory memory(geometry);
  RingWriter writer(memory.format(), kPark);
  const Segment segment = memory.attach();
  CHECK(take_seat(segment, 0, kWho));
  RingReader reader(segment, 0, kPark);
  const Message huge{std::vector<std::byte>(200 * 128, std::byte{0xee})};
  writer.begin(pieces_of(huge));
  const auto fill_ring = [&] { return writer.advance(monotonic_ns(), kNoStop); };
  const auto consumed = [&] { return peek(segment.member(0).consumed); };
  CHECK(fill_ring() == Outcome::timed_out);
  CHECK(!reader.is_late(0));
  CHECK(!reader.is_late(kForever));
  CHECK(!reader.is_late(deadline_after(3'600'000'000'000)));

  // The writer goes on at each look of the reader, whose time is over: it is as fast as the reader.
  const std::int64_t before = monotonic_ns();
  CHECK(reader.begin(before, kNoStop) == Outcome::ready);
  Message message{std::vector<std::byte>(reader.remaining())};
  const MutablePiece piece{message[0].data(), message[0].size()};
  reader.into({&piece, 1});
  CHECK(reader.fetch(before, kNoStop) == Outcome::timed_out);
  const std::uint64_t taken = consumed();
  CHECK(taken >= 63 && taken <= 64);
  CHECK(reader.is_late(before) == (taken == 64));
  CHECK(fill_ring() == Outcome::timed_out);
  CHECK(reader.fetch(before, kNoStop) == Outcome::timed_out);
  CHECK(consumed() <= taken + 16);
  // The next call begins anew, and looks at all that is there now.
  Outcome outcome = Outcome::timed_out;
  bool is_sent = false;
  for (int call = 0; call < 10 && outcome != Outcome::ready; ++call) {
    if (!is_sent && fill_ring() == Outcome::ready) {
      writer.commit();
      is_sent = true;
    }
    outcome = reader.fetch(monotonic_ns(), kNoStop);
  }
  CHECK(outcome == Outcome::ready);
  CHECK(message == huge);
  std::printf("ok  a late call\n");
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
    lossless_in_order({"2 readers, 4 slots that are timed", {2, 4, 16'384}, 300 * scale, policy});
  }
  no_lost_wake_up(10'000 * scale);
  abandoned_message(300 * scale);
  dropped_message(1000 * scale);
  a_reader_leaves();
  a_late_call_takes_what_was_there();
  limits();
}

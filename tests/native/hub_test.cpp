// No reply is lost on the way to a hub, and no wake-up: members reply, each in a thread of its own,
// and the hub parks on its bell, for any of them. To be run under ThreadSanitizer.
//
//     hub_test [scale]
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "check.hpp"
#include "hub/next_replies.hpp"
#include "hub/tail.hpp"
#include "hub_ends.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"
#include "ring_ends.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"
#include "wait/yielding.hpp"

namespace shmcast {
namespace {

struct Run {
  const char* name;
  std::uint64_t replies;
  WaitPolicy policy;
  bool yields;
};

void members_reply(const Run& run, Memory& memory, std::vector<std::thread>& members) {
  for (std::uint32_t index = 0; index < kMembers; ++index) {
    members.emplace_back([&, index] {
      const Tail tail(memory.attach(), kReplies);
      const Segment ring = tail.attach_ring(index, Segment::Nonce(kNonce));
      RingWriter writer(ring, run.policy, published_in(ring));
      for (std::uint64_t k = 0; k < run.replies; ++k) {
        const Message reply = make_message(index, k, kReplies.slot_capacity);
        CHECK(publish(writer, reply) == Outcome::ready);
      }
    });
  }
}

// The hub takes what is there, and waits where there is nothing.
void every_reply_arrives(const Run& run) {
  Memory memory(messages_of_a_hub());
  const Segment messages = memory.format();
  const Tail tail(messages, kReplies);
  CHECK(&messages.writer_gate() == &tail.bell().gate);
  std::vector<RingReader> readers;
  NextReplies next(kMembers);
  for (std::uint32_t i = 0; i < kMembers; ++i) {
    const Segment ring = tail.format_ring(i, Segment::Nonce(kNonce), kWho);
    CHECK(&ring.readers_gate() == &tail.bell().gate);
    CHECK(take_seat(ring, 0, kWho));
    readers.emplace_back(ring, 0, kPark);
    next.set(i, readers[i].awaited());
  }
  std::vector<std::thread> members;
  members_reply(run, memory, members);

  Figures figures{};
  Waiter waiter(run.policy, figures);
  Yielding yielding;
  std::vector<std::uint64_t> received(kMembers);
  const auto is_there = [&] { return next.is_any_there(); };
  const auto all = [&] {
    return std::all_of(received.begin(), received.end(),
                       [&](std::uint64_t count) { return count == run.replies; });
  };
  while (!all()) {
    if (run.yields) yielding.until(kForever, is_there, kNoStop);
    while (waiter.wait(Gate(tail.bell().gate), kForever, next.watched(0), Beat::yes, is_there,
                       kNoStop) == Outcome::interrupted) {
    }
    waiter.arrived(monotonic_ns());
    for (std::uint32_t i = 0; i < kMembers; ++i) {
      if (!next.is_there(i)) continue;
      Message reply;
      CHECK(receive(readers[i], reply) == Outcome::ready);
      next.set(i, readers[i].awaited());
      CHECK(reply == make_message(i, received[i], kReplies.slot_capacity));
      ++received[i];
    }
  }
  for (std::thread& member : members) member.join();
  std::printf("%s: %llu replies, slept %llu times\n", run.name,
              static_cast<unsigned long long>(kMembers * run.replies),
              static_cast<unsigned long long>(peek(figures.parks)));
}

// A writer that takes over a ring goes on behind what is there, though the last one was killed in
// the midst of a reply; the hub drops that one.
void a_ring_is_taken_over() {
  Memory memory(messages_of_a_hub());
  const Tail tail(memory.format(), kReplies);
  const Segment ring = tail.format_ring(1, Segment::Nonce(kNonce), kWho);
  CHECK(take_seat(ring, 0, kWho));
  RingReader reader(ring, 0, kPark);
  const std::vector<std::byte> byte(1);
  const std::vector<std::byte> long_one(3 * kReplies.slot_capacity);
  {
    RingWriter writer(tail.attach_ring(1, Segment::Nonce(kNonce)), kPark);
    CHECK(publish(writer, Message{byte}) == Outcome::ready);
    const ConstPiece piece{long_one.data(), long_one.size()};
    writer.begin({&piece, 1});
    CHECK(writer.advance(0, kNoStop) == Outcome::ready);  // all but the last fragment
  }
  CHECK(published_in(ring) == 3);
  ring.writer_figures().fragments = 4;  // as if it was killed before the last store
  RingWriter next(tail.attach_ring(1, Segment::Nonce(kNonce)), kPark, 3);
  CHECK(peek(ring.writer_figures().fragments) == 3);
  Message reply;
  CHECK(receive(reader, reply) == Outcome::ready);
  CHECK(reply == Message{byte});
  CHECK(publish(next, Message{byte, byte}) == Outcome::ready);
  CHECK(receive(reader, reply) == Outcome::ready);
  CHECK((reply == Message{byte, byte}));
  CHECK(reader.first() == 3);
  std::printf("a ring is taken over\n");
}

void a_tail_of_another_shape_is_refused() {
  Memory memory(messages_of_a_hub());
  const Segment messages = memory.format();
  bool is_refused = false;
  try {
    const Tail tail(messages, Geometry{1, 8, 128});
  } catch (const LayoutMismatch&) {
    is_refused = true;
  }
  CHECK(is_refused);
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const std::uint64_t scale = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  every_reply_arrives({"parked", 3000 * scale, kPark, false});
  every_reply_arrives({"adaptive", 3000 * scale, kAdaptive, false});
  every_reply_arrives({"yielding", 3000 * scale, kPark, true});
  a_ring_is_taken_over();
  a_tail_of_another_shape_is_refused();
}

// Readers die at any point, of which all tell alike, and are replaced. Writer and readers are
// threads over one ring, to be run under ThreadSanitizer.
//
//     rejoin_test [scale]
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "check.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "ring/reader.hpp"
#include "ring/writer.hpp"
#include "ring_ends.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"

namespace shmcast {
namespace {

// Return a message whose first frame is its number.
Message numbered(std::uint64_t k, std::uint64_t capacity) {
  Message message = make_message(19, k, capacity);
  std::vector<std::byte> number(sizeof k);
  std::memcpy(number.data(), &k, sizeof k);
  message.insert(message.begin(), number);
  return message;
}

// One process after the other takes seat 1 and dies somewhere, even while it rejoins. The writer
// drops the dead when they block it. The reader of seat 0 receives everything, each of the others
// what is sent from its admission on.
void the_dead_are_replaced(std::uint64_t messages) {
  const Geometry geometry{2, 4, 128};
  Memory memory(geometry);
  RingWriter writer(memory.format(), kPark);
  std::atomic<std::uint32_t> dead{0};  // all processes up to this one
  std::atomic<bool> is_over{false};
  std::uint64_t received = 0;
  std::thread survivor([&] {
    const Segment segment = memory.attach();
    CHECK(take_seat(segment, 0, kWho));
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
      if (!take_seat(segment, 1, {1, 1, pid}, found)) {  // it was dropped just now
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
    writer.commit();
  }
  is_over = true;
  writer.close();
  survivor.join();
  mortals.join();
  CHECK(received != 0);
  std::printf("ok  the dead are replaced: %u of them got %lu messages\n", dead.load(),
              static_cast<unsigned long>(received));
}

// Several members find others dead at the same time: all tell of the same death as the first.
void the_first_death_is_the_same_for_all(int rounds) {
  constexpr std::uint32_t kMembers = 4;
  for (int round = 0; round < rounds; ++round) {
    Memory memory(Geometry{kMembers, 4, 128});
    memory.format();
    std::vector<std::uint32_t> first(kMembers);
    std::vector<std::thread> members;
    CHECK(told_death(memory.attach()) > kMembers);  // nobody's
    for (std::uint32_t i = 0; i < kMembers; ++i) {
      members.emplace_back([&, i] { first[i] = tell_death(memory.attach(), i); });
    }
    for (std::thread& member : members) member.join();
    CHECK(first[0] < kMembers);
    for (const std::uint32_t told : first) CHECK(told == first[0]);
    CHECK(tell_death(memory.attach(), kMembers) == first[0]);
    CHECK(told_death(memory.attach()) == first[0]);
  }
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const std::uint64_t scale = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  the_dead_are_replaced(2000 * scale);
  the_first_death_is_the_same_for_all(100);
}

// When an extent is used again: never while a reader needs it. Writer and readers are threads, to
// be run under ThreadSanitizer.
//
// The arena's words are filled by plain stores and read by plain loads: an extent that is reused
// while somebody may look at it is a data race, which the sanitizer sees whatever the values are.
//
//     arena_test [scale]
#include "arena/arena.hpp"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "arena_ends.hpp"
#include "check.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "ring/message.hpp"
#include "ring/reader.hpp"
#include "settings.hpp"

namespace shmcast {
namespace {

// Readers keep views for a while and drop them in any order. A message's bytes are its number for
// as long as any view of it exists. Some messages are abandoned.
void views_never_change(std::uint32_t readers, std::uint64_t messages) {
  Shared shared(geometry_of(readers, 8));
  Sender sender(shared);
  std::vector<std::thread> threads;
  std::atomic<std::uint64_t> viewed{0};
  for (std::uint32_t index = 0; index < readers; ++index) {
    threads.emplace_back([&, index] {
      const Segment segment = shared.attach();
      CHECK(take_seat(segment, index, kWho));
      Receiver receiver(segment, shared.mapping(), index);
      std::mt19937_64 random(index);
      std::vector<View> views;
      std::uint64_t last = 0;
      while (const auto number = receiver.receive(views)) {
        CHECK(*number > last);
        last = *number;
        viewed += !views.empty();
        while (views.size() > 4 || (!views.empty() && random() % 2 == 0)) {
          std::swap(views[random() % views.size()], views.back());  // (perhaps itself)
          views.back().check();
          views.pop_back();
        }
      }
      CHECK(last == messages);
      receiver.leave();  // views outlive it
      for (const View& view : views) view.check();
    });
  }
  std::mt19937_64 random(99);
  std::uint64_t abandoned = 0;
  for (std::uint64_t number = 1; number <= messages; ++number) {
    if (number % 16 == 0) {
      sender.set_filler(100'000);
      const bool is_sent = sender.send(number, 2, random, 0);
      sender.set_filler(random() % 300);
      if (is_sent) continue;
      ++abandoned;
    }
    CHECK(sender.send(number, random() % 4, random));
  }
  sender.ring().close();
  for (auto& thread : threads) thread.join();
  check_all_free(sender.arena());
  CHECK(viewed != 0);
  std::printf(
      "ok  views never change: %u readers, %lu with views, %lu found no room, %lu given up\n",
      readers, static_cast<unsigned long>(viewed), static_cast<unsigned long>(sender.full()),
      static_cast<unsigned long>(abandoned));
}

// One reader after the other takes seat 1; each dies with views, which are then free.
void the_dead_hold_nothing(std::uint64_t lives) {
  Shared shared(geometry_of(2, 8));
  Sender sender(shared);
  std::mt19937_64 random(7);
  const Segment segment = shared.attach();
  CHECK(take_seat(segment, 0, kWho));
  Receiver survivor(segment, shared.mapping(), 0);
  std::vector<View> kept;
  std::uint64_t number = 0;
  const auto send_and_receive = [&] {
    CHECK(sender.send(++number, 1, random));
    CHECK(survivor.receive(kept) == number);
    kept.clear();
  };
  for (std::uint32_t pid = 1; pid <= lives; ++pid) {
    const std::uint64_t found = peers(segment)[1].seat;
    CHECK(take_seat(segment, 1, {pid, 1, pid}, found));
    Receiver mortal(segment, shared.mapping(), 1, found);
    if (random() % 4 == 0 && pid > 1) {  // dies, or leaves, before it is admitted
      check_all_free(sender.arena());
      continue;
    }
    std::thread life([&] {
      std::vector<View> views;
      CHECK(mortal.receive(views) == number + 1);
      CHECK(views.size() == 1);
      views[0].check();
      views[0].die();
    });
    CHECK(sender.send(number + 1, 1, random));
    life.join();
    ++number;
    CHECK(survivor.receive(kept) == number);
    kept.clear();
    CHECK(!sender.arena().allocate(kArenaBytes));
    switch (random() % 3) {
      case 0:  // noticed by the arena first
        sender.arena().mark_dead(1);
        check_all_free(sender.arena());
        send_and_receive();
        break;
      case 1:  // by the ring first
        sender.ring().drop(1, peers(segment)[1].seat);
        check_all_free(sender.arena());
        break;
      default: break;  // by its replacement
    }
  }
  std::printf("ok  the dead hold nothing: %lu lives\n", static_cast<unsigned long>(lives));
}

// A reader that has failed may have views for as long as its process lives: nobody gets its seat,
// and no message their memory, until they are gone.
void who_failed_keeps_its_views(std::uint64_t lives) {
  Shared shared(geometry_of(1, 8));
  Sender sender(shared);
  std::mt19937_64 random(11);
  const Segment segment = shared.attach();
  std::uint64_t found = kVacantSeat;
  for (std::uint32_t pid = 1; pid <= lives; ++pid) {
    CHECK(take_seat(segment, 0, {pid, 1, pid}, found, found != kVacantSeat));
    std::thread life([&, found] {
      Receiver reader(segment, shared.mapping(), 0, found);
      std::vector<View> views;
      CHECK(reader.receive(views) == pid);
      reader.fail();
      for (const View& view : views) view.check();
    });
    CHECK(sender.send(pid, 1, random));
    while (Seat::state(peers(segment)[0].seat) != SeatState::failed) std::this_thread::yield();
    sender.ring().drop(0, peers(segment)[0].seat);
    found = peers(segment)[0].seat;
    CHECK(Seat::state(found) == SeatState::dropped);
    if (pid % 2 == 0) life.join();
    std::optional<std::uint32_t> id;
    while (!(id = sender.arena().allocate(kArenaBytes))) std::this_thread::yield();
    std::memset(sender.arena().data(*id), 0, kArenaBytes);
    sender.arena().give_back(*id);
    if (pid % 2 != 0) life.join();
  }
  std::printf("ok  who failed keeps its views: %lu lives\n", static_cast<unsigned long>(lives));
}

// A refused message admits nobody: the arena would not learn of it.
void a_refused_message_admits_nobody() {
  Shared shared(geometry_of(1, 8));
  Sender sender(shared);
  const Segment segment = shared.attach();
  CHECK(take_seat(segment, 0, {1, 1, 1}));
  const std::uint64_t found = peers(segment)[0].seat;
  CHECK(take_seat(segment, 0, {2, 1, 2}, found));
  const std::byte one{};
  const ConstPiece huge{&one, Descriptor::kMaxBytes + 1};
  bool refused = false;
  try {
    sender.ring().begin({&huge, 1});
  } catch (const MessageTooLarge&) {
    refused = true;
  }
  CHECK(refused);
  CHECK(sender.ring().admitted().empty());
  const ConstPiece small{&one, 1};
  sender.ring().begin({&small, 1});
  CHECK(sender.ring().admitted().size() == 1);
  std::printf("ok  a refused message admits nobody\n");
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const std::uint64_t scale = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  for (const std::uint32_t readers : {1, 3}) views_never_change(readers, 1000 * scale);
  the_dead_hold_nothing(200 * scale);
  who_failed_keeps_its_views(200 * scale);
  a_refused_message_admits_nobody();
}

// Nobody passes a barrier before all have come, and nobody is left asleep in one: a hub and its
// members, each in a thread of its own. To be run under ThreadSanitizer.
//
//     barrier_test [scale]
#include "hub/barrier.hpp"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "check.hpp"
#include "hub/tail.hpp"
#include "hub_ends.hpp"
#include "layout.hpp"
#include "ring/reader.hpp"
#include "ring_ends.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"
#include "wait/waiter.hpp"

namespace shmcast {
namespace {

struct Run {
  const char* name;
  std::uint64_t barriers;
  WaitPolicy policy;
  bool is_crowded;
};

// As an endpoint does it.
Outcome pass(Barrier& barrier, Waiter& waiter, std::int64_t deadline_ns = kForever) {
  barrier.enter();
  Outcome outcome = Outcome::ready;
  while (!barrier.all_have_come() && !barrier.is_void()) {
    outcome = barrier.wait(
        waiter, deadline_ns, [&] { return barrier.all_have_come() || barrier.is_void(); }, kNoStop);
    if (outcome == Outcome::timed_out) return outcome;
  }
  if (barrier.is_void()) return Outcome::closed;
  barrier.leave();
  return Outcome::ready;
}

void all_pass_together(const Run& run) {
  Memory memory(messages_of_a_hub());
  memory.format();
  std::vector<std::atomic<std::uint64_t>> came(kMembers + 1);
  std::atomic<std::uint64_t> parks{0};
  std::vector<std::thread> threads;
  for (std::uint32_t place = 0; place <= kMembers; ++place) {
    threads.emplace_back([&, place] {
      const Segment messages = memory.attach();
      Figures figures{};
      Waiter waiter(run.policy, figures);
      waiter.set_crowded(run.is_crowded);
      Barrier barrier(messages, Tail(messages, kReplies), place);
      for (std::uint64_t k = 1; k <= run.barriers; ++k) {
        // relaxed, both: the barrier alone is to order them.
        came[place].store(k, std::memory_order_relaxed);
        CHECK(pass(barrier, waiter) == Outcome::ready);
        for (const auto& other : came) CHECK(other.load(std::memory_order_relaxed) >= k);
      }
      parks += peek(figures.parks);
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::printf("%s: %llu barriers, slept %llu times\n", run.name,
              static_cast<unsigned long long>(run.barriers),
              static_cast<unsigned long long>(parks.load()));
}

// A call that ends early stays in its barrier; whoever is missing is known.
void a_time_out_leaves_nothing_behind() {
  Memory memory(messages_of_a_hub());
  const Segment messages = memory.format();
  const Tail tail(messages, kReplies);
  Figures figures{};
  Waiter waiter(kPark, figures);
  std::vector<Barrier> all;
  for (std::uint32_t place = 0; place <= kMembers; ++place) all.emplace_back(messages, tail, place);
  for (int k = 0; k < 3; ++k) {
    for (std::uint32_t place = 0; place < kMembers; ++place) {
      CHECK(pass(all[place], waiter, 0) == Outcome::timed_out);
      CHECK(pass(all[place], waiter, 0) == Outcome::timed_out);
      CHECK(all[place].absent().back() == kMembers);
    }
    CHECK(pass(all[kMembers], waiter, 0) == Outcome::ready);
    for (std::uint32_t place = 0; place < kMembers; ++place) {
      CHECK(pass(all[place], waiter, 0) == Outcome::ready);
    }
  }
}

// One that has closed is not waited for, but for barriers that it has come to; a dropped one is
// left out.
void the_missing_end_a_barrier_or_are_excused() {
  Memory memory(messages_of_a_hub());
  const Segment messages = memory.format();
  const Tail tail(messages, kReplies);
  Figures figures{};
  Waiter waiter(kPark, figures);
  std::vector<RingReader> readers;
  for (std::uint32_t i = 0; i < kMembers; ++i) {
    CHECK(take_seat(messages, i, kWho));
    readers.emplace_back(messages, i, kPark);
  }
  Barrier first(messages, tail, 0);
  Barrier second(messages, tail, 1);
  Barrier third(messages, tail, 2);
  Barrier hub(messages, tail, kMembers);
  CHECK(pass(third, waiter, 0) == Outcome::timed_out);
  readers[2].leave();
  CHECK(pass(first, waiter, 0) == Outcome::timed_out);
  CHECK(pass(second, waiter, 0) == Outcome::timed_out);
  CHECK(pass(hub, waiter, 0) == Outcome::ready);
  CHECK(pass(first, waiter, 0) == Outcome::ready);
  CHECK(pass(second, waiter, 0) == Outcome::ready);
  CHECK(pass(first, waiter, 0) == Outcome::closed);
  CHECK((first.absent() == std::vector<std::uint32_t>{1, 2, kMembers}));

  std::atomic_ref(messages.member(2).seat)
      .store(Seat::pack(1, SeatState::dropped), std::memory_order_release);
  std::atomic_ref(messages.member(1).seat)
      .store(Seat::pack(1, SeatState::dropped), std::memory_order_release);
  hub.enter();
  CHECK(!hub.all_have_come());
  hub.excuse_dropped();
  CHECK(hub.all_have_come());
  hub.leave();
  CHECK(pass(first, waiter, 0) == Outcome::ready);
  CHECK(pass(first, waiter, 0) == Outcome::timed_out);
  CHECK(pass(hub, waiter, 0) == Outcome::ready);
  CHECK(pass(first, waiter, 0) == Outcome::ready);
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const std::uint64_t scale = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1;
  all_pass_together({"parked", 2000 * scale, kPark, false});
  all_pass_together({"adaptive", 2000 * scale, kAdaptive, false});
  all_pass_together({"yielding", 2000 * scale, kAdaptive, true});
  a_time_out_leaves_nothing_behind();
  the_missing_end_a_barrier_or_are_excused();
}

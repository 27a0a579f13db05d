// How an endpoint waits: every policy sees each change and ends, a gate is left as it was found,
// and every hint of this CPU's kind returns.
#include "wait/waiter.hpp"

#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "check.hpp"
#include "layout.hpp"
#include "settings.hpp"
#include "wait/cpus.hpp"
#include "wait/gate.hpp"
#include "wait/hints.hpp"
#include "wait/pace.hpp"
#include "wait/ticks.hpp"

namespace shmcast {
namespace {

constexpr WaitPolicy kSpin{WaitPolicy::Mode::spin, kForever};
constexpr WaitPolicy kAdaptive{WaitPolicy::Mode::adaptive, 25 * kMillisecond};

// A waker makes no system call unless somebody is parked.
void a_gate_is_left_as_it_was_found() {
  alignas(kLinePair) std::uint64_t word = 0;
  Gate gate(word);
  CHECK(!gate.wake());
  const std::uint64_t withdrawn = gate.announce();
  gate.withdraw(withdrawn);
  CHECK(!gate.wake());
  const std::uint64_t first = gate.announce();
  const std::uint64_t second = gate.announce();
  gate.withdraw(first);
  CHECK(gate.wake());  // the second is still there
  CHECK(!gate.wake());
  gate.withdraw(second);               // woken: nothing to take back
  CHECK(gate.park(second, kForever));  // too late to sleep
  const std::uint64_t late = gate.announce();
  CHECK(gate.park(late, monotonic_ns() + kMillisecond));
  gate.withdraw(late);
  CHECK(!gate.wake());
}

// What takes fewer ticks than ticks_within() says has not taken so long: else a lost core would go
// unseen.
void ticks_pass_at_least_so_fast() {
  const std::uint64_t before = ticks();
  const std::int64_t end = monotonic_ns() + 2 * kMillisecond;
  while (monotonic_ns() < end) {
  }
  CHECK(ticks_within(2 * kMillisecond) > 0);
  CHECK(ticks() - before >= ticks_within(2 * kMillisecond));
}

// `forced` names a hint to try although the CPU does not announce it.
void every_hint_comes_back(std::string_view forced) {
  std::uint64_t word = 7;
  for (const Hint& hint : hints::kAll) {
    if (!hint.available() && hint.name != forced) {
      std::printf("    this CPU has no %s\n", hint.name);
      continue;
    }
    for (int k = 0; k < 10'000; ++k) hint.idle(word, 6);  // changed already
    for (int k = 0; k < 100; ++k) hint.idle(word, 7);     // nobody will change it
    std::thread peer([&] {
      for (std::uint64_t k = 8; k < 1'000; ++k) std::atomic_ref(word).store(k);
    });
    for (std::uint64_t seen; (seen = peek(word)) != 999;) hint.idle(word, seen);
    peer.join();
    put(word, 7);
    std::printf("    %s\n", hint.name);
  }
  std::printf("    in use: %s\n", best_hint().name);
}

// Two threads count up and wake each other; every policy sees each step.
void every_policy_waits(const WaitPolicy& policy, std::uint64_t rounds) {
  struct alignas(kLinePair) Shared {
    std::uint64_t there = 0, back = 0, gate_there = 0, gate_back = 0;
  } shared;
  Figures figures[2] = {};
  const auto bounce = [&](Figures& own, std::uint64_t& in, std::uint64_t& in_gate,
                          std::uint64_t& out, std::uint64_t& out_gate, bool first) {
    Waiter waiter(policy, own);
    for (std::uint64_t k = 1; k <= rounds; ++k) {
      const auto send = [&] {
        std::atomic_ref(out).store(k, std::memory_order_seq_cst);
        Gate(out_gate).wake();
      };
      if (first) send();
      const auto ready = [&] { return std::atomic_ref(in).load(std::memory_order_seq_cst) == k; };
      Outcome outcome;
      do {
        outcome = waiter.wait(Gate(in_gate), kForever, in, Beat::yes, ready, [] { return false; });
      } while (outcome == Outcome::interrupted);
      CHECK(outcome == Outcome::ready);
      waiter.arrived(kForever);  // as of now
      if (!first) send();
    }
  };
  std::thread peer([&] {
    bounce(figures[1], shared.there, shared.gate_there, shared.back, shared.gate_back, false);
  });
  bounce(figures[0], shared.back, shared.gate_back, shared.there, shared.gate_there, true);
  peer.join();
  for (const Figures& own : figures) {
    CHECK((policy.mode == WaitPolicy::Mode::park) == (own.spins == 0 && own.spun_ns == 0));
    CHECK(policy.mode != WaitPolicy::Mode::spin || own.parks == 0);
    CHECK(own.wakeups <= own.parks);
    CHECK((own.parks == 0) == (own.parked_ns == 0));
  }
}

void a_wait_ends(const WaitPolicy& policy) {
  Figures figures = {};
  Waiter waiter(policy, figures);
  std::uint64_t word = 0, gate = 0;
  const auto never = [] { return false; };
  const auto always = [] { return true; };
  const auto wait = [&](std::int64_t deadline, auto stop) {
    Outcome outcome;
    do {
      outcome = waiter.wait(Gate(gate), deadline, word, Beat::yes, never, stop);
    } while (outcome == Outcome::interrupted);
    return outcome;
  };
  const std::int64_t deadline = deadline_after(3 * kMillisecond);
  CHECK(wait(deadline, never) == Outcome::timed_out);
  CHECK(monotonic_ns() >= deadline);
  CHECK(wait(0, never) == Outcome::timed_out);
  CHECK(wait(kForever, always) == Outcome::closed);
  CHECK(!Gate(gate).wake());
}

// A waiter and the word it waits for, which may change while the waiter looks.
struct Waiting {
  explicit Waiting(const WaitPolicy& policy) : waiter(policy, figures) {}

  // Wait for a message that is there when ready() says so, and record that it has come.
  template <class Ready>
  void receive(Ready ready) {
    CHECK(slices(ready, 1'000'000) == Outcome::ready);
    waiter.arrived(kForever);
  }
  // Take at most `count` slices of a wait.
  template <class Ready>
  Outcome slices(Ready ready, int count) {
    Outcome outcome = Outcome::interrupted;
    for (int k = 0; k < count && outcome == Outcome::interrupted; ++k) {
      outcome = waiter.wait(Gate(gate), kForever, word, Beat::yes, ready, [] { return false; });
    }
    return outcome;
  }
  // Return whether the next wait spins. It gets its message at the second look.
  bool spins() {
    const std::uint64_t before = figures.spins;
    int looks = 0;
    receive([&] { return ++looks > 1; });
    return figures.spins != before;
  }

  Figures figures = {};
  Waiter waiter;
  std::uint64_t word = 0, gate = 0;
};

void lose_the_core(std::int64_t duration_ns = 2 * kMillisecond) {
  const std::int64_t until = monotonic_ns() + duration_ns;
  while (monotonic_ns() < until) {
  }
}

// Return whether `test` says yes in one of some tries. The machine itself takes the core now and
// then, and a test of what one loss does then has seen two.
template <class Test>
bool in_some_try(Test test) {
  constexpr int kTries = 50;
  for (int k = 0; k < kTries; ++k) {
    if (test()) return true;
  }
  return false;
}

// The core is lost in a look, before one, or while the caller has it; with the message there or
// not.
void a_loss_is_seen_whenever_it_happens() {
  for (const bool is_last : {false, true}) {
    CHECK(in_some_try([&] {
      Waiting in_a_look(kAdaptive);
      int looks = 0;
      in_a_look.receive([&] {
        if (++looks == 3) lose_the_core();
        return is_last ? looks >= 3 : looks >= 4;
      });
      return in_a_look.figures.preemptions == 1 && !in_a_look.spins();
    }));
    CHECK(in_some_try([&] {
      Waiting between_calls(kAdaptive);
      CHECK(between_calls.slices([] { return false; }, 1) == Outcome::interrupted);
      if (!between_calls.waiter.is_spinning()) return false;  // it was lost already
      lose_the_core();
      if (is_last) {
        between_calls.waiter.arrived(kForever);  // found by the caller's own look
      } else {
        int looks = 0;
        between_calls.receive([&] { return ++looks > 1; });
      }
      return between_calls.figures.preemptions == 1 && !between_calls.spins();
    }));
  }
}

// How long the caller does something else between two messages, or after it has given a wait up,
// says nothing about the core.
void time_between_waits_is_no_loss() {
  CHECK(in_some_try([] {
    Waiting waiting(kAdaptive);
    bool spins = waiting.spins();
    lose_the_core();
    spins = waiting.spins() && spins;
    CHECK(waiting.slices([] { return false; }, 1) == Outcome::interrupted);
    waiting.waiter.done();
    lose_the_core();
    spins = waiting.spins() && spins;
    return spins && waiting.figures.preemptions == 0;
  }));
}

// A pause lasts for some messages, however often a wait for one is given up in between; after it,
// the waiter spins again. Here each of them takes a slice of a parked wait, 50 ms: a short loss, so
// that its pause is over before it is ended by time.
void a_pause_is_counted_in_messages() {
  CHECK(in_some_try([] {
    Waiting waiting(kAdaptive);
    int looks = 0;
    waiting.receive([&] {
      if (++looks == 2) lose_the_core(600 * kMicrosecond);
      return looks > 2;
    });
    const auto never = [] { return false; };
    for (int k = 0; k < 200; ++k) {
      CHECK(waiting.waiter.wait(Gate(waiting.gate), deadline_after(1), waiting.word, Beat::yes,
                                never, never) == Outcome::timed_out);
    }
    int parked = 0;
    while (!waiting.spins()) ++parked;
    return parked >= 19 && parked <= 24 && waiting.figures.parked_preempted >= 20;
  }));
}

// Whoever wakes from a nap lets its caller warm up more than once, with one look before each round.
void a_nap_is_followed_by_rounds() {
  Waiting waiting(kAdaptive);
  std::atomic<bool> is_over = false;
  std::thread peer([&] {
    while (!is_over) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      std::atomic_ref(waiting.word).fetch_add(1);
      Gate(waiting.gate).wake();
    }
  });
  int rounds = 0;  // after one nap
  for (std::uint64_t taken = 0; rounds < 3; taken = peek(waiting.word)) {
    rounds = 0;
    bool has_napped = false;
    Outcome outcome = Outcome::interrupted;
    while (outcome == Outcome::interrupted) {
      int looks = 0;
      const std::uint64_t parks = waiting.figures.parks;
      outcome = waiting.slices(
          [&] {
            ++looks;
            return peek(waiting.word) != taken;
          },
          1);
      if (has_napped && rounds < 3 && waiting.waiter.is_spinning()) {
        CHECK(looks <= best_hint().idles_per_clock_read + 1);
        ++rounds;
      }
      has_napped = has_napped || (waiting.figures.parks > parks && waiting.waiter.is_spinning());
    }
    CHECK(outcome == Outcome::ready);
    waiting.waiter.arrived(kForever);
  }
  is_over = true;
  peer.join();
}

// Whoever waits on the CPU of the member that it waits for makes room for it, once a core was lost:
// before, the kernel has found another one for that member.
void nobody_spins_on_the_cpu_of_its_peer_where_cores_are_lost() {
  cpu_set_t before, one;
  CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
  std::uint64_t peer = 0;
  Waiting waiting(kAdaptive);
  waiting.waiter.set_peer_cpu(peer);
  CHECK(waiting.spins());  // it was seen nowhere
  LastCpu(peer).note();
  CHECK(in_some_try([&] {
    Waiting alone(kAdaptive);
    alone.waiter.set_peer_cpu(peer);
    return alone.spins();
  }));
  int looks = 0;
  waiting.receive([&] {
    if (++looks == 2) lose_the_core(600 * kMicrosecond);
    return looks > 2;
  });
  while (waiting.figures.parked_beside_peer == 0) CHECK(!waiting.spins());  // first, for the loss
  CHECK(waiting.figures.parked_preempted >= 500 / 30);
  put(peer, peer + 1);
  CHECK(in_some_try([&] { return waiting.spins(); }));
  CHECK(sched_setaffinity(0, sizeof before, &before) == 0);
}

void cpus_overlap_as_far_as_they_are_known() {
  const Affinity mine = Affinity::of_this_thread();
  CHECK(mine.count >= 1);
  CpuMask other{};
  CHECK(mine.overlaps(other));  // it may run anywhere
  mine.publish(other);
  CHECK(mine.overlaps(other));
  for (std::uint64_t& word : other.words) word = ~word;
  CHECK(!mine.overlaps(other));
  CHECK(Affinity{}.overlaps(other));
}

// An adaptive wait does not spin where it is crowded, or where the policy gives it no time to.
void crowded_means_parked() {
  for (const std::int64_t max_spin : {0 * kMillisecond, 25 * kMillisecond}) {
    Figures figures = {};
    Waiter waiter({WaitPolicy::Mode::adaptive, max_spin}, figures);
    CHECK(waiter.review_is_due());
    waiter.set_crowded(max_spin != 0);
    CHECK(!waiter.review_is_due());
    std::uint64_t word = 0, gate = 0;
    const auto never = [] { return false; };
    Outcome outcome;
    const std::int64_t deadline = deadline_after(2 * kMillisecond);
    do {
      outcome = waiter.wait(Gate(gate), deadline, word, Beat::yes, never, never);
      CHECK(!waiter.is_spinning());
    } while (outcome == Outcome::interrupted);
    CHECK(outcome == Outcome::timed_out);
    CHECK(figures.spun_ns == 0 && figures.parks > 0);
    CHECK(figures.parked_crowded == (max_spin != 0 ? 1 : 0));
    CHECK(figures.parked_unpaced == (max_spin != 0 ? 0 : 1));
  }
}

// Where CPUs are short, who was woken late sleeps on the CPU of its place for some messages. Awake,
// it may run where it might before, or where somebody has said meanwhile.
void who_is_woken_late_is_woken_apart() {
  const CpuSet before = CpuSet::of_this_thread();
  const std::uint32_t count = before.count();
  Figures figures = {};
  Waiter waiter(kAdaptive, figures);
  std::uint64_t word = 0, gate = 0;
  const auto never = [] { return false; };
  const auto sleep = [&](auto ready) {
    const std::int64_t deadline = deadline_after(2 * kMillisecond);
    while (waiter.wait(Gate(gate), deadline, word, Beat::yes, ready, never) ==
           Outcome::interrupted) {
    }
  };
  const auto place_asleep = [&] {
    CpuSet seen;
    sleep([&] {
      seen = CpuSet::of_this_thread();
      return false;
    });
    CHECK(CpuSet::of_this_thread() == before);
    return seen;
  };
  constexpr std::int64_t kLate = 0;  // sent when the wait began, or earlier
  for (const std::uint32_t place : {0U, 1U, 2U}) {
    waiter.set_crowded(true, place);
    waiter.arrived(kForever);
    CHECK(place_asleep() == before);
    waiter.arrived(kLate);
    const CpuSet own = count > 1 ? before.only(place % count) : before;
    CHECK(place_asleep() == own);
    waiter.set_crowded(true);  // for want of a quota: there are CPUs enough
    CHECK(place_asleep() == before);
    waiter.set_crowded(true, place);
    for (int k = 0; !(place_asleep() == before); ++k) {
      CHECK(k < 10'000);
      waiter.arrived(kForever);  // in time
    }
  }
  if (count < 2) return;
  const CpuSet told = before.only(1);
  waiter.set_crowded(true, 0U);
  sleep(never);
  waiter.arrived(kLate);
  sleep([&] {
    CHECK(told.apply_to_this_thread());
    return false;
  });
  CHECK(CpuSet::of_this_thread() == told);
  CHECK(before.apply_to_this_thread());
}

}  // namespace
}  // namespace shmcast

int main() {
  using namespace shmcast;
  a_gate_is_left_as_it_was_found();
  ticks_pass_at_least_so_fast();
  std::printf("ok  gate\n");
  const char* forced = std::getenv("FORCED_HINT");
  every_hint_comes_back(forced != nullptr ? forced : "");
  std::printf("ok  hints\n");
  for (const WaitPolicy& policy : {kSpin, kPark, kAdaptive}) {
    every_policy_waits(policy, policy.mode == WaitPolicy::Mode::spin ? 200 : 2000);
    a_wait_ends(policy);
  }
  crowded_means_parked();
  who_is_woken_late_is_woken_apart();
  a_loss_is_seen_whenever_it_happens();
  time_between_waits_is_no_loss();
  a_pause_is_counted_in_messages();
  a_nap_is_followed_by_rounds();
  nobody_spins_on_the_cpu_of_its_peer_where_cores_are_lost();
  cpus_overlap_as_far_as_they_are_known();
  std::printf("ok  waits\n");
}

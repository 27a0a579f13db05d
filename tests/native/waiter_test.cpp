// How an endpoint waits: every policy sees each change and ends, a gate is left as it was found,
// and every hint of this CPU's kind returns.
#include "wait/waiter.hpp"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "check.hpp"
#include "layout.hpp"
#include "settings.hpp"
#include "wait/gate.hpp"
#include "wait/hints.hpp"
#include "wait/pace.hpp"

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
  }
}

}  // namespace
}  // namespace shmcast

int main() {
  using namespace shmcast;
  a_gate_is_left_as_it_was_found();
  std::printf("ok  gate\n");
  const char* forced = std::getenv("FORCED_HINT");
  every_hint_comes_back(forced != nullptr ? forced : "");
  std::printf("ok  hints\n");
  for (const WaitPolicy& policy : {kSpin, kPark, kAdaptive}) {
    every_policy_waits(policy, policy.mode == WaitPolicy::Mode::spin ? 200 : 2000);
    a_wait_ends(policy);
  }
  crowded_means_parked();
  std::printf("ok  waits\n");
}

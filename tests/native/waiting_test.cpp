// How an endpoint waits: what it predicts from the gaps that it has seen, when it gives spinning
// up, that a gate is left as it was found, and that every hint of this CPU's kind comes back.
#include <atomic>
#include <random>
#include <string_view>
#include <thread>
#include <vector>

#include "check.hpp"
#include "wait/waiter.hpp"

namespace shmcast {
namespace {

constexpr WaitPolicy kSpin{WaitPolicy::Mode::spin, kForever};
constexpr WaitPolicy kPark{WaitPolicy::Mode::park, 0};
constexpr WaitPolicy kAdaptive{WaitPolicy::Mode::adaptive, 25 * kMillisecond};

// The pace of a reader that has seen these gaps, in milliseconds, and waited through all of them.
class Seen {
 public:
  explicit Seen(const std::vector<double>& gaps_ms) {
    pace_.arrived(now_, now_);
    for (const double gap : gaps_ms) {
      const std::int64_t began = now_;
      now_ += static_cast<std::int64_t>(gap * 1e6);
      pace_.arrived(now_, began);
    }
  }
  // From the last beat on.
  WakeInterval predict(std::int64_t elapsed_ns) const {
    const WakeInterval interval = pace_.predict(now_ + elapsed_ns, now_);
    return interval.to_ns == 0 ? interval
                               : WakeInterval{interval.from_ns - now_, interval.to_ns - now_};
  }
  std::int64_t gap_ns() const { return pace_.gap_ns(); }

 private:
  std::int64_t now_ = 1'000'000'000;
  Pace pace_;
};

bool holds(const WakeInterval& interval, double from_ms, double to_ms) {
  return interval.from_ns == static_cast<std::int64_t>(from_ms * 1e6) &&
         interval.to_ns == static_cast<std::int64_t>(to_ms * 1e6);
}

bool is_none(const WakeInterval& interval) { return interval.to_ns == 0; }

// Uniform within +-jitter of a mean, from a seed.
std::vector<double> jittered(double mean, double jitter, std::size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> gap(mean * (1 - jitter), mean * (1 + jitter));
  std::vector<double> gaps(count);
  for (double& value : gaps) value = gap(random);
  return gaps;
}

void a_pace_needs_a_few_gaps() {
  CHECK(is_none(Seen({}).predict(0)));
  CHECK(Seen({}).gap_ns() == 0);
  CHECK(is_none(Seen({10, 10, 10}).predict(0)));
  CHECK(Seen({10, 10, 10}).gap_ns() == 0);
  CHECK(holds(Seen({10, 11, 10, 10}).predict(0), 10, 11));
  CHECK(Seen({10, 11, 10, 10}).gap_ns() == 10 * kMillisecond);
}

void a_steady_loop_is_foretold() {
  for (const double mean : {2.0, 5.0, 10.0, 20.0, 50.0}) {
    int caught = 0;
    for (unsigned seed = 0; seed < 100; ++seed) {
      std::vector<double> gaps = jittered(mean, 0.1, 41, seed);
      const auto next = static_cast<std::int64_t>(gaps.back() * 1e6);
      gaps.pop_back();
      const WakeInterval interval = Seen(gaps).predict(0);
      CHECK(interval.from_ns >= static_cast<std::int64_t>(mean * 0.9e6));
      CHECK(interval.to_ns <= static_cast<std::int64_t>(mean * 1.1e6));
      caught += next >= interval.from_ns && next <= interval.to_ns;
    }
    CHECK(caught >= 65);
  }
}

void an_outlier_changes_nothing() {
  CHECK(holds(Seen({10, 10, 10, 10, 10, 10, 10, 500}).predict(0), 10, 10));
  CHECK(holds(Seen({10, 10, 0.5, 10, 10, 10, 10, 10}).predict(0), 10, 10));
}

void a_new_pace_is_learned() {
  std::vector<double> gaps(16, 10.0);
  gaps.insert(gaps.end(), 4, 20.0);
  // First what most gaps are; once that has passed, what else has been seen.
  CHECK(holds(Seen(gaps).predict(0), 10, 10));
  CHECK(holds(Seen(gaps).predict(11 * kMillisecond), 20, 20));
  gaps.insert(gaps.end(), 5, 20.0);
  CHECK(holds(Seen(gaps).predict(0), 20, 20));
  gaps.insert(gaps.end(), 7, 20.0);
  CHECK(is_none(Seen(gaps).predict(21 * kMillisecond)));
}

void what_cannot_be_foretold_is_parked_for() {
  int parked = 0;
  for (unsigned seed = 0; seed < 100; ++seed) {
    std::mt19937 random(seed);
    std::exponential_distribution<double> gap(1 / 20.0);  // mean 20 ms
    std::vector<double> gaps(16);
    for (double& value : gaps) value = gap(random) + 0.2;
    parked += is_none(Seen(gaps).predict(0));
  }
  CHECK(parked >= 90);
}

void a_fast_loop_is_spun_for() {
  // However irregular: all gaps together cost less than the wake-ups would.
  CHECK(holds(Seen({0.3, 0.7, 0.2, 0.5, 0.9, 0.4, 0.8, 0.6}).predict(0), 0.2, 0.9));
}

void a_burst_is_one_beat() {
  Pace pace;
  std::int64_t start = 0;
  for (int burst = 1; burst <= 6; ++burst) {
    start = burst * 40 * kMillisecond;
    for (int k = 0; k < 8; ++k) {
      const std::int64_t now = start + k * 20 * kMicrosecond;
      pace.arrived(now, k == 0 ? now - 39 * kMillisecond : now);
    }
  }
  const WakeInterval interval = pace.predict(start + kMillisecond, start + kMillisecond);
  CHECK(interval.from_ns == start + 40 * kMillisecond);
  CHECK(interval.to_ns == start + 40 * kMillisecond);
}

// Readers compute for a while that varies much, then wait a little: the waits are what is steady.
void a_loop_that_readers_drive_is_foretold_by_its_waits() {
  Pace pace;
  std::mt19937 random(1);
  std::uniform_int_distribution<std::int64_t> work(5 * kMillisecond, 60 * kMillisecond);
  std::int64_t now = kMillisecond;
  for (int k = 0; k < 20; ++k) {
    const std::int64_t began = now + work(random);
    now = began + (300 + k % 3 * 10) * kMicrosecond;
    pace.arrived(now, began);
  }
  const std::int64_t began = now + 33 * kMillisecond;
  const WakeInterval interval = pace.predict(began, began);
  CHECK(interval.from_ns == began + 300 * kMicrosecond);
  CHECK(interval.to_ns == began + 320 * kMicrosecond);
}

void oversleep_finds_what_is_usual() {
  Oversleep oversleep;
  std::mt19937 random(1);
  std::uniform_int_distribution<std::int64_t> late(0, 500 * kMicrosecond);
  for (int k = 0; k < 2000; ++k) oversleep.slept(late(random));
  CHECK(oversleep.typical_ns() > 330 * kMicrosecond);
  CHECK(oversleep.typical_ns() < 600 * kMicrosecond);
  for (int k = 0; k < 2000; ++k) oversleep.slept(k % 100 == 0 ? 80 * kMillisecond : 0);
  CHECK(oversleep.typical_ns() < 100 * kMicrosecond);
}

void a_nap_must_be_worth_its_risk() {
  Oversleep oversleep;
  for (int k = 0; k < 100; ++k) oversleep.slept(50 * kMicrosecond);
  CHECK(!oversleep.allows(400 * kMicrosecond));
  CHECK(oversleep.allows(700 * kMicrosecond));
  for (int k = 0; k < 100; ++k) oversleep.slept(2 * kMillisecond);
  CHECK(!oversleep.allows(700 * kMicrosecond));
  CHECK(oversleep.allows(9 * kMillisecond));
  int refusals = 0;
  while (!oversleep.allows(700 * kMicrosecond)) ++refusals;
  CHECK(refusals > 10 && refusals < 200);
}

void a_lost_core_ends_spinning_for_a_while() {
  Contention contention;
  std::int64_t now = 1'000 * kMillisecond;
  CHECK(!contention.spun(now, 100 * kMicrosecond));
  CHECK(contention.until_ns() <= now);
  CHECK(contention.spun(now, 3 * kMillisecond));
  CHECK(contention.until_ns() > now);
  CHECK(contention.until_ns() > now + 3 * kMillisecond);
  CHECK(contention.until_ns() <= now + 5 * kMillisecond);
  // Again and again: for longer and longer, up to a limit.
  for (int k = 0; k < 20; ++k) CHECK(contention.spun(now += 2 * kMillisecond, 3 * kMillisecond));
  CHECK(contention.until_ns() > now + 900 * kMillisecond);
  CHECK(contention.until_ns() <= now + 1'100 * kMillisecond);
  // After a long time without: a short while again.
  now += 60'000 * kMillisecond;
  CHECK(contention.spun(now, 3 * kMillisecond));
  CHECK(contention.until_ns() <= now + 5 * kMillisecond);
}

// A waker pays for no system call unless somebody is parked.
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

// `forced`: one that is not said to be available, but is known to be harmless.
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

// Counts up and wakes, again and again; every policy sees each step.
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

// In an adaptive wait nobody spins where it is crowded, or where it was told not to.
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
  a_pace_needs_a_few_gaps();
  a_steady_loop_is_foretold();
  an_outlier_changes_nothing();
  a_new_pace_is_learned();
  what_cannot_be_foretold_is_parked_for();
  a_fast_loop_is_spun_for();
  a_burst_is_one_beat();
  a_loop_that_readers_drive_is_foretold_by_its_waits();
  std::printf("ok  pace\n");
  oversleep_finds_what_is_usual();
  a_nap_must_be_worth_its_risk();
  a_lost_core_ends_spinning_for_a_while();
  std::printf("ok  oversleep, contention\n");
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

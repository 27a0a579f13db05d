// What a waiter predicts from the gaps that it has seen, and when it stops spinning.
#include "wait/pace.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <utility>
#include <vector>

#include "check.hpp"

namespace shmcast {
namespace {

// The pace of a reader that has waited through these gaps, in milliseconds.
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
  // Return the interval to be awake in, relative to the last beat.
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

// Return gaps distributed uniformly within mean * (1 +- jitter).
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

void a_steady_loop_is_predicted() {
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
  // First the most frequent gap; once that has passed, the others.
  CHECK(holds(Seen(gaps).predict(0), 10, 10));
  CHECK(holds(Seen(gaps).predict(11 * kMillisecond), 20, 20));
  gaps.insert(gaps.end(), 5, 20.0);
  CHECK(holds(Seen(gaps).predict(0), 20, 20));
  gaps.insert(gaps.end(), 7, 20.0);
  CHECK(is_none(Seen(gaps).predict(21 * kMillisecond)));
}

void what_cannot_be_predicted_is_parked_for() {
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

// Readers compute for varying times, then wait a little: only the waits are steady.
void a_loop_that_readers_drive_is_predicted_by_its_waits() {
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

// Return for how many messages that come without a loss the waiter stays parked.
std::int64_t pause_of(Contention& contention) {
  std::int64_t messages = 0;
  for (; contention.is_on(0); ++messages) contention.arrived();
  return messages;
}

void a_lost_core_ends_spinning_for_some_messages() {
  Contention contention;
  CHECK(!contention.looked(499 * kMicrosecond, 0));
  CHECK(!contention.is_on(0));
  CHECK(contention.looked(500 * kMicrosecond, 0));
  CHECK(contention.is_on(0));
  CHECK(pause_of(contention) == 500 / 30);
}

void a_pause_makes_up_for_what_was_lost() {
  for (const auto& [lost_ms, messages] : {std::pair{0.5, 16}, {1.5, 50}, {4.0, 64}, {1e6, 64}}) {
    Contention contention;
    CHECK(contention.looked(static_cast<std::int64_t>(lost_ms * 1e6), 0));
    CHECK(pause_of(contention) == messages);
  }
}

void a_core_that_is_lost_again_ends_spinning_for_longer() {
  Contention contention;
  CHECK(contention.looked(4 * kMillisecond, 0));
  CHECK(pause_of(contention) == 64);
  // Within four pauses it is four times as long, up to a limit.
  std::int64_t pause = 64;
  for (int k = 0; k < 10; ++k) {
    for (std::int64_t message = 0; message < 4 * pause - 1; ++message) contention.arrived();
    CHECK(contention.looked(kMillisecond, 0));
    pause = std::min<std::int64_t>(4 * pause, 4096);
    CHECK(pause_of(contention) == pause);
  }
  CHECK(pause == 4096);
  // A loss in the midst of a pause (a wait for the rest of a message) begins a longer one, too.
  CHECK(contention.looked(kMillisecond, 0));
  CHECK(contention.looked(kMillisecond, 0));
  CHECK(pause_of(contention) == 4096);
  // After four pauses without a loss, it counts as the first again.
  for (std::int64_t message = 0; message < 4 * pause; ++message) contention.arrived();
  CHECK(contention.looked(500 * kMicrosecond, 0));
  CHECK(pause_of(contention) == 16);
}

void a_pause_ends_in_time_even_if_few_messages_come() {
  Contention contention;
  const std::int64_t now = 7'000 * kMillisecond;
  for (int k = 0; k < 9; ++k) CHECK(contention.looked(kMillisecond, now));
  CHECK(contention.is_on(now + 1'999 * kMillisecond));
  CHECK(!contention.is_on(now + 2'000 * kMillisecond));
  CHECK(!contention.is_on(now));  // it is over
  // Lost again after few messages: as before, and for two seconds again.
  CHECK(contention.looked(kMillisecond, now + 2'000 * kMillisecond));
  CHECK(contention.is_on(now + 3'999 * kMillisecond));
  CHECK(pause_of(contention) == 4096);
}

void a_loss_is_remembered_longer_than_its_pause() {
  Contention contention;
  const std::int64_t now = 7'000 * kMillisecond;
  CHECK(!contention.is_remembered(now));
  CHECK(!contention.looked(499 * kMicrosecond, now));
  CHECK(!contention.is_remembered(now));
  CHECK(contention.looked(500 * kMicrosecond, now));
  while (contention.is_on(now)) contention.arrived();
  CHECK(contention.is_remembered(now + 9'999 * kMillisecond));
  CHECK(!contention.is_remembered(now + 10'000 * kMillisecond));
}

}  // namespace
}  // namespace shmcast

int main() {
  using namespace shmcast;
  a_pace_needs_a_few_gaps();
  a_steady_loop_is_predicted();
  an_outlier_changes_nothing();
  a_new_pace_is_learned();
  what_cannot_be_predicted_is_parked_for();
  a_fast_loop_is_spun_for();
  a_burst_is_one_beat();
  a_loop_that_readers_drive_is_predicted_by_its_waits();
  std::printf("ok  pace\n");
  oversleep_finds_what_is_usual();
  a_nap_must_be_worth_its_risk();
  a_lost_core_ends_spinning_for_some_messages();
  a_pause_makes_up_for_what_was_lost();
  a_core_that_is_lost_again_ends_spinning_for_longer();
  a_pause_ends_in_time_even_if_few_messages_come();
  a_loss_is_remembered_longer_than_its_pause();
  std::printf("ok  oversleep, contention\n");
}

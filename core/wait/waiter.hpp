// Room: wait. The waiter: look, spin, nap or park until a word in shared memory changes.
// Knows: the wait policy and its stages; the gate, the pace and the hints it is made of.
// Does not know: what the word means, or who changes it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "layout.hpp"
#include "wait/cpus.hpp"
#include "wait/gate.hpp"
#include "wait/hints.hpp"
#include "wait/pace.hpp"
#include "wait/ticks.hpp"

namespace shmcast {

struct WaitPolicy {
  enum class Mode : std::uint8_t { spin, park, adaptive };
  Mode mode = Mode::adaptive;
  std::int64_t max_spin_ns = 0;  // adaptive: the most spinning in one wait
};

// Whether a wait is for something that comes at a pace: the next message, not the rest of this one.
enum class Beat : bool { no, yes };

// Waits on behalf of one endpoint. Keeps what it learns from one wait to the next and, when a wait
// is interrupted, where to resume it.
class Waiter {
 public:
  explicit Waiter(const WaitPolicy& policy, Figures& figures)
      : policy_(policy), figures_(figures) {}

  // Set where the member that is waited for was last seen, see LastCpu.
  void set_peer_cpu(const std::uint64_t& cpu) { peer_cpu_ = &cpu; }

  // Set whether there are too many members for the CPUs; an adaptive wait then does not spin. The
  // caller finds that out whenever review_is_due(). `place`: among those who share the CPUs, if it
  // is for want of CPUs.
  void set_crowded(bool crowded, std::optional<std::uint32_t> place = {}) {
    crowded_ = crowded;
    place_ = place;
    reviewed_ns_ = monotonic_ns();
  }

  // Wait by another policy from the next wait on. What was learned of the pace is kept.
  void set_policy(const WaitPolicy& policy) { policy_ = policy; }

  // Return true if the policy is adaptive and the last set_crowded() is a while ago.
  bool review_is_due() const {
    return policy_.mode == WaitPolicy::Mode::adaptive && monotonic_ns() - reviewed_ns_ > kReviewNs;
  }

  // Return whether an adaptive wait does not spin because there are too few CPUs.
  bool is_crowded() const { return policy_.mode == WaitPolicy::Mode::adaptive && crowded_; }

  // Return whether the interrupted wait was spinning, and will resume so.
  bool is_spinning() const { return stage_ == Stage::spin; }

  // Wait until ready() or stop(). `interrupted` asks the caller to handle signals, to call
  // set_crowded() if a review is due, to warm up if is_spinning(), and to call again. `watched` is
  // a hint where to look: a word that changes when ready() does, or its neighbour in the cache
  // line. Call arrived() after a wait for a `beat`.
  template <class Ready, class Stop>
  Outcome wait(Gate gate, std::int64_t deadline_ns, const std::uint64_t& watched, Beat beat,
               Ready ready, Stop stop) {
    std::int64_t now = look_at_clock();
    if (now >= deadline_ns) {
      done();
      return stop() ? stopped(ready) : Outcome::timed_out;
    }
    if (stage_ == Stage::none) begin(now, beat);
    if (was_late(now)) enter(Stage::park, kForever);  // since it was interrupted
    Outcome outcome;
    do {
      if (now >= stage_end_) plan(now);
      outcome = stage_ == Stage::spin ? spin(now, deadline_ns, watched, ready, stop)
                                      : sleep(now, gate, deadline_ns, ready, stop);
      // A spin that is over leads to the next stage at once.
    } while (outcome == Outcome::interrupted && stage_ == Stage::spin && now >= stage_end_);
    ended_ns_ = now;
    const bool goes_on = outcome == Outcome::interrupted || outcome == Outcome::ready;
    looked_ns_ = goes_on && stage_ == Stage::spin ? now : 0;
    if (outcome != Outcome::interrupted) stage_ = Stage::none;
    return outcome;
  }

  // End the wait: its object is there, perhaps since the wait was interrupted, or the caller gives
  // the wait up.
  void done() {
    stage_ = Stage::none;
    looked_ns_ = 0;
  }

  // End a wait for a beat, and learn from it unless there was nothing to wait for. `sent_ns` counts
  // as far as it can be true: containers may have clocks of their own.
  void arrived(std::int64_t sent_ns) {
    if (began_ns_ != 0) arrived_after_wait(sent_ns);
    done();
  }

 private:
  // Not inlined: a message that is there at once should not pay for this code.
  [[gnu::noinline]] void arrived_after_wait(std::int64_t sent_ns) {
    // A spinner may have lost its core in any look, also in the one that found the message.
    // (Where it can't have, the clock would only make the message late.)
    const bool may_be_late = looked_ns_ != 0 && ticks() - looked_ticks_ >= few_ticks_;
    if (!may_be_late || !was_late(monotonic_ns())) contention_.arrived();
    const std::int64_t sent = std::clamp(sent_ns, began_ns_, std::max(began_ns_, ended_ns_));
    if (place_) was_woken(ended_ns_ - sent);
    pace_.arrived(sent, began_ns_);
    began_ns_ = 0;
  }

  // Learn how long a sleeper's message was there before it ran. Where members have fewer CPUs than
  // they are, and strangers compute, the kernel often wakes several on their waker's CPU and leaves
  // the others to the strangers. If those members then wait for each other, as in an all-reduce,
  // one spins where the other has to run. So who is woken late is woken apart for a while.
  void was_woken(std::int64_t late_ns) {
    if (late_ns < kLateNs || !lateness_.looked(late_ns, ended_ns_)) lateness_.arrived();
  }

  // nap: sleep until shortly before the next message is due.
  enum class Stage : std::uint8_t { none, spin, nap, park };

  // Return to the caller this often, to look for signals that hit another thread or fell between
  // two system calls. 20 returns a second cost an idle reader under 0.15 % of a core.
  static constexpr std::int64_t kSleepSliceNs = 50 * kMillisecond;
  // Return more often from a spin, for the warm-up: caches forget within milliseconds.
  static constexpr std::int64_t kSpinSliceNs = 100 * kMicrosecond;
  static constexpr std::int64_t kReviewNs = 1'000 * kMillisecond;

  // Begin every wait by spinning for as long as a wake-up costs. Whatever happens then, the cost is
  // at most twice that of knowing it beforehand (Karlin et al., "Competitive randomized algorithms
  // for non-uniform problems", 1990, on spin-blocks).
  static constexpr std::int64_t kBriefSpinNs = 50 * kMicrosecond;
  // The same while nothing is known of the gaps.
  static constexpr std::int64_t kFirstSpinNs = 1 * kMillisecond;
  // Warm up this often after a nap, with one look between two rounds. The first round meets caches
  // that have forgotten nearly all, and a predictor of branches that has, too: a decode step of 64
  // requests then takes 28 us from the end of send, after two rounds 10. Later rounds are short.
  static constexpr int kRoundsAfterNap = 4;
  // Without strangers, a reader of many is hardly ever woken so late.
  static constexpr std::int64_t kLateNs = 1 * kMillisecond;
  // Wake up this long before the interval, in addition to the usual oversleep: time for that.
  static constexpr std::int64_t kLeadNs = 150 * kMicrosecond;
  // Stay awake at least this long after the interval.
  static constexpr std::int64_t kTrailNs = 200 * kMicrosecond;

  void begin(std::int64_t now, Beat beat) {
    beat_ = beat;
    looked_ns_ = 0;
    rounds_left_ = 0;
    if (beat == Beat::yes) began_ns_ = now;
    spin_left_ns_ = policy_.max_spin_ns;
    switch (policy_.mode) {
      case WaitPolicy::Mode::spin: return enter(Stage::spin, kForever);
      case WaitPolicy::Mode::park: return enter(Stage::park, kForever);
      case WaitPolicy::Mode::adaptive:
        if (must_park(now)) return;
        return spin_until(
            now, now + (beat == Beat::yes && pace_.is_known() ? kBriefSpinNs : kFirstSpinNs));
    }
  }

  // Choose the next stage of an adaptive wait: the one before ended without a message.
  void plan(std::int64_t now) {
    if (must_park(now)) return;
    if (beat_ == Beat::no) return park(figures_.parked_unpaced);
    const WakeInterval interval = pace_.predict(now, began_ns_);
    if (interval.to_ns == 0) return park(figures_.parked_unpaced);
    // The next gap may lie somewhat outside of those seen before.
    const std::int64_t width = interval.to_ns - interval.from_ns;
    const std::int64_t lead = kLeadNs + oversleep_.typical_ns() + width / 8;
    const std::int64_t awake = interval.from_ns - lead;
    if (oversleep_.allows(awake - now)) return enter(Stage::nap, awake);
    spin_until(now, interval.to_ns + std::max(kTrailNs, width / 4));
  }

  // Return whether spinning is out of the question, having entered Stage::park if so. Napping is,
  // too: a nap ends in a spin.
  bool must_park(std::int64_t now) {
    if (crowded_) return park(figures_.parked_crowded), true;
    if (contention_.is_on(now)) return park(figures_.parked_preempted), true;
    // As long as a core is free, the scheduler wakes the peer there.
    if (contention_.is_remembered(now) && peer_cpu_ != nullptr &&
        LastCpu::is_shared_with(*peer_cpu_)) {
      return park(figures_.parked_beside_peer), true;
    }
    if (spin_left_ns_ <= 0) return park(figures_.parked_unpaced), true;
    return false;
  }

  // Park until woken, and count why.
  void park(std::uint64_t& reason) {
    add(reason, 1);
    enter(Stage::park, kForever);
  }

  // Return whether an adaptive spinner has lost its core since its last look. One loss counts once.
  bool was_late(std::int64_t now) {
    if (looked_ns_ == 0 || policy_.mode != WaitPolicy::Mode::adaptive) return false;
    const bool is_late = contention_.looked(now - looked_ns_, now);
    looked_ns_ = 0;
    if (is_late) add(figures_.preemptions, 1);
    return is_late;
  }

  std::int64_t look_at_clock() {
    looked_ticks_ = ticks();  // before the clock: what is lost in between counts
    return monotonic_ns();
  }

  void spin_until(std::int64_t now, std::int64_t end) {
    enter(Stage::spin, end - now > spin_left_ns_ ? now + spin_left_ns_ : end);
  }

  // Publish the gap for observers. Not while a message is there: the median takes a tenth of a
  // microsecond.
  void report_gap() { put(figures_.gap_ns, static_cast<std::uint64_t>(pace_.gap_ns())); }

  void enter(Stage stage, std::int64_t end) {
    stage_ = stage;
    stage_end_ = end;
  }

  // Look once more after stop(): what was published before the close is still delivered.
  template <class Ready>
  static Outcome stopped(Ready ready) {
    return ready() ? Outcome::ready : Outcome::closed;
  }

  // Spin for one slice, a single look if there are rounds left. Sets `now` to the last reading of
  // the clock.
  template <class Ready, class Stop>
  Outcome spin(std::int64_t& now, std::int64_t deadline_ns, const std::uint64_t& watched,
               Ready ready, Stop stop) {
    const std::int64_t start = now;
    const std::int64_t slice = rounds_left_ > 0 ? 0 : kSpinSliceNs;
    const std::int64_t end = std::min({deadline_ns, stage_end_, now + slice});
    if (rounds_left_ > 0) --rounds_left_;
    const auto ended = [&](Outcome outcome) {
      spin_left_ns_ -= now - start;
      add(figures_.spun_ns, static_cast<std::uint64_t>(now - start));
      if (outcome == Outcome::ready) add(figures_.spins, 1);
      return outcome;
    };
    do {
      for (int i = 0; i < hint_.idles_per_clock_read; ++i) {
        // relaxed: the watched word is a hint; ready() does the ordered load.
        const std::uint64_t seen = peek(watched);
        if (ready()) return ended(Outcome::ready);
        hint_.idle(watched, seen);
      }
      if (stop()) return ended(stopped(ready));
      looked_ns_ = now;
      now = look_at_clock();
      if (was_late(now)) {
        enter(Stage::park, kForever);
        break;
      }
    } while (now < end);
    report_gap();
    if (ready()) return ended(Outcome::ready);
    return ended(now >= deadline_ns ? Outcome::timed_out : Outcome::interrupted);
  }

  // Park for one slice, as above.
  template <class Ready, class Stop>
  Outcome sleep(std::int64_t& now, Gate gate, std::int64_t deadline_ns, Ready ready, Stop stop) {
    const std::int64_t start = now;
    const std::int64_t end = std::min({deadline_ns, stage_end_, now + kSleepSliceNs});
    const auto ended = [&](Outcome outcome) {
      add(figures_.parked_ns, static_cast<std::uint64_t>(now - start));
      return outcome;
    };
    report_gap();
    std::optional<WokenApart> apart;
    if (place_ && beat_ == Beat::yes && lateness_.is_on(now)) apart.emplace(*place_);
    bool signalled = false;
    while (now < end && !signalled) {
      const std::uint64_t ticket = gate.announce();
      if (ready()) {
        gate.withdraw(ticket);
        return ended(Outcome::ready);
      }
      if (stop()) {
        gate.withdraw(ticket);
        return ended(stopped(ready));
      }
      add(figures_.parks, 1);
      signalled = !gate.park(ticket, end);
      gate.withdraw(ticket);
      const bool is_ready = ready();
      now = monotonic_ns();
      if (is_ready) {
        add(figures_.wakeups, 1);
        return ended(Outcome::ready);
      }
    }
    if (stop()) return ended(stopped(ready));
    if (now >= deadline_ns) return ended(Outcome::timed_out);
    if (stage_ == Stage::nap && now >= stage_end_) {
      oversleep_.slept(now - stage_end_);
      plan(now);  // the next stage spins: let the caller warm up first
      rounds_left_ = kRoundsAfterNap - 1;
    }
    return ended(Outcome::interrupted);
  }

  WaitPolicy policy_;
  Figures& figures_;
  const Hint& hint_ = best_hint();
  Pace pace_;
  Oversleep oversleep_;
  Contention contention_;
  const std::uint64_t* peer_cpu_ = nullptr;
  bool crowded_ = false;
  std::optional<std::uint32_t> place_{};
  Contention lateness_;
  std::int64_t reviewed_ns_ = 0;

  Stage stage_ = Stage::none;
  Beat beat_ = Beat::no;
  std::int64_t began_ns_ = 0;  // when the wait for a beat began; 0: there is none
  std::int64_t ended_ns_ = 0;
  std::int64_t looked_ns_ = 0;      // a spinner's last look, as far as it read the clock; 0: none
  std::uint64_t looked_ticks_ = 0;  // the same, read a moment before
  const std::uint64_t few_ticks_ = ticks_within(Contention::kPreemptedNs / 2);
  std::int64_t stage_end_ = 0;
  std::int64_t spin_left_ns_ = 0;
  int rounds_left_ = 0;  // warm-ups that are due at once, beside the next one
};

}  // namespace shmcast

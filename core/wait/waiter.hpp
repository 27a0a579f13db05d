// How a thread waits for a word in shared memory to change: look, spin, nap, park on a Gate.
#pragma once

#include <algorithm>
#include <cstdint>

#include "layout.hpp"
#include "wait/gate.hpp"
#include "wait/hints.hpp"
#include "wait/pace.hpp"

namespace shmcast {

struct WaitPolicy {
  enum class Mode : std::uint8_t { spin, park, adaptive };
  Mode mode = Mode::adaptive;
  std::int64_t max_spin_ns = 0;  // adaptive: in one wait
};

// Whether a wait is for what comes at a pace: the next message, not the rest of this one.
enum class Beat : bool { no, yes };

// One endpoint's way to wait. It remembers what it learned from one wait to the next, and within a
// wait where it was when it was interrupted.
class Waiter {
 public:
  explicit Waiter(const WaitPolicy& policy, Figures& figures)
      : policy_(policy), figures_(figures) {}

  // Too many members for the CPUs (adaptive: don't spin). Learned outside; see review_is_due().
  void set_crowded(bool crowded) {
    crowded_ = crowded;
    reviewed_ns_ = monotonic_ns();
  }

  // Adaptive, and the last set_crowded() is a while ago.
  bool review_is_due() const {
    return policy_.mode == WaitPolicy::Mode::adaptive && monotonic_ns() - reviewed_ns_ > kReviewNs;
  }

  // The wait that was interrupted is awake, and will go on so.
  bool is_spinning() const { return stage_ == Stage::spin; }

  // Waits until ready() or stop(). `interrupted` asks the caller to handle signals, to review and
  // to rehearse where that is due, and to call again. `watched` is a word that changes when ready()
  // does, or some other word nearby: a hint where to look. After a wait for a `beat`: arrived().
  template <class Ready, class Stop>
  Outcome wait(Gate gate, std::int64_t deadline_ns, const std::uint64_t& watched, Beat beat,
               Ready ready, Stop stop) {
    std::int64_t now = monotonic_ns();
    if (now >= deadline_ns) return stop() ? stopped(ready) : Outcome::timed_out;  // just looking
    if (stage_ == Stage::none) begin(now, beat);
    Outcome outcome;
    do {
      if (now >= stage_end_) plan(now);
      outcome = stage_ == Stage::spin ? spin(now, deadline_ns, watched, ready, stop)
                                      : sleep(now, gate, deadline_ns, ready, stop);
      // A spin that has had its time is followed at once by what comes next.
    } while (outcome == Outcome::interrupted && stage_ == Stage::spin && now >= stage_end_);
    ended_ns_ = now;
    if (outcome != Outcome::interrupted) stage_ = Stage::none;
    return outcome;
  }

  // What was waited for is there; perhaps it came while the wait was interrupted.
  void done() { stage_ = Stage::none; }

  // The same, and it was sent at that time: one more beat, if it was waited for at all. The time is
  // trusted as far as it can be true (containers may have clocks of their own).
  void arrived(std::int64_t sent_ns) {
    done();
    if (began_ns_ == 0) return;
    pace_.arrived(std::clamp(sent_ns, began_ns_, std::max(began_ns_, ended_ns_)), began_ns_);
    began_ns_ = 0;
  }

 private:
  // nap: a sleep until shortly before the next message is due.
  enum class Stage : std::uint8_t { none, spin, nap, park };

  // A wait comes back to its caller this often, to look for signals that hit another thread or fell
  // between two system calls. 20 returns a second cost an idle reader under 0.15 % of a core.
  static constexpr std::int64_t kSleepSliceNs = 50 * kMillisecond;
  // A spinner comes back more often, for its rehearsal: caches forget within milliseconds.
  static constexpr std::int64_t kSpinSliceNs = 100 * kMicrosecond;
  static constexpr std::int64_t kReviewNs = 1'000 * kMillisecond;

  // Every wait begins by spinning for as long as a wake-up costs: whatever comes then, that is at
  // most twice the cost of knowing it (Karlin et al., "Competitive randomized algorithms for
  // non-uniform problems", 1990, on spin-blocks).
  static constexpr std::int64_t kBriefSpinNs = 50 * kMicrosecond;
  // While nothing is known of the gaps.
  static constexpr std::int64_t kFirstSpinNs = 1 * kMillisecond;
  // Awake so long before the interval, beside the usual oversleep: for a rehearsal or two.
  static constexpr std::int64_t kLeadNs = 100 * kMicrosecond;
  // And so long after it, at least.
  static constexpr std::int64_t kTrailNs = 200 * kMicrosecond;

  void begin(std::int64_t now, Beat beat) {
    beat_ = beat;
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

  // Adaptive: the stage before has ended without a message.
  void plan(std::int64_t now) {
    if (must_park(now)) return;
    if (beat_ == Beat::no) return enter(Stage::park, kForever);
    const WakeInterval interval = pace_.predict(now, began_ns_);
    if (interval.to_ns == 0) return enter(Stage::park, kForever);
    // What comes may lie somewhat outside of what was.
    const std::int64_t width = interval.to_ns - interval.from_ns;
    const std::int64_t lead = kLeadNs + oversleep_.typical_ns() + width / 8;
    const std::int64_t awake = interval.from_ns - lead;
    if (oversleep_.allows(awake - now)) return enter(Stage::nap, awake);
    spin_until(now, interval.to_ns + std::max(kTrailNs, width / 4));
  }

  // Whether spinning is out of the question; then the stage is set.
  bool must_park(std::int64_t now) {
    if (crowded_ || spin_left_ns_ <= 0) {
      enter(Stage::park, kForever);
    } else if (now < contention_.until_ns()) {
      enter(Stage::park, contention_.until_ns());
    } else {
      return false;
    }
    return true;
  }

  void spin_until(std::int64_t now, std::int64_t end) {
    enter(Stage::spin, std::min(end, now + spin_left_ns_));
  }

  // For observers. Not when a message is there: the median takes a tenth of a microsecond.
  void report_gap() { put(figures_.gap_ns, static_cast<std::uint64_t>(pace_.gap_ns())); }

  void enter(Stage stage, std::int64_t end) {
    stage_ = stage;
    stage_end_ = end;
  }

  // What was published before the close is still delivered: stop() first, then one more ready().
  template <class Ready>
  static Outcome stopped(Ready ready) {
    return ready() ? Outcome::ready : Outcome::closed;
  }

  // `now` comes back as of the last look at the clock.
  template <class Ready, class Stop>
  Outcome spin(std::int64_t& now, std::int64_t deadline_ns, const std::uint64_t& watched,
               Ready ready, Stop stop) {
    const std::int64_t start = now;
    const std::int64_t end = std::min({deadline_ns, stage_end_, now + kSpinSliceNs});
    const auto ended = [&](Outcome outcome) {
      spin_left_ns_ -= now - start;
      add(figures_.spun_ns, static_cast<std::uint64_t>(now - start));
      if (outcome == Outcome::ready) add(figures_.spins, 1);
      return outcome;
    };
    do {
      for (int i = 0; i < hint_.idles_per_clock_read; ++i) {
        // relaxed: what is watched is a hint; ready() looks in earnest.
        const std::uint64_t seen = peek(watched);
        if (ready()) return ended(Outcome::ready);
        hint_.idle(watched, seen);
      }
      if (stop()) return ended(stopped(ready));
      const std::int64_t before = now;
      now = monotonic_ns();
      if (policy_.mode == WaitPolicy::Mode::adaptive && contention_.spun(now, now - before)) {
        add(figures_.preemptions, 1);
        enter(Stage::park, contention_.until_ns());
        break;
      }
    } while (now < end);
    report_gap();
    if (ready()) return ended(Outcome::ready);
    return ended(now >= deadline_ns ? Outcome::timed_out : Outcome::interrupted);
  }

  template <class Ready, class Stop>
  Outcome sleep(std::int64_t& now, Gate gate, std::int64_t deadline_ns, Ready ready, Stop stop) {
    const std::int64_t start = now;
    const std::int64_t end = std::min({deadline_ns, stage_end_, now + kSleepSliceNs});
    const auto ended = [&](Outcome outcome) {
      add(figures_.parked_ns, static_cast<std::uint64_t>(now - start));
      return outcome;
    };
    report_gap();
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
      plan(now);  // to spin: the caller rehearses first
    }
    return ended(Outcome::interrupted);
  }

  WaitPolicy policy_;
  Figures& figures_;
  const Hint& hint_ = best_hint();
  Pace pace_;
  Oversleep oversleep_;
  Contention contention_;
  bool crowded_ = false;
  std::int64_t reviewed_ns_ = 0;

  Stage stage_ = Stage::none;
  Beat beat_ = Beat::no;
  std::int64_t began_ns_ = 0;  // of a wait for a beat, until that arrives
  std::int64_t ended_ns_ = 0;
  std::int64_t stage_end_ = 0;
  std::int64_t spin_left_ns_ = 0;
};

}  // namespace shmcast

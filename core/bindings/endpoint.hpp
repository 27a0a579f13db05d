// What the two ends of a ring share towards Python: the GIL, signals, fork, and that an endpoint is
// used by one thread at a time.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "bindings/convert.hpp"
#include "bindings/errors.hpp"
#include "bindings/fork.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "wait/gate.hpp"
#include "wait/pace.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

namespace nb = nanobind;

// Who is told of an endpoint's peers while it waits; the protocol `Watch` in _core.pyi.
struct Watch {
  // How often it looks whether somebody has come, and how often in any case.
  static constexpr std::int64_t kLookNs = 10 * kMillisecond;
  static constexpr std::int64_t kRoundNs = 1'000 * kMillisecond;

  explicit Watch(nb::object told)
      : callee(std::move(told)),
        patience_ns(callee.is_none() ? kForever : timeout_ns(callee.attr("patience"))) {}

  nb::object callee;
  std::int64_t patience_ns;
  std::int64_t look_ns = 0;  // the next look is due
  std::int64_t round_ns = 0;
  std::uint32_t arrivals = 0;  // as of the last round
};

// What the two endpoints share: the mapping's buffer, and who may use it now.
class Endpoint {
 public:
  Endpoint(nb::handle memory, nb::object is_crowded, nb::object watch)
      : is_crowded_(std::move(is_crowded)), watch_(std::move(watch)) {
    if (PyObject_GetBuffer(memory.ptr(), &view_, PyBUF_WRITABLE) != 0) throw nb::python_error();
  }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  virtual ~Endpoint() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }

  // Figures for observers: any thread, any time, also after close().
  std::uint32_t attached() const { return attached_readers(segment()); }
  std::vector<std::uint64_t> tensor_sets() const { return shmcast::tensor_sets(segment()); }
  nb::dict figures() const { return as_dict(own_figures()); }
  std::vector<Peer> look_at_peers() const { return peers(segment()); }

  // Idempotent. A call that waits in another thread ends with EndpointClosed and tells the peers.
  void close() {
    if (is_forked() || closing_.exchange(true, std::memory_order_seq_cst)) return;
    interrupt();
    leave_if_idle();
  }

  void wait_ready(nb::handle timeout) {
    const Use use(*this);
    wait(timeout_ns(timeout), [this](std::int64_t deadline) { return wait_attached(deadline); });
  }

  void begin_tensor_set() {
    const Use use(*this);
    count_tensor_set();
  }

  // A peer has died: from another thread. The wait, or the next one, looks into it.
  void alarm() {
    // seq_cst: a waiter looks at it between announce() and park(), see Gate.
    alarmed_.store(true, std::memory_order_seq_cst);
    interrupt();
  }

 protected:
  // One thread's turn with the endpoint.
  //
  // Its flags are seq_cst, because closer and user each write one and read the other's: the closer
  // sets `closing` and then finds `busy`, or the user clears `busy` and then finds `closing`. One
  // of them must see the other, and be the one to leave().
  class Use {
   public:
    explicit Use(Endpoint& endpoint) : endpoint_(endpoint) {
      if (endpoint.is_forked()) throw Forked("created before a fork");
      if (endpoint.is_closing()) throw EndpointClosed("closed");
      if (endpoint.busy_.exchange(true, std::memory_order_seq_cst)) {
        throw ConcurrentUse("in use by another thread");
      }
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use() {
      endpoint_.busy_.store(false, std::memory_order_seq_cst);
      if (endpoint_.is_closing()) endpoint_.leave_if_idle();
    }

   private:
    Endpoint& endpoint_;
  };

  // Runs step(deadline_ns) without the GIL until it is through. In between, with it: signals, a
  // review of how crowded it is here, the rehearsal while spinning, and a look after the peers.
  template <class Step>
  Outcome wait(std::int64_t timeout, Step step) {
    const std::int64_t deadline = deadline_after(timeout);
    LongWait long_wait{monotonic_ns(), watch_.patience_ns};
    for (;;) {
      if (waiter().review_is_due()) review();
      Outcome outcome;
      {
        nb::gil_scoped_release release;
        outcome = step(deadline);
      }
      if (outcome == Outcome::interrupted) {
        if (PyErr_CheckSignals() != 0) throw nb::python_error();
        if (waiter().is_spinning()) warm_up();
      }
      if (outcome != Outcome::ready && outcome != Outcome::abandoned) {
        observe_peers(long_wait);
        // relaxed: stop() has looked in earnest.
        if (alarmed_.load(std::memory_order_relaxed) && !is_closing()) {
          if (const auto last = handle_alarm(step)) {
            outcome = *last;
          } else if (outcome == Outcome::closed) {
            outcome = Outcome::interrupted;  // by the alarm
          }
        }
      }
      switch (outcome) {
        case Outcome::interrupted: break;
        case Outcome::timed_out: throw TimedOut("timed out");
        case Outcome::closed: throw EndpointClosed("closed");
        default:
          if (long_wait.is_reported)
            watch_.callee.attr("went_on")(long_wait.seconds(monotonic_ns()));
          return outcome;
      }
    }
  }

  // What ends a step early. seq_cst: see is_closing(); pairs with alarm().
  auto stop() const {
    return [this] {
      return is_closing() || (alarmed_.load(std::memory_order_seq_cst) && !is_draining_);
    };
  }
  nb::object memory_owner() const { return nb::borrow(nb::handle(view_.obj)); }
  // The watch is asked which readers' processes have ended, whatever they did before.
  nb::object exited_readers() {
    if (watch_.callee.is_none()) return nb::list();
    return watch_.callee.attr("ended")(peers(segment()));
  }
  std::span<std::byte> memory() const {
    return {static_cast<std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  // A wait that may last too long.
  struct LongWait {
    std::int64_t began_ns;
    std::int64_t patience_ns;
    bool is_reported = false;
    double seconds(std::int64_t now) const { return static_cast<double>(now - began_ns) / 1e9; }
  };

  // Whoever has come is watched from now on, and a wait that lasts long is told.
  void observe_peers(LongWait& long_wait) {
    const std::int64_t now = monotonic_ns();
    if (now < watch_.look_ns || watch_.callee.is_none()) return;
    watch_.look_ns = now + Watch::kLookNs;
    const std::uint32_t arrivals = arrivals_so_far(segment());
    if (arrivals != watch_.arrivals || now >= watch_.round_ns) {
      watch_.arrivals = arrivals;
      watch_.round_ns = now + Watch::kRoundNs;
      // relaxed: for this thread.
      if (nb::cast<bool>(watch_.callee.attr("meet")(peers(segment())))) {
        alarmed_.store(true, std::memory_order_relaxed);
      }
    }
    if (now - long_wait.began_ns >= long_wait.patience_ns) {
      long_wait.patience_ns = timeout_ns(watch_.callee.attr("tell_slow")(
          long_wait.seconds(now), !long_wait.is_reported, peers(segment())));
      long_wait.is_reported = true;
    }
  }

  // While the alarm is on, and a step is to go on in spite of it.
  class DrainAfterAlarm {
   public:
    explicit DrainAfterAlarm(bool& is_draining) : is_draining_(is_draining) { is_draining_ = true; }
    DrainAfterAlarm(const DrainAfterAlarm&) = delete;
    DrainAfterAlarm& operator=(const DrainAfterAlarm&) = delete;
    ~DrainAfterAlarm() { is_draining_ = false; }

   private:
    bool& is_draining_;
  };

  // A peer has died: what it did before comes first, then the watch judges. Returns how the step
  // ended if it did; the alarm then goes on for the next wait, as after a judgement that throws.
  template <class Step>
  std::optional<Outcome> handle_alarm(Step step) {
    // What the dead have stored was there before anybody could know of their death.
    const Outcome last = [&] {
      const DrainAfterAlarm draining(is_draining_);
      return step(0);
    }();
    if (last != Outcome::timed_out) return last;
    // relaxed: find_dead() looks at all, so that an alarm which is overwritten here is not lost.
    alarmed_.store(false, std::memory_order_relaxed);
    try {
      // First who is dead, then the seats: who left in order before it ended has not died.
      watch_.callee.attr("find_dead")();
      const std::vector<Peer> all = peers(segment());
      for (const nb::handle index : watch_.callee.attr("judge")(all)) {
        const Peer& dead = all.at(nb::cast<std::size_t>(index));
        drop(dead.index, dead.seat);
      }
    } catch (...) {
      alarmed_.store(true, std::memory_order_relaxed);
      throw;
    }
    return std::nullopt;
  }

  void review() { waiter().set_crowded(nb::cast<bool>(is_crowded_(attached()))); }
  virtual const Segment& segment() const = 0;
  virtual void drop(std::uint32_t, std::uint64_t) {}
  virtual void warm_up() {}  // called now and then while this endpoint spins
  virtual Waiter& waiter() = 0;
  virtual const Figures& own_figures() const = 0;
  virtual void count_tensor_set() = 0;
  virtual Outcome wait_attached(std::int64_t deadline_ns) = 0;
  virtual void interrupt() = 0;  // ends this endpoint's wait in another thread
  virtual void leave() = 0;      // tells the peers, in shared memory

  bool is_forked() const { return generation_ != fork_generation.load(std::memory_order_relaxed); }
  // seq_cst: see Use; and a waiter looks at it between announce() and park(), see Gate.
  bool is_closing() const { return closing_.load(std::memory_order_seq_cst); }
  void leave_if_idle() {
    // seq_cst: see Use. If somebody is inside, it is they who will leave(); busy for ever after.
    if (!busy_.exchange(true, std::memory_order_seq_cst)) leave();
  }

  Py_buffer view_{};  // held until the end, so that observers need no turn
  nb::object is_crowded_;
  Watch watch_;
  const unsigned generation_ = fork_generation.load(std::memory_order_relaxed);
  std::atomic<bool> busy_{false};
  std::atomic<bool> closing_{false};
  std::atomic<bool> alarmed_{false};
  bool is_draining_ = false;  // see DrainAfterAlarm
};

}  // namespace shmcast

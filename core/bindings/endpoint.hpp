// Room: bindings. What the two ends of a ring share.
// Knows: what is Python about waiting: the GIL, signals, forks, threads, and the watch that is told
// about peers.
// Does not know: how frames are sent or received.
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
#include "bindings/gil.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "wait/gate.hpp"
#include "wait/pace.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

namespace nb = nanobind;

// The object that an endpoint tells about its peers while it waits: the protocol `Watch` in
// _core.pyi.
struct Watch {
  // Look for arrivals this often, and call the watch this often in any case.
  static constexpr std::int64_t kLookNs = 10 * kMillisecond;
  static constexpr std::int64_t kRoundNs = 1'000 * kMillisecond;

  explicit Watch(nb::object watch)
      : callee(std::move(watch)),
        patience_ns(callee.is_none() ? kForever : timeout_ns(callee.attr("patience"))) {}

  nb::object callee;  // None: nobody is told
  std::int64_t patience_ns;
  std::int64_t look_ns = 0;    // when the next look is due
  std::int64_t round_ns = 0;   // when the next call is due in any case
  std::uint32_t arrivals = 0;  // as of the last call
};

// Owns the mapping's buffer and decides who may use it now.
class Endpoint {
 public:
  Endpoint(nb::handle memory, nb::object cpu_quota, nb::object watch)
      : cpu_quota_(std::move(cpu_quota)), watch_(std::move(watch)) {
    if (PyObject_GetBuffer(memory.ptr(), &view_, PyBUF_WRITABLE) != 0) throw nb::python_error();
  }
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;
  virtual ~Endpoint() {
    // (To unmap memory, Python gives up the GIL.)
    if (view_.obj != nullptr) stops_at_exit([this] { PyBuffer_Release(&view_); });
  }

  // For observers: from any thread, at any time, also after close().
  std::uint32_t attached() const { return attached_readers(segment()); }
  std::vector<std::uint64_t> tensor_sets() const { return shmcast::tensor_sets(segment()); }
  nb::dict figures() const { return as_dict(own_figures()); }
  std::vector<Peer> look_at_peers() const { return peers(segment()); }

  // Tell the peers and release the endpoint. If another thread is inside, its call ends with
  // EndpointClosed and does so. Idempotent.
  void close() {
    if (is_forked() || closing_.exchange(true, std::memory_order_seq_cst)) return;
    interrupt();
    leave_if_idle();
  }

  // close(), unless another thread is inside: when the program ends, what its threads wait for is
  // no longer their business. The peers are then told by the end of the process.
  void close_if_idle() {
    // seq_cst: see Use. The turn is given back for close() to take.
    if (is_forked() || busy_.exchange(true, std::memory_order_seq_cst)) return;
    busy_.store(false, std::memory_order_seq_cst);
    close();
  }

  // End the call that waits in another thread, or the next one, with Interrupted.
  void interrupt_call() {
    // seq_cst: a waiter reads it between announce() and park(), see Gate.
    interrupted_.store(true, std::memory_order_seq_cst);
    interrupt();
  }

  void wait_ready(nb::handle timeout) {
    const Call call(*this);
    Deadline end(timeout_ns(timeout));
    wait(end, [this](std::int64_t deadline) { return wait_attached(deadline); });
  }

  void begin_tensor_set() {
    const Use use(*this);
    count_tensor_set();
  }

  // Report, from another thread, that a peer has died. The current wait, or the next one, handles
  // it.
  void alarm() {
    // seq_cst: a waiter reads it between announce() and park(), see Gate.
    alarmed_.store(true, std::memory_order_seq_cst);
    interrupt();
  }

 protected:
  // One thread's turn with the endpoint. Throws Forked, EndpointClosed, ConcurrentUse.
  //
  // Its flags are seq_cst, because closer and user each write one and read the other's: the closer
  // sets `closing` and then finds `busy`, or the user clears `busy` and then finds `closing`. At
  // least one of them must see the other's store, and leave().
  class Use {
   public:
    explicit Use(Endpoint& endpoint) : endpoint_(endpoint) {
      endpoint.refuse_fork();
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

  void refuse_fork() const {
    if (is_forked()) throw Forked("created before a fork");
  }

  // The turn of a call that may wait: an interrupt_call() ends it or, if it comes too late for
  // that, is used up. Throws Interrupted, and what Use throws.
  class Call {
   public:
    explicit Call(Endpoint& endpoint) : endpoint_(endpoint), use_(endpoint) {
      if (!is_interrupted()) return;
      forget();
      throw Interrupted("interrupted");
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call() {
      if (is_interrupted()) forget();
    }

   private:
    // relaxed, both: the flag orders nothing but itself.
    bool is_interrupted() const { return endpoint_.interrupted_.load(std::memory_order_relaxed); }
    void forget() { endpoint_.interrupted_.store(false, std::memory_order_relaxed); }

    Endpoint& endpoint_;
    Use use_;
  };

  // Throw what ends a call from within this process: EndpointClosed or Interrupted.
  void throw_if_stopped() const {
    if (is_closing()) throw EndpointClosed("closed");
    // relaxed: where it ends a wait, stop() has done the ordered load.
    if (interrupted_.load(std::memory_order_relaxed)) throw Interrupted("interrupted");
  }

  // Run step(deadline_ns) without the GIL until it is done, at most until the call's deadline.
  // Between two steps, with the GIL: handle signals, review how crowded the machine is, warm up
  // while spinning, observe the peers.
  template <class Step>
  Outcome wait(Deadline& end_of_call, Step step) {
    const std::int64_t deadline = end_of_call.ns();
    LongWait long_wait{monotonic_ns(), watch_.patience_ns};
    const EndOfWait end(waiter());
    for (;;) {
      if (waiter().review_is_due()) review();
      Outcome outcome;
      {
        const WithoutGil released;
        outcome = step(deadline);
      }
      if (outcome == Outcome::interrupted) {
        handle_signals();
        if (waiter().is_spinning()) warm_up();
      }
      if (outcome != Outcome::ready && outcome != Outcome::abandoned) {
        observe_peers(long_wait);
        // relaxed: stop() has done the ordered load.
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
        case Outcome::closed: throw_if_stopped(); throw EndpointClosed("closed");
        default:
          if (long_wait.is_reported) {
            call(watch_.callee.attr("resumed"), long_wait.seconds(monotonic_ns()));
          }
          return outcome;
      }
    }
  }

  // Return the condition that ends a step early. seq_cst: see is_closing(); pairs with
  // interrupt_call() and alarm().
  auto stop() const {
    return [this] {
      return is_closing() || interrupted_.load(std::memory_order_seq_cst) ||
             (alarmed_.load(std::memory_order_seq_cst) && !is_draining_);
    };
  }
  // To be called between two waits of a call that may go on without end. Throws what signal
  // handlers throw, EndpointClosed and Interrupted.
  void check_between_waits() const {
    handle_signals();
    throw_if_stopped();
  }
  nb::object memory_owner() const { return nb::borrow(nb::handle(view_.obj)); }
  // Ask the watch for the readers whose processes have exited, whether or not they left before.
  nb::object exited_readers() {
    if (watch_.callee.is_none()) return nb::list();
    return call(watch_.callee.attr("exited"), peers(segment()));
  }
  std::span<std::byte> memory() const {
    return {static_cast<std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  // Ends the waiter's wait, however the call ends.
  class EndOfWait {
   public:
    explicit EndOfWait(Waiter& waiter) : waiter_(waiter) {}
    EndOfWait(const EndOfWait&) = delete;
    EndOfWait& operator=(const EndOfWait&) = delete;
    ~EndOfWait() { waiter_.done(); }

   private:
    Waiter& waiter_;
  };

  // A wait that the watch is told about if it lasts too long.
  struct LongWait {
    std::int64_t began_ns;
    std::int64_t patience_ns;
    bool is_reported = false;
    double seconds(std::int64_t now) const { return static_cast<double>(now - began_ns) / 1e9; }
  };

  // Let the watch observe whoever has arrived, and report a wait that lasts long.
  void observe_peers(LongWait& long_wait) {
    const std::int64_t now = monotonic_ns();
    rest(now);
    if (now < watch_.look_ns || watch_.callee.is_none()) return;
    watch_.look_ns = now + Watch::kLookNs;
    const std::uint32_t arrivals = arrivals_so_far(segment());
    if (arrivals != watch_.arrivals || now >= watch_.round_ns) {
      watch_.arrivals = arrivals;
      watch_.round_ns = now + Watch::kRoundNs;
      // relaxed: this thread reads it.
      if (nb::cast<bool>(call(watch_.callee.attr("observe"), peers(segment())))) {
        alarmed_.store(true, std::memory_order_relaxed);
      }
    }
    if (now - long_wait.began_ns >= long_wait.patience_ns) {
      long_wait.patience_ns =
          timeout_ns(call(watch_.callee.attr("report_slow"), long_wait.seconds(now),
                          !long_wait.is_reported, peers(segment())));
      long_wait.is_reported = true;
    }
  }

  // Lets a step run although the alarm is on, to receive what the dead have sent.
  class DrainAfterAlarm {
   public:
    explicit DrainAfterAlarm(bool& is_draining) : is_draining_(is_draining) { is_draining_ = true; }
    DrainAfterAlarm(const DrainAfterAlarm&) = delete;
    DrainAfterAlarm& operator=(const DrainAfterAlarm&) = delete;
    ~DrainAfterAlarm() { is_draining_ = false; }

   private:
    bool& is_draining_;
  };

  // Take in what a dead peer did before, then let the watch decide. Returns the step's outcome if
  // it ended; the alarm then stays on for the next wait, as it does if the watch throws.
  template <class Step>
  std::optional<Outcome> handle_alarm(Step step) {
    // What the dead have stored was visible before anybody could know of their death.
    const Outcome last = [&] {
      const DrainAfterAlarm draining(is_draining_);
      return step(0);
    }();
    if (last != Outcome::timed_out) return last;
    // relaxed: find_dead() looks at every peer, so an alarm that is overwritten here is not lost.
    alarmed_.store(false, std::memory_order_relaxed);
    try {
      // Find the dead first, then read the seats: who left before its process ended has not died.
      call(watch_.callee.attr("find_dead"));
      const std::vector<Peer> all = peers(segment());
      for (const nb::handle index : call(watch_.callee.attr("attribute_deaths"), all)) {
        const Peer& dead = all.at(nb::cast<std::size_t>(index));
        drop(dead.index, dead.seat);
      }
    } catch (...) {
      alarmed_.store(true, std::memory_order_relaxed);
      throw;
    }
    return std::nullopt;
  }

  // Look whether the members outnumber the CPUs. Looks at this segment, and now and then at files
  // of the kernel: at nothing that another process could lock or withhold.
  void review() {
    const std::int64_t now = monotonic_ns();
    if (now >= quota_due_ns_) {
      const std::int64_t members = segment().geometry().readers + 1;
      // Not all members at the same time, right after a message.
      quota_due_ns_ = now + kQuotaNs + kQuotaNs / 4 * place() / members;
      quota_ = nb::cast<double>(call(cpu_quota_));
    }
    waiter().set_crowded(is_crowded(segment(), place(), quota_));
  }
  static constexpr std::int64_t kQuotaNs = 10'000 * kMillisecond;

  virtual const Segment& segment() const = 0;
  virtual std::uint32_t place() const = 0;  // among the members: a reader's index, or their number
  virtual void drop(std::uint32_t, std::uint64_t) {}
  virtual void warm_up() {}                   // called about every 100 us of spinning
  virtual void rest(std::int64_t /*now*/) {}  // called again and again while there is no message
  virtual Waiter& waiter() = 0;
  virtual const Figures& own_figures() const = 0;
  virtual void count_tensor_set() = 0;
  virtual Outcome wait_attached(std::int64_t deadline_ns) = 0;
  virtual void interrupt() = 0;  // end this endpoint's wait in another thread
  virtual void leave() = 0;      // tell the peers, in shared memory

  bool is_forked() const { return generation_ != fork_generation.load(std::memory_order_relaxed); }
  // seq_cst: see Use; and a waiter reads it between announce() and park(), see Gate.
  bool is_closing() const { return closing_.load(std::memory_order_seq_cst); }
  void leave_if_idle() {
    // seq_cst: see Use. Whoever is inside will leave(). Once left, the endpoint stays busy.
    if (!busy_.exchange(true, std::memory_order_seq_cst)) leave();
  }

  Py_buffer view_{};  // held to the end, so that observers need no turn
  nb::object cpu_quota_;
  double quota_ = 0;
  std::int64_t quota_due_ns_ = 0;
  Watch watch_;
  const unsigned generation_ = fork_generation.load(std::memory_order_relaxed);
  std::atomic<bool> busy_{false};
  std::atomic<bool> closing_{false};
  std::atomic<bool> interrupted_{false};
  std::atomic<bool> alarmed_{false};
  bool is_draining_ = false;  // see DrainAfterAlarm
};

}  // namespace shmcast

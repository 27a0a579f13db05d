// Room: bindings. What the two ends of a ring share.
// Knows: what is Python about waiting: the GIL, signals, forks, threads, the watch over the peers.
// Does not know: how frames are sent or received.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "bindings/convert.hpp"
#include "bindings/errors.hpp"
#include "bindings/fork.hpp"
#include "bindings/gil.hpp"
#include "bindings/watch.hpp"
#include "layout.hpp"
#include "ring/members.hpp"
#include "wait/gate.hpp"
#include "wait/pace.hpp"
#include "wait/waiter.hpp"
#include "watch/life_lock.hpp"
#include "watch/watcher.hpp"

namespace shmcast {

namespace nb = nanobind;

// Owns the mapping's buffer and decides who may use it now.
class Endpoint : public Alarm {
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
  std::uint32_t tell_death(std::uint32_t place) { return shmcast::tell_death(segment(), place); }
  std::uint32_t told_death() const { return shmcast::told_death(segment()); }
  nb::list tensor_sets() const { return list_of(shmcast::tensor_sets(segment())); }
  nb::dict figures() const { return as_dict(own_figures(), own_latencies()); }
  nb::list look_at_peers() const { return list_of(peers(segment())); }

  // Tell the peers and release the endpoint. If another thread is inside, its call ends with
  // EndpointClosed and does so. Idempotent.
  void close() { end(End::left); }

  // The same, but tell the peers that this endpoint has not left in order.
  void give_up() { end(End::failed); }

  // Tell nobody anything when this is destroyed: the process is about to end, which tells.
  void detach() { is_detached_ = true; }

  // Keep the lock of this endpoint's place until the peers are told of its end.
  void hold(nb::object lock) { lock_ = std::move(lock); }

  // Let the watcher's thread raise the alarm when a process ends, or a lock is dropped. Throws
  // std::system_error.
  Watcher::Id watch_process(int pidfd) { return Watcher::add_process(pidfd, *this); }
  Watcher::Id watch_lock(int fd, std::int64_t place) { return Watcher::add_lock(fd, place, *this); }

  // Write to this eventfd, too, at each alarm. -1: to none, from now on.
  void set_alarm_fd(int fd) {
    const std::lock_guard lock(Watcher::mutex());
    alarm_fd_ = fd;
  }

  // End the call that waits in another thread, or the next one, with Interrupted.
  void interrupt_call() {
    // seq_cst: a waiter reads it between announce() and park(), see Gate.
    interrupted_.store(true, std::memory_order_seq_cst);
    interrupt();
  }

  // Tell the watch of waits that last so long from now on.
  void set_patience(nb::handle seconds) { watch_.set_patience(timeout_ns(seconds)); }
  void set_policy(const WaitPolicy& policy) {
    const Use use(*this);
    waiter().set_policy(policy);
  }

  // Return whether a thread is inside. seq_cst: as in Use, for who must see this or else be seen.
  bool is_busy() const { return busy_.load(std::memory_order_seq_cst); }

  void wait_ready(nb::handle timeout) {
    const Call call(*this);
    Deadline end(timeout_ns(timeout));
    wait(end, [this](std::int64_t deadline) { return wait_attached(deadline); });
  }

  void begin_tensor_set() {
    const Use use(*this);
    count_tensor_set();
  }

  // Report that a peer has died, in the watcher's thread and under its mutex. The current call, or
  // the next one, handles it.
  void alarm() override {
    // seq_cst: a waiter reads it between announce() and park(), see Gate.
    alarmed_.store(true, std::memory_order_seq_cst);
    interrupt();
    const std::uint64_t one = 1;
    if (alarm_fd_ >= 0 && write(alarm_fd_, &one, sizeof one) < 0) return;  // (full: it is known)
  }

 protected:
  // One thread's turn with the endpoint. Throws Forked, EndpointClosed, ConcurrentUse.
  //
  // Its flags are seq_cst, because closer and user each write one and read the other's: the closer
  // sets `end` and then finds `busy`, or the user clears `busy` and then finds `end`. At
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

  // Look after the peers before a call that may not wait at all: who has come, who has died. Drops
  // the dead, or throws. `segment` is segment(), which costs a call here.
  void attend(const Segment& segment) {
    // relaxed: the alarm is a hint here, as are arrivals; what they speak of was stored before, and
    // is read again with what orders it.
    const bool looks = alarmed_.load(std::memory_order_relaxed) || watch_.looks_anyway();
    if (!looks && arrivals_so_far(segment) == watch_.arrivals) return;
    look_at_peers_now();
  }

  void refuse_fork() const {
    if (is_forked()) throw Forked("created before a fork");
  }

  // The turn of a call that may wait: an interrupt_call() ends it or, if it comes too late for
  // that, is used up; unless this is but a look of a longer wait. Throws Interrupted, and what Use
  // throws.
  class Call {
   public:
    explicit Call(Endpoint& endpoint, bool is_look = false)
        : endpoint_(endpoint), is_look_(is_look), use_(endpoint) {
      endpoint.throw_if_stopped();
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    ~Call() {
      if (!is_look_) endpoint_.take_interrupt();
    }

   private:
    Endpoint& endpoint_;
    bool is_look_;
    Use use_;
  };

  // Throw what ends a call from within this process: EndpointClosed or Interrupted.
  void throw_if_stopped() {
    if (is_closing()) throw EndpointClosed("closed");
    if (take_interrupt()) throw Interrupted("interrupted");
  }

  // Run step(deadline_ns) without the GIL until it is done, at most until the call's deadline.
  // Between two steps, with the GIL: handle signals, review how crowded the machine is, warm up
  // while spinning, observe the peers.
  template <class Step>
  Outcome wait(Deadline& end_of_call, Step step) {
    const std::int64_t deadline = end_of_call.ns();
    LongWait long_wait{monotonic_ns(), watch_.patience()};
    const EndOfWait end(waiter());
    observe_changes(long_wait.began_ns);
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
            call_method(watch_.callee, "resumed", long_wait.seconds(monotonic_ns()));
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
  // To be called first by each destructor: alarms need the whole object.
  void destroy() {
    Watcher::forget(*this);
    if (!is_detached_) give_up();
  }
  // To be called between two waits of a call that may go on without end. Throws what signal
  // handlers throw, EndpointClosed and Interrupted.
  void check_between_waits() {
    handle_signals();
    throw_if_stopped();
  }
  nb::object memory_owner() const { return nb::borrow(nb::handle(view_.obj)); }
  // Ask the watch for the readers whose processes have exited, whether or not they left before.
  std::vector<std::uint32_t> exited_readers() {
    if (watch_.callee.is_none()) return {};
    return nb::cast<std::vector<std::uint32_t>>(
        call_method(watch_.callee, "exited", look_at_peers()));
  }
  std::span<std::byte> memory() const {
    return {static_cast<std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  // Let the watch observe whoever has arrived, and report a wait that lasts long.
  void observe_peers(LongWait& long_wait) {
    const std::int64_t now = monotonic_ns();
    rest(now);
    if (now < watch_.look_ns || watch_.callee.is_none()) return;
    watch_.look_ns = now + Watch::kLookNs;
    if (now >= watch_.round_ns) watch_.must_look = true;
    observe_changes(now);
    if (now - long_wait.began_ns >= long_wait.patience_ns) {
      long_wait.patience_ns =
          timeout_ns(call_method(watch_.callee, "report_slow", long_wait.seconds(now),
                                 !long_wait.is_reported, look_at_peers()));
      long_wait.is_reported = true;
    }
  }

  // Let the watch observe the peers, if any has come or gone, or it must look once a second.
  void observe_changes(std::int64_t now) {
    const std::uint32_t arrivals = arrivals_so_far(segment());
    const bool is_due = watch_.is_unfinished || (watch_.must_look && now >= watch_.round_ns);
    if (arrivals == watch_.arrivals && !is_due) return;
    watch_.arrivals = arrivals;
    if (watch_.callee.is_none()) return;
    watch_.round_ns = now + Watch::kRoundNs;
    watch_.is_unfinished = true;  // if it throws
    const bool is_dead = nb::cast<bool>(call_method(watch_.callee, "observe", look_at_peers()));
    // relaxed: this thread reads it.
    if (is_dead) alarmed_.store(true, std::memory_order_relaxed);
    watch_.must_look = nb::cast<bool>(attribute(watch_.callee, "must_look"));
    watch_.is_unfinished = false;
  }

  [[gnu::cold, gnu::noinline]] void look_at_peers_now() {
    observe_changes(monotonic_ns());
    // relaxed: see attend().
    if (alarmed_.load(std::memory_order_relaxed) && !watch_.callee.is_none()) attribute_deaths();
  }

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
    attribute_deaths();
    return std::nullopt;
  }

  // Let the watch decide about the dead. The alarm stays on if it throws.
  void attribute_deaths() {
    // relaxed: find_dead() looks at every peer, so an alarm that is overwritten here is not lost.
    alarmed_.store(false, std::memory_order_relaxed);
    try {
      // Find the dead first, then read the seats: who left before its process ended has not died.
      call_method(watch_.callee, "find_dead");
      const std::vector<Peer> all = peers(segment());
      const nb::object dropped = call_method(watch_.callee, "attribute_deaths", list_of(all));
      for (const std::size_t index : nb::cast<std::vector<std::size_t>>(dropped)) {
        const Peer& dead = all.at(index);
        drop(dead.index, dead.seat);
      }
      call_method(watch_.callee, "tell_deaths");
      watch_.must_look = nb::cast<bool>(attribute(watch_.callee, "must_look"));
    } catch (...) {
      alarmed_.store(true, std::memory_order_relaxed);
      // What the watch had taken in hand may be watched no more.
      watch_.is_unfinished = true;
      throw;
    }
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
    const bool crowded = is_crowded(segment(), place(), quota_);
    // Where only a quota is short, there are CPUs enough to be woken on.
    const bool is_for_want_of_cpus = crowded && place() < segment().geometry().readers &&
                                     is_crowded(segment(), place(), kNoQuota);
    waiter().set_crowded(crowded, is_for_want_of_cpus ? std::optional(place()) : std::nullopt);
  }
  static constexpr std::int64_t kQuotaNs = 10'000 * kMillisecond;

  virtual const Segment& segment() const = 0;
  virtual std::uint32_t place() const = 0;  // among the members: a reader's index, or their number
  virtual void drop(std::uint32_t, std::uint64_t) {}
  virtual void warm_up() {}                   // called about every 100 us of spinning
  virtual void rest(std::int64_t /*now*/) {}  // called again and again while there is no message
  virtual Waiter& waiter() = 0;
  virtual const Figures& own_figures() const = 0;
  virtual const Latencies* own_latencies() const { return nullptr; }  // of a reader only
  virtual void count_tensor_set() = 0;
  virtual Outcome wait_attached(std::int64_t deadline_ns) = 0;
  virtual void interrupt() = 0;     // end this endpoint's wait in another thread
  virtual void leave(End how) = 0;  // tell the peers, in shared memory

  // relaxed, twice: where it ends a wait, stop() has done the ordered load.
  bool take_interrupt() {
    return interrupted_.load(std::memory_order_relaxed) &&
           interrupted_.exchange(false, std::memory_order_relaxed);
  }
  bool is_forked() const { return generation_ != fork_generation.load(std::memory_order_relaxed); }
  // seq_cst: see Use; and a waiter reads it between announce() and park(), see Gate.
  bool is_closing() const { return end_.load(std::memory_order_seq_cst) != End::none; }
  void leave_if_idle() {
    // seq_cst: see Use. Whoever is inside will leave(). Once left, the endpoint stays busy.
    if (busy_.exchange(true, std::memory_order_seq_cst)) return;
    leave(end_.load(std::memory_order_seq_cst));
    if (!lock_.is_none()) nb::inst_ptr<LifeLock>(lock_)->release();
  }
  void end(End how) {
    End none = End::none;
    if (is_forked() || !end_.compare_exchange_strong(none, how, std::memory_order_seq_cst)) return;
    interrupt();
    leave_if_idle();
  }

  Py_buffer view_{};  // held to the end, so that observers need no turn
  Reference cpu_quota_;
  double quota_ = 0;
  std::int64_t quota_due_ns_ = 0;
  Watch watch_;
  Reference lock_ = nb::none();  // a LifeLock
  const unsigned generation_ = fork_generation.load(std::memory_order_relaxed);
  std::atomic<bool> busy_{false};
  std::atomic<End> end_{End::none};  // what close() or give_up() has asked for
  std::atomic<bool> interrupted_{false};
  std::atomic<bool> alarmed_{false};
  bool is_draining_ = false;  // see DrainAfterAlarm
  bool is_detached_ = false;
  int alarm_fd_ = -1;  // guarded by the watcher's mutex
};

}  // namespace shmcast

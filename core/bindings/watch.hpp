// Room: bindings. The object that is told about an endpoint's peers, for Python.
// Knows: when it is due to be called.
// Does not know: endpoints, nor how anybody waits.
#pragma once

#include <nanobind/nanobind.h>

#include <atomic>
#include <cstdint>
#include <utility>

#include "bindings/convert.hpp"
#include "bindings/gil.hpp"
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
        patience_ns(callee.is_none() ? kForever : timeout_ns(attribute(callee, "patience"))) {}

  Reference callee;  // None: nobody is told
  // Of waits that begin from now on; from any thread. relaxed: a number of its own.
  std::int64_t patience() const { return patience_ns.load(std::memory_order_relaxed); }
  void set_patience(std::int64_t ns) { patience_ns.store(ns, std::memory_order_relaxed); }
  std::atomic<std::int64_t> patience_ns;
  std::int64_t look_ns = 0;    // when the next look is due
  std::int64_t round_ns = 0;   // when the next call is due in any case
  std::uint32_t arrivals = 0;  // as of the last call
  bool must_look = false;      // somebody raises no alarm: call once a second, whatever flows
  bool is_unfinished = false;  // a signal's handler, say, has ended the last look: look again
  // Whether to look although nobody has come, gone or died.
  bool looks_anyway() const { return must_look || is_unfinished; }
};

// A wait that the watch is told about if it lasts too long.
struct LongWait {
  std::int64_t began_ns;
  std::int64_t patience_ns;
  bool is_reported = false;
  double seconds(std::int64_t now) const { return static_cast<double>(now - began_ns) / 1e9; }
};

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

}  // namespace shmcast

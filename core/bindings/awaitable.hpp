// Room: bindings. An endpoint that an event loop can await, for Python.
// Knows: the listener, and when its pipe must tell of what happens in this process.
// Does not know: event loops, or how messages are received.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "bindings/convert.hpp"
#include "bindings/endpoint.hpp"
#include "bindings/errors.hpp"
#include "bindings/gil.hpp"
#include "wait/gate.hpp"
#include "wait/listener.hpp"

namespace shmcast {

namespace nb = nanobind;

// The time-out of a call that is but a look: it never waits, and returns nothing() where another
// one would; the listener is then armed.
inline constexpr nb::handle kLook{};
inline bool is_look(nb::handle timeout) { return !timeout.is_valid(); }
inline nb::object nothing() { return nb::borrow(nb::handle(Py_Ellipsis)); }

inline Deadline deadline_of(nb::handle timeout) {
  return Deadline(is_look(timeout) ? 0 : timeout_ns(timeout));
}

class Awaitable : public Endpoint {
 public:
  using Endpoint::Endpoint;

  // Return the end of a pipe that becomes readable when a look may find something. From then on
  // each look that finds nothing has asked for that.
  int listen(std::uint64_t pid_namespace) {
    std::optional<Use> turn;
    take_turn(turn);
    return listener().listen(pid_namespace);
  }
  // For who is woken by the pipe, and whose calls have found nothing: have it written when the next
  // may find something, if it may, at once.
  void rearm() {
    std::optional<Use> turn;
    take_turn(turn);
    listener().drain();
    listener().arm();
    if (has_news() || stop()()) listener().ring();
  }
  void drain() { listener().drain(); }
  void disarm() { listener().disarm(); }
  // Close the pipe, after close() and when no loop looks at it.
  void close_pipe() { listener().close_pipe(); }

  bool is_armed() { return listener().is_armed(); }
  std::uint32_t opened() { return listener().opened(); }
  std::uint32_t refused() { return listener().refused(); }
  void expect_stand_in() { listener().expect_stand_in(); }
  void stand_in() {
    const WithoutGil released;
    listener().stand_in();
  }

 private:
  virtual Listener& listener() = 0;
  // Take a turn, which another thread of this endpoint's own may have for a moment.
  virtual void take_turn(std::optional<Use>& turn) { turn.emplace(*this); }
  // Return whether a call that waits would look again.
  virtual bool has_news() = 0;
};

}  // namespace shmcast

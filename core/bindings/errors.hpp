// Room: bindings. The errors of the bindings, beside LayoutMismatch and those of ring/message.hpp.
// Knows: the names that _core.pyi documents.
// Does not know: where they are thrown, or the public errors that Python makes of them.
#pragma once

#include <stdexcept>

namespace shmcast {

struct TimedOut : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct EndpointClosed : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct ConcurrentUse : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct Forked : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct BadTimeout : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct NothingToAnswer : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct SeatTaken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace shmcast

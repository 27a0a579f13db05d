// What the bindings raise, beside the errors of the ring.
#pragma once

#include <stdexcept>

namespace shmcast {

struct TimedOut : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct EndpointClosed : std::runtime_error {
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
struct SeatTaken : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace shmcast

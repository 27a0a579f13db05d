// What the tests of a hub's parts have in common.
#pragma once

#include <cstdint>

#include "hub/tail.hpp"
#include "layout.hpp"
#include "settings.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

inline constexpr std::uint32_t kMembers = 3;
inline constexpr Geometry kReplies{1, 4, 128};
inline constexpr WaitPolicy kAdaptive{WaitPolicy::Mode::adaptive, 20'000};

inline Geometry messages_of_a_hub() {
  Geometry geometry{kMembers, 4, 128};
  geometry.tail = TailGeometry{kMembers, kReplies}.bytes();
  return geometry;
}

}  // namespace shmcast

// Arguments that most native tests have in common.
#pragma once

#include <cstddef>

#include "layout.hpp"
#include "wait/waiter.hpp"

namespace shmcast {

inline constexpr std::byte kNonce[kNonceBytes] = {std::byte{1}, std::byte{2}};
inline constexpr Identity kWho{1, 1, 1};
inline constexpr auto kNoStop = [] { return false; };
inline constexpr WaitPolicy kPark{WaitPolicy::Mode::park, 0};

}  // namespace shmcast

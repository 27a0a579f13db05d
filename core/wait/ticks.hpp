// Room: wait. Ticks: a counter of the core that is read in a third of the clock's time.
// Knows: how fast it counts at least.
// Does not know: what is measured. It says what can't have taken long; the clock says how long.
#pragma once

#include <cstdint>

#include "wait/gate.hpp"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace shmcast {

// Return the counter. It may be read early, before instructions that come first.
inline std::uint64_t ticks() {
#if defined(__x86_64__)
  return __rdtsc();
#elif defined(__aarch64__)
  std::uint64_t count;
  asm volatile("mrs %0, cntvct_el0" : "=r"(count));
  return count;
#else
  return static_cast<std::uint64_t>(monotonic_ns());
#endif
}

// Return a count that takes at most so many nanoseconds.
inline std::uint64_t ticks_within(std::int64_t ns) {
#if defined(__x86_64__)
  constexpr std::int64_t least_per_microsecond = 500;  // counters run at 1 to 5 GHz
#elif defined(__aarch64__)
  std::int64_t frequency;
  asm("mrs %0, cntfrq_el0" : "=r"(frequency));
  const std::int64_t least_per_microsecond = frequency / 1'000'000;
#else
  constexpr std::int64_t least_per_microsecond = 1'000;
#endif
  return static_cast<std::uint64_t>(ns / 1'000 * least_per_microsecond);
}

}  // namespace shmcast

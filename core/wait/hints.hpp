// Room: wait. The hints: how a core idles inside a spin loop, one function for each way.
// Knows: CPU features and instructions; the best way is chosen at run time.
// Does not know: what the loop waits for, or when it gives up.
//
// UMWAIT, MWAITX, WFET and WFE watch a word: they idle until its cache line is written, which
// leaves power and execution units to the sibling thread and the other cores. PAUSE and ISB idle
// for a moment. All of them may return early and none takes long: the caller looks again with an
// ordered load. So the look between arming a watch and idling is relaxed.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "layout.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#include <x86intrin.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace shmcast {

struct Hint {
  const char* name;
  bool (*available)();
  // Idle while `word` holds `seen`, for a moment.
  void (*idle)(const std::uint64_t& word, std::uint64_t seen);
  int idles_per_clock_read;  // worth about 5 to 20 us
};

namespace hints {

inline bool always() { return true; }

#if defined(__x86_64__)

// 10 to 20 us at 2 to 4 GHz: long enough to save power, short enough to notice a close() or a
// signal. Linux allows up to 100 000 cycles (/sys/devices/system/cpu/umwait_control/max_time).
inline constexpr std::uint32_t kIdleCycles = 40'000;

inline bool has_waitpkg() {  // Intel since Tremont and Alder Lake / Sapphire Rapids
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (c & (1U << 5)) != 0;
}

inline bool has_monitorx() {  // AMD since Excavator
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(0x8000'0001, &a, &b, &c, &d) != 0 && (c & (1U << 29)) != 0;
}

[[gnu::target("waitpkg")]] inline void umwait(const std::uint64_t& word, std::uint64_t seen) {
  constexpr unsigned kC01 = 1;  // the lighter of the two states: the faster way out
  _umonitor(const_cast<std::uint64_t*>(&word));
  if (peek(word) == seen) _umwait(kC01, __rdtsc() + kIdleCycles);
}

[[gnu::target("mwaitx")]] inline void mwaitx(const std::uint64_t& word, std::uint64_t seen) {
  constexpr unsigned kTimer = 1U << 1;  // ECX: EBX holds a time limit in TSC cycles
  constexpr unsigned kStayInC0 = 0xf0;  // EAX: the fastest way out
  _mm_monitorx(const_cast<std::uint64_t*>(&word), 0, 0);
  if (peek(word) == seen) _mm_mwaitx(kTimer, kStayInC0, kIdleCycles);
}

// Pause for 140 cycles since Skylake, 40 before and on AMD: the sibling thread gets its turn, and
// leaving the loop costs no memory-order mis-speculation.
inline void pause(const std::uint64_t&, std::uint64_t) { _mm_pause(); }

inline constexpr Hint kAll[] = {
    {"umwait", has_waitpkg, umwait, 1},
    {"mwaitx", has_monitorx, mwaitx, 1},
    {"pause", always, pause, 64},
};

#elif defined(__aarch64__)

inline constexpr std::uint64_t kIdleNs = 16'000;

inline bool has_wfet() {  // Armv8.7
  constexpr unsigned long kHwcap2Wfxt = 1UL << 31;
  return (getauxval(AT_HWCAP2) & kHwcap2Wfxt) != 0;
}

inline bool has_event_stream() {  // WFE is then woken at least every 100 us
  constexpr unsigned long kHwcapEventStream = 1UL << 2;
  return (getauxval(AT_HWCAP) & kHwcapEventStream) != 0;
}

// Arm the monitor with a load-exclusive: a write to the line by another core is an event.
inline bool armed_and_still(const std::uint64_t& word, std::uint64_t seen) {
  std::uint64_t now;
  asm volatile("ldxr %0, %1" : "=r"(now) : "Q"(word) : "memory");
  return now == seen;
}

inline void wfet(const std::uint64_t& word, std::uint64_t seen) {
  if (!armed_and_still(word, seen)) return;
  std::uint64_t frequency;
  register std::uint64_t until asm("x9");
  asm volatile("mrs %0, cntfrq_el0" : "=r"(frequency));
  asm volatile("mrs %0, cntvct_el0" : "=r"(until));
  until += frequency * kIdleNs / 1'000'000'000;
  asm volatile(".inst 0xd5031009  // wfet x9" ::"r"(until) : "memory");
}

inline void wfe(const std::uint64_t& word, std::uint64_t seen) {
  if (armed_and_still(word, seen)) asm volatile("wfe" ::: "memory");
}

// Flush the pipeline, which takes tens of cycles; YIELD is a no-op on most cores.
inline void isb(const std::uint64_t&, std::uint64_t) { asm volatile("isb" ::: "memory"); }

inline constexpr Hint kAll[] = {
    {"wfet", has_wfet, wfet, 1},
    {"wfe", has_event_stream, wfe, 1},
    {"isb", always, isb, 256},
};

#else

inline void none(const std::uint64_t&, std::uint64_t) { asm volatile("" ::: "memory"); }

inline constexpr Hint kAll[] = {{"none", always, none, 1024}};

#endif

}  // namespace hints

// Return the best hint of this CPU: the first available of kAll. The last one always is.
inline const Hint& best_hint() {
  static const Hint* const best = std::find_if(std::begin(hints::kAll), std::end(hints::kAll) - 1,
                                               [](const Hint& hint) { return hint.available(); });
  return *best;
}

}  // namespace shmcast

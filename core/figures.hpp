// Room: layout. What members count in a segment, for people to read.
// Knows: the counts, and which latency is counted where.
// Does not know: where they lie, or when anything is counted.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace shmcast {

inline constexpr std::size_t kLine = 64;
inline constexpr std::size_t kLinePair = 2 * kLine;

// What a member has done so far, for people to read. The member alone writes; any member may read.
struct alignas(kLinePair) Figures {
  std::uint64_t messages;
  std::uint64_t bytes;        // of frames; tables and headers not counted
  std::uint64_t fragments;    // slots used
  std::uint64_t abandoned;    // messages given up half-way (time-out or signal in the writer)
  std::uint64_t spins;        // waits that ended while spinning
  std::uint64_t parks;        // times that the thread went to sleep
  std::uint64_t wakeups;      // sleeps after which the awaited change was there
  std::uint64_t wakes;        // system calls made to wake others
  std::uint64_t preemptions;  // times that the core was taken away from a spinner
  std::uint64_t spun_ns;
  std::uint64_t parked_ns;
  std::uint64_t gap_ns;        // the median gap learned so far; 0: none yet
  std::uint64_t tensor_sets;   // sets of device tensors whose broadcast this member has begun
  std::uint64_t arena_frames;  // frames sent or received in the arena
  std::uint64_t arena_full;    // frames and loans that found no room in the arena
  std::uint64_t spilled;       // messages of which a part was spilled
  std::uint64_t spill_full;    // messages that found no room there, and waited
  // Adaptive waits that parked until woken, by why: the members outnumber the CPUs; the core was
  // lost a few messages ago; the member waited for was last seen on this CPU; the change can't be
  // foreseen, or is too far away.
  std::uint64_t parked_crowded;
  std::uint64_t parked_preempted;
  std::uint64_t parked_beside_peer;
  std::uint64_t parked_unpaced;
  std::uint64_t non_temporal_bytes;  // stored past the caches
};

// A figure has a single writer. relaxed: it orders nothing.
inline std::uint64_t peek(const std::uint64_t& figure) {
  // (atomic_ref of const needs C++26)
  return std::atomic_ref(const_cast<std::uint64_t&>(figure)).load(std::memory_order_relaxed);
}
inline void put(std::uint64_t& figure, std::uint64_t value) {
  std::atomic_ref(figure).store(value, std::memory_order_relaxed);
}
inline void add(std::uint64_t& figure, std::uint64_t n) { put(figure, peek(figure) + n); }

// Write or read UTF-8 that is filled up with zeros: what there is no room for is lost.
template <std::size_t kBytes>
void write_text(char (&to)[kBytes], std::string_view text) {
  std::fill(to + text.copy(to, kBytes), to + kBytes, '\0');
}
template <std::size_t kBytes>
std::string_view read_text(const char (&from)[kBytes]) {
  return {from, static_cast<std::size_t>(std::find(from, from + kBytes, '\0') - from)};
}

// How errors name a member, which writes it itself when it takes its place.
struct alignas(kLinePair) Name {
  char text[kLinePair];
};

// How long messages took from the start of their sending until a reader had all of them: a count
// for each of kSteps parts of an octave, of one message in kEvery. The reader alone writes; anybody
// may read. (To read the clock for each would take longer than a hundredth of a small message.)
struct alignas(kLinePair) Latencies {
  static constexpr unsigned kStepBits = 3;
  static constexpr unsigned kFirstOctave = 7;  // what takes less than 128 ns is counted as one
  static constexpr unsigned kOctaves = 28;     // as is what takes 34 s or more
  static constexpr std::size_t kSteps = 1 << kStepBits;
  static constexpr std::size_t kBuckets = 1 + kOctaves * kSteps + 1;
  static constexpr std::uint64_t kEvery = 4;

  std::uint64_t sum_ns;
  std::uint64_t counts[kBuckets];

  // Return whether a message is counted, by its number: not every fourth, as programs have periods.
  static constexpr bool takes(std::uint64_t message) {
    static_assert(kEvery == 4);
    return message * 0x9E37'79B9'7F4A'7C15 >> 62 == 0;
  }
  static constexpr std::size_t bucket_of(std::uint64_t ns) {
    const auto octave = static_cast<unsigned>(std::bit_width(ns | 1)) - 1;
    if (octave < kFirstOctave) return 0;
    if (octave >= kFirstOctave + kOctaves) return kBuckets - 1;
    return 1 + (octave - kFirstOctave) * kSteps + (ns >> (octave - kStepBits)) % kSteps;
  }
  // Return the least latency, in nanoseconds, that is too long for the bucket; 0: there is none.
  static constexpr std::uint64_t end_of(std::size_t bucket) {
    if (bucket == kBuckets - 1) return 0;
    const std::uint64_t step = kSteps + bucket % kSteps;  // (bucket 0 ends where the octaves begin)
    return step << (kFirstOctave - kStepBits + bucket / kSteps);
  }
  // Count a message that was sent and received then. Clocks of different containers may differ:
  // nothing takes less than no time. (Unsigned, since `sent_ns` may be anything in a damaged
  // segment.)
  void record(std::int64_t sent_ns, std::int64_t received_ns) {
    const std::uint64_t latency = sent_ns < received_ns ? static_cast<std::uint64_t>(received_ns) -
                                                              static_cast<std::uint64_t>(sent_ns)
                                                        : 0;
    add(counts[bucket_of(latency)], 1);
    add(sum_ns, latency);
  }
};

}  // namespace shmcast

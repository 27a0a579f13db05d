// Room: copy. Copies into shared memory and out of it.
// Knows: vector loops, alignment, stores that go past the caches.
// Does not know: whose memory it is, or which stores pay.
//
// Short copies are the C library's. So are all but on x86-64: elsewhere no better way was measured.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace shmcast {

// How a copy is stored. Non-temporal stores go past the caches. So they need not fetch the lines
// that they overwrite, which takes long where a core that is far away has them; but whoever reads
// the copy finds it in no cache.
enum class Stores : std::uint8_t { ordinary, non_temporal };

#ifdef __x86_64__
namespace long_copy {

inline constexpr std::size_t kLeast = 2048;

// A copy that has begun: the rest of its target begins a line.
struct Rest {
  std::byte* to;
  const std::byte* from;
  std::size_t size;
};

inline Rest begin(std::byte* to, const std::byte* from, std::size_t size) {
  constexpr std::size_t line = 64;
  std::memcpy(to, from, line);  // of which some is copied again: a fixed size has no branches
  const std::size_t head = -reinterpret_cast<std::uintptr_t>(to) % line;
  return {to + head, from + head, size - head};
}

template <Stores kStores>
[[gnu::target("avx2"), gnu::noinline]] inline void by_avx2(Rest rest) {
  constexpr std::size_t block = 128;
  for (; rest.size >= block; rest.to += block, rest.from += block, rest.size -= block) {
    const auto* const from = reinterpret_cast<const __m256i*>(rest.from);
    auto* const to = reinterpret_cast<__m256i*>(rest.to);
    const __m256i a = _mm256_loadu_si256(from);
    const __m256i b = _mm256_loadu_si256(from + 1);
    const __m256i c = _mm256_loadu_si256(from + 2);
    const __m256i d = _mm256_loadu_si256(from + 3);
    if constexpr (kStores == Stores::non_temporal) {
      _mm256_stream_si256(to, a);
      _mm256_stream_si256(to + 1, b);
      _mm256_stream_si256(to + 2, c);
      _mm256_stream_si256(to + 3, d);
    } else {
      _mm256_store_si256(to, a);
      _mm256_store_si256(to + 1, b);
      _mm256_store_si256(to + 2, c);
      _mm256_store_si256(to + 3, d);
    }
  }
  // Nothing else orders such stores, not even a release.
  if constexpr (kStores == Stores::non_temporal) _mm_sfence();
  std::memcpy(rest.to, rest.from, rest.size);
}

inline bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2") != 0;
  return has;
}

}  // namespace long_copy

// Return whether there are non-temporal stores. Elsewhere both kinds are the same.
inline bool has_non_temporal() { return long_copy::has_avx2(); }

// Copy like memcpy, into shared memory. Where the C library copies with `rep movsb`, ordinary
// stores of its own are the best near and far; but on some CPUs at half the speed if the target is
// not aligned.
inline void copy_in(std::byte* to, const std::byte* from, std::size_t size, Stores stores) {
  if (size < long_copy::kLeast) {
    std::memcpy(to, from, size);
    return;
  }
  const long_copy::Rest rest = long_copy::begin(to, from, size);
  if (stores == Stores::non_temporal && has_non_temporal()) {
    return long_copy::by_avx2<Stores::non_temporal>(rest);
  }
  std::memcpy(rest.to, rest.from, rest.size);
}

// Copy like memcpy, out of shared memory. With `rep movsb`, part by part, the target is fetched
// at half the speed of a loop if it is in no cache.
inline void copy_out(std::byte* to, const std::byte* from, std::size_t size) {
  if (size >= long_copy::kLeast && long_copy::has_avx2()) {
    return long_copy::by_avx2<Stores::ordinary>(long_copy::begin(to, from, size));
  }
  std::memcpy(to, from, size);
}

#else
inline bool has_non_temporal() { return false; }

inline void copy_in(std::byte* to, const std::byte* from, std::size_t size, Stores /*stores*/) {
  std::memcpy(to, from, size);
}

inline void copy_out(std::byte* to, const std::byte* from, std::size_t size) {
  std::memcpy(to, from, size);
}
#endif

}  // namespace shmcast

// Room: copy. Copies that no cache could hold.
// Knows: non-temporal stores.
// Does not know: whose memory it copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace shmcast {

// From this size on, stores that bypass the caches are faster: they need not fetch the lines that
// they overwrite. Measured from 1 to 128 MiB (docs/architecture/arena.md). Of a smaller copy,
// whoever reads it next finds it in a cache.
inline constexpr std::size_t kNonTemporalBytes = 32 * 1024 * 1024;

#ifdef __x86_64__
[[gnu::target("avx512f")]] inline void copy_lines_avx512(std::byte* to, const std::byte* from,
                                                         std::size_t lines) {
  for (; lines != 0; --lines, to += 64, from += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
  }
}

inline void copy_lines_sse2(std::byte* to, const std::byte* from, std::size_t lines) {
  for (; lines != 0; --lines, to += 64, from += 64) {
    const auto* in = reinterpret_cast<const __m128i*>(from);
    auto* out = reinterpret_cast<__m128i*>(to);
    for (int i = 0; i < 4; ++i) _mm_stream_si128(out + i, _mm_loadu_si128(in + i));
  }
}
#endif

// Copy like memcpy, bypassing the caches if the copy is large and `to` begins a cache line.
inline void wide_copy(std::byte* to, const std::byte* from, std::size_t size) {
#ifdef __x86_64__
  if (size >= kNonTemporalBytes && reinterpret_cast<std::uintptr_t>(to) % 64 == 0) {
    const std::size_t lines = size / 64;
    static const bool has_avx512 = __builtin_cpu_supports("avx512f") != 0;
    if (has_avx512) {
      copy_lines_avx512(to, from, lines);
    } else {
      copy_lines_sse2(to, from, lines);
    }
    _mm_sfence();  // nothing else orders such stores, not even a release
    to += lines * 64;
    from += lines * 64;
    size %= 64;
  }
#endif
  std::memcpy(to, from, size);
}

}  // namespace shmcast

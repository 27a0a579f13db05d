// Room: wait. The CPUs: where this thread runs, where it may run, where its peer was seen.
// Knows: the kernel's affinity and CPU numbers.
// Does not know: quotas, or who the peers are.
#pragma once

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>

#include "layout.hpp"

namespace shmcast {

// A member's last CPU, as its peers see it: the CPU's number plus 1, or 0 while it is unknown. A
// hint. Stored only when it changes, so that peers keep its cache line.
class LastCpu {
 public:
  // To be noted at least once in so many messages, and whenever there is time.
  static constexpr std::uint64_t kMessages = 16;

  explicit LastCpu(std::uint64_t& word) : word_(word) {}

  // Note where the calling thread runs, which takes some 5 ns. (A load from memory that the kernel
  // shares, since glibc 2.35; before, a call of the vDSO.)
  void note() {
    const std::uint64_t cpu = here();
    if (cpu == noted_) return;
    noted_ = cpu;
    put(word_, cpu);
  }

  // Return whether `peer`, another member's word, is the CPU of the calling thread. Whoever spins
  // there keeps that member from running.
  static bool is_shared_with(const std::uint64_t& peer) {
    const std::uint64_t cpu = peek(peer);
    return cpu != 0 && cpu == here();
  }

 private:
  // sched_getcpu() returns -1 where the kernel does not say: unknown.
  static std::uint64_t here() { return static_cast<std::uint64_t>(sched_getcpu() + 1); }

  std::uint64_t& word_;
  std::uint64_t noted_ = 0;
};

// The CPUs that the calling thread may run on.
struct Affinity {
  CpuMask mask{};
  std::uint32_t count = 0;

  static Affinity of_this_thread() {
    Affinity affinity;
    std::uint64_t bits[8192 / 64] = {};  // the most CPUs that Linux can be built for
    // (glibc's function knows no more than 1024 CPUs.)
    const long bytes = syscall(SYS_sched_getaffinity, 0, sizeof bits, bits);
    if (bytes <= 0) {  // a sandbox refuses it: any of the CPUs there are
      affinity.count = static_cast<std::uint32_t>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));
      return affinity;
    }
    for (std::size_t i = 0; i < static_cast<std::size_t>(bytes) / sizeof *bits; ++i) {
      affinity.count += static_cast<std::uint32_t>(__builtin_popcountll(bits[i]));
      affinity.mask.words[i % std::size(affinity.mask.words)] |= bits[i];
    }
    return affinity;
  }

  // Let the other members see it.
  void publish(CpuMask& mine) const {
    for (std::size_t i = 0; i < std::size(mask.words); ++i) {
      if (peek(mine.words[i]) != mask.words[i]) put(mine.words[i], mask.words[i]);
    }
  }

  // Return whether a member may run on one of these CPUs.
  bool overlaps(const CpuMask& other) const {
    std::uint64_t mine = 0, its = 0, both = 0;
    for (std::size_t i = 0; i < std::size(mask.words); ++i) {
      const std::uint64_t word = peek(other.words[i]);
      mine |= mask.words[i];
      its |= word;
      both |= mask.words[i] & word;
    }
    return mine == 0 || its == 0 || both != 0;
  }
};

}  // namespace shmcast

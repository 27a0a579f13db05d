// Room: bindings. Tells the child of a fork from its parent.
// Knows: pthread_atfork.
// Does not know: who must not be used after a fork.
#pragma once

#include <pthread.h>

#include <atomic>

namespace shmcast {

// The number of forks that led to this process. An object that keeps the number it was made under
// can tell that it came through a fork. relaxed everywhere: the child of a fork has one thread.
inline std::atomic<unsigned> fork_generation{0};

// Count forks from now on. Call once, when the module is loaded.
inline void count_forks() {
  // A Python-level hook would miss forks made by C code.
  pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); });
}

}  // namespace shmcast

// Which process this is, after forks.
#pragma once

#include <pthread.h>

#include <atomic>

namespace shmcast {

// Counts the forks that led to this process; an endpoint made before one must not be used after.
// relaxed: the child of a fork has one thread.
inline std::atomic<unsigned> fork_generation{0};

inline void count_forks() {
  // Inherited by every later fork: a Python-level hook would miss forks made by C code.
  pthread_atfork(nullptr, nullptr, [] { fork_generation.fetch_add(1, std::memory_order_relaxed); });
}

}  // namespace shmcast

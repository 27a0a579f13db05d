// Room: bindings. The thread that takes replies while it waits for room.
// Knows: that its turns are too short for another thread to be told of them.
// Does not know: what it does meanwhile.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

#include "bindings/errors.hpp"
#include "bindings/gil.hpp"

namespace shmcast {

class Reliever {
 public:
  // A turn of this thread, for longer than it is inside the endpoint.
  class Relieving {
   public:
    explicit Relieving(Reliever& place) : place_(place) {
      // relaxed: read by this thread, to know itself. By others together with `steps_`.
      place_.thread_.store(pthread_self(), std::memory_order_relaxed);
      place_.steps_.fetch_add(1, std::memory_order_seq_cst);
    }
    Relieving(const Relieving&) = delete;
    Relieving& operator=(const Relieving&) = delete;
    ~Relieving() {
      place_.steps_.fetch_add(1, std::memory_order_seq_cst);
      place_.thread_.store(0, std::memory_order_relaxed);
    }

   private:
    Reliever& place_;
  };

  // Call `take_turn`, again if it throws ConcurrentUse because of such a turn of another thread.
  template <class TakeTurn>
  void outlast(TakeTurn take_turn) const {
    for (;;) {
      // seq_cst, as in Relieving and as `busy` of an endpoint: who counts, and then finds the
      // endpoint busy with a turn, finds its begin counted before or since, however soon it is
      // over.
      const std::uint64_t steps = steps_.load(std::memory_order_seq_cst);
      try {
        return take_turn();
      } catch (const ConcurrentUse&) {
        if (!was_another(steps)) throw;
      }
      const WithoutGil released;
      sched_yield();
    }
  }

 private:
  bool was_another(std::uint64_t steps) const {
    const pthread_t thread = thread_.load(std::memory_order_relaxed);
    const bool is_own = thread != 0 && pthread_equal(thread, pthread_self()) != 0;
    return !is_own && (steps % 2 != 0 || steps != steps_.load(std::memory_order_seq_cst));
  }

  std::atomic<pthread_t> thread_{};
  std::atomic<std::uint64_t> steps_{0};  // begins and ends of turns
};

}  // namespace shmcast

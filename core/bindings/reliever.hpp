// Room: bindings. The thread that takes replies while it waits for room.
// Knows: that its turns are too short for another thread to be told of them.
// Does not know: what it does meanwhile.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstdint>

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

  // Return the begins and ends of turns so far. seq_cst, here and above, as `busy` of an endpoint
  // is: who has counted, and then found the endpoint busy with such a turn, finds that one counted
  // as begun before or since, however soon it is over.
  std::uint64_t steps() const { return steps_.load(std::memory_order_seq_cst); }

  // Return whether there was a turn of another thread since `steps` were counted.
  bool was_another(std::uint64_t steps) const {
    const pthread_t thread = thread_.load(std::memory_order_relaxed);
    const bool is_own = thread != 0 && pthread_equal(thread, pthread_self()) != 0;
    return !is_own && (steps % 2 != 0 || steps != this->steps());
  }

 private:
  std::atomic<pthread_t> thread_{};
  std::atomic<std::uint64_t> steps_{0};
};

}  // namespace shmcast

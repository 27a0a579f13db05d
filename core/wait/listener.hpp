// Room: wait. The listener: how an event loop of this process awaits what others do.
// Knows: its pipe, its doorbell, and how to arm the gate.
// Does not know: event loops, or what they look at.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>
#include <system_error>

#include "layout.hpp"
#include "wait/gate.hpp"
#include "wait/ringer.hpp"

namespace shmcast {

// A loop looks, finds nothing, and awaits a byte in the pipe:
//     loop: arm(); look again; await        waker: store the change; Gate::wake(), Ringer::ring()
// That is the eventcount of the gate. Whoever looks again arms again. For the loop's thread, but
// for what says otherwise.
class Listener {
 public:
  Listener(std::uint64_t& gate, Doorbell& doorbell) : gate_(gate), doorbell_(doorbell) {}

  // Make the pipe, if there is none. Returns the end that becomes readable. Throws
  // std::system_error.
  int listen(std::uint64_t pid_namespace) {
    const std::lock_guard lock(mutex_);
    if (reads_.get() >= 0) return reads_.get();
    std::array<int, 2> ends;
    if (pipe2(ends.data(), O_NONBLOCK | O_CLOEXEC) != 0) {
      throw std::system_error(errno, std::generic_category(), "pipe2");
    }
    reads_ = OwnFd(ends[0]);
    writes_ = OwnFd(ends[1]);
    put(doorbell_.pid_namespace, pid_namespace);
    // relaxed, all of them: ordered by the store of the inode.
    std::atomic_ref(doorbell_.pid).store(getpid(), std::memory_order_relaxed);
    std::atomic_ref(doorbell_.fd).store(ends[1], std::memory_order_relaxed);
    std::atomic_ref(doorbell_.opened).store(0, std::memory_order_relaxed);
    std::atomic_ref(doorbell_.refused).store(0, std::memory_order_relaxed);
    // release: pairs with Ringer::take().
    std::atomic_ref(doorbell_.inode).store(inode_of_pipe(ends[1]), std::memory_order_release);
    // release: pairs with arm(), for another loop's thread.
    is_listening_.store(true, std::memory_order_release);
    return ends[0];
  }

  // Tell others that nobody listens any more. From any thread.
  void hush() {
    // relaxed: it orders nothing.
    if (!is_listening_.exchange(false, std::memory_order_relaxed)) return;
    disarm();
    // relaxed: whoever still sees the inode finds another file, or writes a byte that nobody reads.
    std::atomic_ref(doorbell_.inode).store(0, std::memory_order_relaxed);
    dismiss();
  }

  // Close the pipe, after hush() and when no loop looks at it.
  void close_pipe() {
    const std::lock_guard lock(mutex_);
    reads_ = {};
    writes_ = {};
  }

  // Have a byte written at the next change. Then look again.
  void arm() {
    // acquire: pairs with listen().
    if (!is_listening_.load(std::memory_order_acquire)) return;
    // seq_cst: pairs with Ringer::take(); before the gate says that somebody is armed.
    std::atomic_ref(doorbell_.armed).store(1, std::memory_order_seq_cst);
    const std::uint64_t word = Gate(gate_).arm();
    // relaxed: set by this thread.
    if (!has_stand_in_.load(std::memory_order_relaxed)) return;
    // seq_cst: pairs with stand_in().
    armed_at_.store(std::uint64_t{Gate::wake_ups(word)} << 32 | 1, std::memory_order_seq_cst);
    armed_at_.notify_all();
  }

  // No byte is wanted any more. One that is on its way comes nevertheless.
  void disarm() {
    // relaxed, both: who does not see it writes a byte in vain.
    std::atomic_ref(doorbell_.armed).store(0, std::memory_order_relaxed);
    if (has_stand_in_.load(std::memory_order_relaxed)) {
      std::uint64_t armed = armed_at_.load(std::memory_order_relaxed);
      if (armed != kDismissed) {
        armed_at_.compare_exchange_strong(armed, kUnarmed, std::memory_order_relaxed);
      }
    }
  }

  // Return whether a byte is wanted. From any thread; a hint.
  bool is_armed() const {
    // relaxed: it orders nothing.
    return std::atomic_ref(doorbell_.armed).load(std::memory_order_relaxed) != 0;
  }

  // Write the byte from within this process. From any thread.
  void ring() {
    const std::lock_guard lock(mutex_);
    if (writes_.get() >= 0) write_byte(writes_.get());
  }

  // Take all bytes out of the pipe. To be called before arm(), or the byte that it asks for is
  // lost.
  void drain() {
    std::array<char, 64> bytes;
    while (read(reads_.get(), bytes.data(), bytes.size()) == bytes.size()) {
    }
  }

  // How many others can write to the pipe, and how many can't, as far as they have tried.
  std::uint32_t opened() const {
    // relaxed, both: hints.
    return std::atomic_ref(doorbell_.opened).load(std::memory_order_relaxed);
  }
  std::uint32_t refused() const {
    return std::atomic_ref(doorbell_.refused).load(std::memory_order_relaxed);
  }

  // Announce a thread that will call stand_in(). To be called before its start, and before arm().
  void expect_stand_in() {
    // relaxed: read by this thread, or behind the start of the other.
    has_stand_in_.store(true, std::memory_order_relaxed);
    armed_at_.store(kUnarmed, std::memory_order_relaxed);
  }

  // Write the byte in the place of others that can't, until dismiss(): in a thread of its own,
  // which parks where they wake, and takes nothing.
  void stand_in() {
    Gate gate(gate_);
    for (;;) {
      // seq_cst, here and below: pairs with arm() and dismiss(). The second load is the second look
      // between announce() and park().
      const std::uint64_t armed = armed_at_.load(std::memory_order_seq_cst);
      if (armed == kDismissed) return;
      if (armed == kUnarmed) {
        armed_at_.wait(kUnarmed, std::memory_order_seq_cst);
        continue;
      }
      const std::uint64_t ticket = gate.announce();
      // Whoever has woken anybody since arm(), may have wanted to ring.
      const bool is_rung = Gate::wake_ups(ticket) != armed >> 32;
      if (!is_rung && armed_at_.load(std::memory_order_seq_cst) == armed) {
        gate.park(ticket, kForever);
      }
      gate.withdraw(ticket);
      std::uint64_t expected = armed;
      if (is_rung &&
          armed_at_.compare_exchange_strong(expected, kUnarmed, std::memory_order_seq_cst)) {
        ring();
      }
    }
  }

 private:
  static constexpr std::uint64_t kUnarmed = 0;
  static constexpr std::uint64_t kDismissed = UINT64_MAX;

  void dismiss() {
    // relaxed: see expect_stand_in().
    if (!has_stand_in_.exchange(false, std::memory_order_relaxed)) return;
    // seq_cst: pairs with stand_in(), which is then woken wherever it waits.
    armed_at_.store(kDismissed, std::memory_order_seq_cst);
    armed_at_.notify_all();
    Gate(gate_).wake();
  }

  std::uint64_t& gate_;
  Doorbell& doorbell_;
  std::atomic<bool> is_listening_{false};
  std::mutex mutex_;  // of the pipe's ends
  OwnFd reads_;
  OwnFd writes_;
  std::atomic<bool> has_stand_in_{false};
  // At how many wake-ups of the gate the loop was armed last, in the upper half, and 1.
  std::atomic<std::uint64_t> armed_at_{kUnarmed};
};

}  // namespace shmcast

// Room: wait. The ringer: how another process's event loop is told that it should look.
// Knows: pipes, and how one of another process is opened and not mistaken.
// Does not know: what there is to see, or who awaits it.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <utility>
#include <vector>

#include "layout.hpp"

namespace shmcast {

// A descriptor that is closed with its owner. -1: none.
class OwnFd {
 public:
  OwnFd() = default;
  explicit OwnFd(int fd) : fd_(fd) {}
  OwnFd(OwnFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnFd& operator=(OwnFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~OwnFd() {
    if (fd_ >= 0) close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

// Return the inode of a pipe; 0: it is none, or can't be seen.
inline std::uint64_t inode_of_pipe(int fd) {
  struct stat found;
  return fstat(fd, &found) == 0 && S_ISFIFO(found.st_mode) ? found.st_ino : 0;
}

// Write a byte. If there is no room, there are bytes enough: the loop will look.
inline void write_byte(int fd) {
  const char byte = 0;
  if (write(fd, &byte, 1) < 0) return;
}

// Rings the doorbells of one segment's loops. Opens their pipes when they are first rung, and keeps
// them. A pipe that can't be opened is not tried again: the doorbell tells its loop.
class Ringer {
 public:
  explicit Ringer(std::uint32_t doorbells) : opened_(doorbells) {}

  // Ring the doorbell `index`, if it is armed. Throws nothing, never waits.
  void ring(Doorbell& doorbell, std::uint32_t index) {
    const std::uint64_t inode = take(doorbell);
    if (inode == 0) return;
    Opened& known = opened_[index];
    if (known.inode != inode) known = {inode, open_pipe(doorbell, inode)};
    if (known.pipe.get() >= 0) write_byte(known.pipe.get());
  }

  // Let go of all pipes.
  void close_all() {
    for (Opened& known : opened_) known = {};
  }

  // The same as ring() for who does so once, and keeps nothing.
  static void ring_once(Doorbell& doorbell) {
    const std::uint64_t inode = take(doorbell);
    if (inode == 0) return;
    const OwnFd pipe = open_pipe(doorbell, inode);
    if (pipe.get() >= 0) write_byte(pipe.get());
  }

 private:
  struct Opened {
    std::uint64_t inode = 0;
    OwnFd pipe{};  // none: it can't be opened
  };

  // Disarm a doorbell. Returns its pipe's inode; 0: it was not armed, or there is none.
  static std::uint64_t take(Doorbell& doorbell) {
    // seq_cst: pairs with Listener::arm(). Behind the gate's kArmed, which was read from there or
    // later, so that the flag is seen.
    if (std::atomic_ref(doorbell.armed).exchange(0, std::memory_order_seq_cst) == 0) return 0;
    // acquire: pairs with Listener::listen(); who sees the inode sees whose it is.
    return std::atomic_ref(doorbell.inode).load(std::memory_order_acquire);
  }

  // Open the pipe, and count that in the doorbell, or that it can't be.
  static OwnFd open_pipe(Doorbell& doorbell, std::uint64_t inode) {
    OwnFd pipe = find_pipe(doorbell, inode);
    // acquire: as above. If there is another pipe now, this says nothing about it.
    if (std::atomic_ref(doorbell.inode).load(std::memory_order_acquire) == inode) {
      // relaxed: a hint, which the loop looks at now and then.
      std::atomic_ref(pipe.get() < 0 ? doorbell.refused : doorbell.opened)
          .fetch_add(1, std::memory_order_relaxed);
    }
    return pipe;
  }

  // The number may be another file's by now: look at it before it is really opened, which may have
  // consequences. O_RDWR: to write is no error, and no signal, when nobody reads any more.
  static OwnFd find_pipe(Doorbell& doorbell, std::uint64_t inode) {
    struct stat here;
    if (stat("/proc/self/ns/pid", &here) != 0 || here.st_ino != peek(doorbell.pid_namespace)) {
      return {};
    }
    // relaxed, both: ordered by the load of the inode. If they are another pipe's, so is its inode.
    const auto pid = std::atomic_ref(doorbell.pid).load(std::memory_order_relaxed);
    const auto fd = std::atomic_ref(doorbell.fd).load(std::memory_order_relaxed);
    std::array<char, 64> path;
    std::snprintf(path.data(), path.size(), "/proc/%u/fd/%u", pid, fd);
    const OwnFd seen(open(path.data(), O_PATH | O_CLOEXEC));
    if (seen.get() < 0 || inode_of_pipe(seen.get()) != inode) return {};
    std::snprintf(path.data(), path.size(), "/proc/self/fd/%d", seen.get());
    return OwnFd(open(path.data(), O_RDWR | O_NONBLOCK | O_CLOEXEC | O_NOCTTY));
  }

  std::vector<Opened> opened_;
};

}  // namespace shmcast

// An alarm is raised once for each process that ends and each lock that is dropped; never after
// remove() or forget(); in a fork's child anew; and again by a new thread after somebody has closed
// the descriptors of the old one. To be run under ThreadSanitizer.
//
//     watcher_test [scale]
#include "watch/watcher.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "check.hpp"
#include "settings.hpp"
#include "watch/life_lock.hpp"

// Forks start threads here, which ThreadSanitizer must be told to permit.
extern "C" const char* __tsan_default_options() { return "die_after_fork=0"; }

namespace shmcast {
namespace {

struct Count final : Alarm {
  std::atomic<int> raised{0};
  // relaxed: the test only counts.
  void alarm() override { raised.fetch_add(1, std::memory_order_relaxed); }
  int so_far() const { return raised.load(std::memory_order_relaxed); }
  void await(int count) const {
    for (int i = 0; i < 30'000 && so_far() < count; ++i) usleep(1'000);
    CHECK(so_far() == count);
  }
};

// A process that waits for its end.
class Child {
 public:
  Child() : pid_(fork()) {
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      for (;;) pause();
    }
    CHECK(pid_ > 0);
    pidfd_ = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
    CHECK(pidfd_ >= 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  ~Child() {
    end();
    close(pidfd_);
  }
  void end() {
    if (pid_ == 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  int pidfd() const { return pidfd_; }

 private:
  pid_t pid_;
  int pidfd_;
};

int make_file() {
  const int fd = memfd_create("places", MFD_CLOEXEC);
  CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
  return fd;
}

void each_end_raises_the_alarm_once() {
  Count alarm;
  std::vector<std::unique_ptr<Child>> children;
  for (int i = 0; i < 4; ++i) {
    children.push_back(std::make_unique<Child>());
    Watcher::add_process(children.back()->pidfd(), alarm);
  }
  for (int i = 0; i < 4; ++i) {
    children[static_cast<std::size_t>(i)]->end();
    alarm.await(i + 1);
  }
  Watcher::forget(alarm);
}

void who_is_removed_raises_no_alarm(int rounds) {
  for (int i = 0; i < rounds; ++i) {
    Child child;
    auto alarm = std::make_unique<Count>();
    const Watcher::Id id = Watcher::add_process(child.pidfd(), *alarm);
    std::thread killer([&child] { child.end(); });
    if (i % 2 == 0) {
      Watcher::remove(id);
    } else {
      Watcher::forget(*alarm);
    }
    alarm.reset();  // under ASan: nobody touches it any more
    killer.join();
  }
}

void a_dropped_lock_raises_the_alarm() {
  const int fd = make_file();
  LifeLock lock(fd, 3);
  CHECK(is_locked(fd, 3) == Locked::yes);
  CHECK(is_locked(fd, 2) == Locked::no);
  try {
    const LifeLock second(fd, 3);
    CHECK(false);
  } catch (const std::system_error& error) {
    CHECK(error.code().value() == EAGAIN || error.code().value() == EACCES);
  }
  Count alarm;
  Watcher::add_lock(fd, 3, alarm);
  CHECK(alarm.so_far() == 0);
  lock.release();
  CHECK(is_locked(fd, 3) == Locked::no);
  alarm.await(1);
  Watcher::forget(alarm);
  close(fd);
}

// Return whether forks are the kernel's: qemu's emulation ignores what they must not inherit, and
// aborts when they start threads.
bool forks_are_real() {
  void* const page = mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(page != MAP_FAILED && madvise(page, 4096, MADV_DONTFORK) == 0);
  const pid_t pid = fork();
  if (pid == 0) _exit(madvise(page, 4096, MADV_NORMAL) != 0 && errno == ENOMEM ? 0 : 1);
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
  munmap(page, 4096);
  return WEXITSTATUS(status) == 0;
}

// The lock is the process's own: no fork keeps it, and none releases it.
void a_fork_neither_keeps_nor_drops_a_lock() {
  const int fd = make_file();
  const pid_t holder = fork();
  if (holder == 0) {
    LifeLock lock(fd, 0);
    Child grandchild;
    const pid_t other = fork();
    if (other == 0) {
      lock.release();
      _exit(is_locked(fd, 0) == Locked::yes ? 0 : 1);
    }
    int status = 0;
    CHECK(waitpid(other, &status, 0) == other);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 2);
  }
  int status = 0;
  CHECK(waitpid(holder, &status, 0) == holder);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  CHECK(is_locked(fd, 0) == Locked::no);
  close(fd);
}

void a_fork_watches_anew() {
  Count parents;
  Child child;
  Watcher::add_process(child.pidfd(), parents);
  const pid_t pid = fork();
  if (pid == 0) {
    Count own;
    Child grandchild;
    Watcher::add_process(grandchild.pidfd(), own);
    grandchild.end();
    own.await(1);
    _exit(parents.so_far() == 0 ? 0 : 1);
  }
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  child.end();
  parents.await(1);
  Watcher::forget(parents);
}

// As by a program that closes all descriptors but the standard ones.
void closed_descriptors_are_told_and_replaced() {
  const pid_t pid = fork();
  if (pid == 0) {
    Count alarm;
    const int fd = make_file();
    LifeLock lock(fd, 0);
    Watcher::add_lock(fd, 0, alarm);
    const std::uint64_t before = Watcher::generation();
    for (int i = 3; i < 64; ++i) close(i);
    Child child;  // takes the numbers of the closed ones
    while (Watcher::generation() == before) usleep(1'000);
    alarm.await(1);
    Watcher::add_process(child.pidfd(), alarm);
    child.end();
    alarm.await(2);
    _exit(0);
  }
  int status = 0;
  CHECK(waitpid(pid, &status, 0) == pid);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace shmcast

int main(int argc, char** argv) {
  using namespace shmcast;
  const int scale = argc > 1 ? std::atoi(argv[1]) : 1;
  Watcher::guard_forks();
  each_end_raises_the_alarm_once();
  who_is_removed_raises_no_alarm(20 * scale);
  a_dropped_lock_raises_the_alarm();
  if (forks_are_real()) {
    a_fork_neither_keeps_nor_drops_a_lock();
    a_fork_watches_anew();
    closed_descriptors_are_told_and_replaced();
  } else {
    std::puts("watcher_test: skipped what forks do, in an emulator");
  }
  std::puts("watcher_test: ok");
  return 0;
}

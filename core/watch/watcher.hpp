// Room: watch. One native thread that raises the alarms of those whose peers may have ended, and
// calls others once a second.
// Knows: pidfds, locks that the kernel drops, epoll, forks.
// Does not know: who a peer is, how it has ended, or what an alarm leads to; Python.
#pragma once

#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <mutex>
#include <system_error>
#include <unordered_map>
#include <vector>

#include "wait/gate.hpp"
#include "watch/life_lock.hpp"

namespace shmcast {

// What the watcher's thread raises. It must not wait, throw, or call the watcher.
class Alarm {
 public:
  virtual void alarm() = 0;

 protected:
  ~Alarm() = default;
};

// What the watcher's thread calls about once a second. It must not wait for long, throw, or call
// the watcher.
class Ticker {
 public:
  // Returns whether to be called again.
  virtual bool tick(std::int64_t now_ns) = 0;

 protected:
  ~Ticker() = default;
};

// Raises an alarm once when a process ends, by its pidfd, or when its lock is dropped.
//
// The thread needs neither the GIL nor anything of Python's, so that no import, monkey patch or
// busy thread delays it. One mutex guards all; it is never held while anybody waits. A fork's child
// has no such thread: it begins anew, and so does a process whose descriptors somebody has closed.
class Watcher {
 public:
  using Id = std::uint64_t;

  // Raise the alarm once when the process ends. `pidfd` stays the caller's, to be closed after
  // remove(). Throws std::system_error: there is no thread, or the kernel can't.
  static Id add_process(int pidfd, Alarm& alarm) {
    const std::lock_guard lock(mutex());
    Watcher& watcher = running();
    const Id id = ++last_id();
    epoll_event event{EPOLLIN | EPOLLONESHOT, {.u64 = id}};
    if (epoll_ctl(watcher.epoll_, EPOLL_CTL_ADD, pidfd, &event) != 0) throw_errno("epoll_ctl");
    watcher.watched_.emplace(id, Watched{&alarm, pidfd, kNoPlace, {}});
    return id;
  }

  // Raise the alarm once when nobody holds the lock on `place` any more, within about a second.
  // `fd` is any descriptor of the file but the holder's own. Throws std::system_error.
  static Id add_lock(int fd, std::int64_t place, Alarm& alarm) {
    const std::lock_guard lock(mutex());
    Watcher& watcher = running();
    const Id id = ++last_id();
    watcher.watched_.emplace(id, Watched{&alarm, fd, place, FileId::of(fd)});
    return id;
  }

  // Raise this alarm no more. An unknown id is one of before a fork.
  static void remove(Id id) {
    const std::lock_guard lock(mutex());
    if (instance() == nullptr) return;
    const auto found = instance()->watched_.find(id);
    if (found != instance()->watched_.end()) instance()->erase(found);
  }

  // Call the ticker from now on; one that is called already is called as before. Throws
  // std::system_error.
  static void add_ticker(Ticker& ticker) {
    const std::lock_guard lock(mutex());
    auto& tickers = running().tickers_;
    if (std::find(tickers.begin(), tickers.end(), &ticker) == tickers.end()) {
      tickers.push_back(&ticker);
    }
  }

  // The ticker is about to be destroyed.
  static void forget_ticker(const Ticker& ticker) {
    const std::lock_guard lock(mutex());
    if (instance() != nullptr) std::erase(instance()->tickers_, &ticker);
  }

  // The alarm is about to be destroyed.
  static void forget(const Alarm& alarm) {
    const std::lock_guard lock(mutex());
    if (instance() == nullptr) return;
    auto& watched = instance()->watched_;
    for (auto it = watched.begin(); it != watched.end();) {
      it = it->second.alarm == &alarm ? instance()->erase(it) : std::next(it);
    }
  }

  // Return a number that changes when all that was added is forgotten, because somebody has closed
  // the watcher's descriptors. All alarms are raised then.
  static std::uint64_t generation() {
    const std::lock_guard lock(mutex());
    return generation_ref();
  }

  // Begin anew in the children of forks. Call once, when the program starts.
  static void guard_forks() {
    pthread_atfork([] { mutex().lock(); }, [] { mutex().unlock(); },
                   [] {
                     // Its thread is the parent's. Descriptors are left as they are.
                     instance() = nullptr;
                     mutex().unlock();
                   });
  }

  // Guards what an alarm() uses against a change at the same time.
  static std::mutex& mutex() {
    // Never destroyed: the thread goes on while the process exits.
    static std::mutex& one = *new std::mutex;
    return one;
  }

 private:
  static constexpr std::int64_t kNoPlace = -1;
  static constexpr int kTickMs = 1'000;
  static constexpr std::size_t kStackBytes = 256 * 1024;  // thread-local storage included
  static constexpr Id kMark = 0;

  struct Watched {
    Alarm* alarm;
    int fd;
    std::int64_t place;  // kNoPlace: `fd` is a pidfd
    FileId file;         // of `fd`, where it is no pidfd
  };
  using Map = std::unordered_map<Id, Watched>;

  Watcher() {
    epoll_ = above_stdio(epoll_create1(EPOLL_CLOEXEC));
    if (epoll_ < 0) throw_errno("epoll_create1");
    mark_ = above_stdio(eventfd(0, EFD_CLOEXEC));
    int error = mark_ < 0 ? errno : 0;
    if (error == 0 && !mark(EPOLL_CTL_ADD)) error = errno;
    if (error == 0) error = start();
    if (error == 0) return;
    close(epoll_);
    if (mark_ >= 0) close(mark_);
    throw std::system_error(error, std::generic_category(), "a thread that watches processes");
  }

  // Return a descriptor of the same file that nobody takes for standard input, output or error in a
  // program that has closed those. -1: there is none, see errno.
  static int above_stdio(int fd) {
    if (fd < 0 || fd > STDERR_FILENO) return fd;
    const int above = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    const int error = errno;
    close(fd);
    errno = error;
    return above;
  }

  // Start the thread, with all signals blocked: they are for the program's own threads.
  int start() {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, std::max<std::size_t>(kStackBytes, PTHREAD_STACK_MIN));
    pthread_t thread;
    const int error = pthread_create(
        &thread, &attributes,
        [](void* self) -> void* {
          static_cast<Watcher*>(self)->run();
          return nullptr;
        },
        this);
    if (error == 0) pthread_setname_np(thread, "shmcast-watch");
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return error;
  }

  // The rest is called with the mutex held, except run().

  static Watcher*& instance() {
    static Watcher* one = nullptr;
    return one;
  }
  static Id& last_id() {
    static Id id = kMark;
    return id;
  }
  static std::uint64_t& generation_ref() {
    static std::uint64_t number = 0;
    return number;
  }

  static Watcher& running() {
    if (instance() != nullptr && !instance()->is_intact()) instance()->retire();
    if (instance() == nullptr) instance() = new Watcher;
    return *instance();
  }

  // Return whether the descriptors are still ours, and not others' of the same numbers.
  bool is_intact() { return mark(EPOLL_CTL_MOD); }
  // Of all epolls only ours has the mark, which is never readable.
  bool mark(int operation) {
    epoll_event event{EPOLLIN, {.u64 = kMark}};
    return epoll_ctl(epoll_, operation, mark_, &event) == 0;
  }

  Map::iterator erase(Map::iterator it) {
    const Watched& watched = it->second;
    if (watched.place == kNoPlace && is_intact()) {
      epoll_ctl(epoll_, EPOLL_CTL_DEL, watched.fd, nullptr);  // (closed by others: an error)
    }
    return watched_.erase(it);
  }

  void run() {
    std::array<epoll_event, 32> events;
    std::int64_t next_tick = monotonic_ns();
    for (;;) {
      // Who closes our descriptors does not wake us: wake up now and then.
      const int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), kTickMs);
      if (count < 0 && errno == EINTR) continue;
      const std::lock_guard lock(mutex());
      if (is_retired_) return;
      if (count < 0 || !is_intact()) return retire();
      for (int i = 0; i < count; ++i) raise(events[static_cast<std::size_t>(i)].data.u64);
      if (monotonic_ns() < next_tick) continue;
      const std::int64_t now = monotonic_ns();
      next_tick = now + kTickMs * std::int64_t{1'000'000};
      look_at_locks();
      std::erase_if(tickers_, [now](Ticker* ticker) { return !ticker->tick(now); });
    }
  }

  void raise(Id id) {
    const auto found = watched_.find(id);
    if (found != watched_.end()) found->second.alarm->alarm();
  }

  void look_at_locks() {
    for (auto it = watched_.begin(); it != watched_.end();) {
      const Watched& watched = it->second;
      // A descriptor that others have closed says nothing.
      if (watched.place != kNoPlace && FileId::of(watched.fd) == watched.file &&
          is_locked(watched.fd, watched.place) == Locked::no) {
        watched.alarm->alarm();
        it = erase(it);
      } else {
        ++it;
      }
    }
  }

  // Somebody has closed the descriptors: tell everybody, and leave it to another. What this one has
  // is not freed, for its thread may be about to wake up.
  void retire() {
    ++generation_ref();
    is_retired_ = true;
    if (instance() == this) instance() = nullptr;
    for (const auto& [id, watched] : watched_) watched.alarm->alarm();
    watched_.clear();
    tickers_.clear();
  }

  [[noreturn]] static void throw_errno(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
  }

  int epoll_;
  int mark_ = -1;
  bool is_retired_ = false;
  Map watched_;
  std::vector<Ticker*> tickers_;
};

}  // namespace shmcast

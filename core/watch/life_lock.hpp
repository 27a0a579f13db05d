// Room: watch. A lock that says that its holder lives.
// Knows: open file description locks, and what keeps a file open.
// Does not know: who holds which place, or what its end means.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <system_error>

namespace shmcast {

// Which file a descriptor is of: others may have closed it, and opened something else.
struct FileId {
  dev_t device = 0;
  ino_t inode = 0;
  static FileId of(int fd) {
    struct stat found{};
    return fstat(fd, &found) == 0 ? FileId{found.st_dev, found.st_ino} : FileId{};
  }
  bool operator==(const FileId&) const = default;
};

enum class Locked : std::uint8_t { no, yes, unknown };

inline struct flock lock_at(short type, std::int64_t place, std::int64_t places = 1) {
  struct flock lock{};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = place;
  lock.l_len = places;
  return lock;
}

// Return whether somebody else than this very open file holds a lock on one of the bytes.
inline Locked is_locked(int fd, std::int64_t place, std::int64_t places = 1) {
  struct flock lock = lock_at(F_WRLCK, place, places);
  if (fcntl(fd, F_OFD_GETLK, &lock) != 0) return Locked::unknown;
  return lock.l_type == F_UNLCK ? Locked::no : Locked::yes;
}

// A lock on one byte of a file from its making until release() or the end of this program.
//
// The kernel drops such a lock with the last reference to the open file. That is here one page of a
// mapping of its own, without access and not inherited by forks: nobody can close it by number, no
// child keeps it, and it goes with the memory of the process, at its end and at exec.
class LifeLock {
 public:
  // `fd` is any descriptor of the file. Throws std::system_error: EAGAIN if another holds it.
  LifeLock(int fd, std::int64_t place) {
    const std::string path = "/proc/self/fd/" + std::to_string(fd);
    const int own = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (own < 0) throw_errno("open");
    struct flock lock = lock_at(F_WRLCK, place);
    void* page = MAP_FAILED;
    int error = fcntl(own, F_OFD_SETLK, &lock) == 0 ? 0 : errno;
    if (error == 0) {
      page = mmap(nullptr, kPage, PROT_NONE, MAP_SHARED, own, 0);
      if (page == MAP_FAILED) error = errno;
    }
    if (error == 0 && madvise(page, kPage, MADV_DONTFORK) != 0) {
      error = errno;
      munmap(page, kPage);
    }
    close(own);
    if (error != 0) throw std::system_error(error, std::generic_category(), "a lock");
    page_ = page;
  }
  LifeLock(const LifeLock&) = delete;
  LifeLock& operator=(const LifeLock&) = delete;
  // Not released here: an interpreter that exits destroys its objects, and is not dead yet.

  // Give the lock up; idempotent. In a fork's child nothing is mapped: there, do not call it.
  void release() {
    if (page_ != nullptr && pid_ == getpid()) munmap(page_, kPage);
    page_ = nullptr;
  }

 private:
  static constexpr std::size_t kPage = 4096;

  [[noreturn]] static void throw_errno(const char* what) {
    throw std::system_error(errno, std::generic_category(), what);
  }

  void* page_ = nullptr;
  pid_t pid_ = getpid();
};

}  // namespace shmcast

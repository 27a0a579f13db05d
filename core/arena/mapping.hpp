// Room: arena. Its memory: a shared-memory file mapped into this process and reserved in steps.
// Knows: mmap, descriptors, and which pages have memory. No other file of the core maps memory.
// Does not know: what the memory is used for.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

#include "layout.hpp"

namespace shmcast {

inline constexpr std::size_t kPage = 4096;

constexpr std::uint64_t round_up(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// MADV_POPULATE_WRITE and MADV_COLLAPSE. The headers that wheels are built with (glibc 2.28) have
// neither, whatever the kernel has on which they run.
inline constexpr int kPopulateWrite = 23;
inline constexpr int kCollapse = 25;

// Ask for huge pages in large memory that is about to be filled for the first time: one page fault
// for 2 MiB, where the system grants them on request. A hint.
inline void use_huge_pages(std::byte* data, std::size_t size) {
  if (size < 2 * kHugePage) return;
  const auto begin = round_up(reinterpret_cast<std::uintptr_t>(data), kHugePage);
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + size) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// Take all page faults of writable shared memory that is reserved: one at a time they cost as much
// as filling the pages, and would come with the first messages.
inline void populate_pages(std::byte* data, std::size_t size) {
  if (madvise(data, size, kPopulateWrite) == 0 || errno != EINVAL) return;
  // Before Linux 5.14. (volatile: it is read for the fault; a page of shared memory that is mapped
  // by reading it is mapped for writing, too.)
  for (std::size_t at = 0; at < size; at += kPage) *static_cast<volatile std::byte*>(data + at);
}

enum class Access : std::uint8_t { read, write };

// What is done with a mapping beside reading and writing it.
struct MappingOptions {
  std::uint64_t offset = 0;  // in the file, where the mapping begins
  bool dump = false;         // have it in core dumps: whoever debugs wants that
  bool keep_fd = true;       // for reserve() and PrivateCopy: memory comes when it is needed
};

// A descriptor of this process's own, never 0 to 2: what a library prints must not end in a
// segment. The program may close it by number and open a file of its own there, so whoever uses it
// looks first whether it still is the file that it was.
class OwnedFd {
 public:
  // Throws std::system_error.
  static OwnedFd duplicate(int fd) {
    constexpr int kLowest = 3;
    OwnedFd own(fcntl(fd, F_DUPFD_CLOEXEC, kLowest));
    if (own.fd_ < 0) throw std::system_error(errno, std::generic_category(), "dup");
    if (fstat(own.fd_, &own.opened_) != 0) {
      throw std::system_error(errno, std::generic_category(), "fstat");
    }
    return own;
  }
  static OwnedFd none() { return OwnedFd(-1); }
  OwnedFd(OwnedFd&& other) noexcept
      : fd_(std::exchange(other.fd_, -1)), opened_(other.opened_), owner_(other.owner_) {}
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(OwnedFd&&) = delete;
  ~OwnedFd() {
    // The child of a fork closes nothing by number: what is open there may be the child's own.
    if (fd_ >= 0 && owner_ == getpid() && is_intact()) ::close(fd_);
  }

  int number() const { return fd_; }
  bool is_intact() const {
    struct stat now;
    return fstat(fd_, &now) == 0 && now.st_dev == opened_.st_dev && now.st_ino == opened_.st_ino;
  }

 private:
  explicit OwnedFd(int fd) : fd_(fd) {}

  int fd_;
  struct stat opened_{};
  pid_t owner_ = getpid();
};

// Memory of a file, unmapped at the end. Its huge pages, where it has some, are mapped as such:
// address and offset are the same modulo their size.
class Pages {
 public:
  // Throws std::system_error.
  Pages(int fd, std::uint64_t offset, std::size_t bytes, int protection, int flags, bool dump)
      : base_(map(fd, offset, bytes, protection, flags)), bytes_(bytes) {
    if (base_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
    // A core dump would take all of it, never used memory included, and from shared memory at that.
    if (!dump) madvise(base_, bytes_, MADV_DONTDUMP);
  }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() { munmap(base_, bytes_); }

  std::byte* data() const { return static_cast<std::byte*>(base_); }
  std::size_t size() const { return bytes_; }

 private:
  static void* map(int fd, std::uint64_t offset, std::size_t bytes, int protection, int flags) {
    const auto at = static_cast<off_t>(offset);
    if (bytes < kHugePage) return mmap(nullptr, bytes, protection, flags, fd, at);
    // In a room that is larger by one, of which the rest is given back.
    void* const room = mmap(nullptr, bytes + kHugePage, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) return room;
    std::byte* const begin = static_cast<std::byte*>(room);
    std::byte* const wanted = begin + (offset - reinterpret_cast<std::uintptr_t>(room)) % kHugePage;
    void* const base = mmap(wanted, bytes, protection, flags | MAP_FIXED, fd, at);
    if (base == MAP_FAILED) {
      const int error = errno;
      munmap(room, bytes + kHugePage);
      errno = error;
      return base;
    }
    std::byte* const end =
        wanted + round_up(bytes, static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)));
    if (wanted != begin) munmap(begin, static_cast<std::size_t>(wanted - begin));
    if (end < begin + bytes + kHugePage) {
      munmap(end, static_cast<std::size_t>(begin + bytes + kHugePage - end));
    }
    return base;
  }

  void* base_;
  std::size_t bytes_;
};

class Mapping {
 public:
  // Map `bytes` bytes of a file, of which none need be reserved. `fd` stays the caller's. Throws
  // std::system_error.
  Mapping(int fd, std::size_t bytes, Access access, MappingOptions options = {})
      : file_(options.keep_fd ? OwnedFd::duplicate(fd) : OwnedFd::none()),
        pages_(fd, options.offset, bytes,
               is_sparse(access, options) ? PROT_NONE : protection(access), MAP_SHARED,
               options.dump),
        offset_(options.offset),
        access_(access),
        is_dumped_(options.dump) {
    if (!is_sparse(access, options)) return;
    // In a program that has locked all of its memory, as it is mapped, this has been locked, too,
    // and would be filled with pages. Not while it can't be accessed.
    munlock(pages_.data(), pages_.size());
    if (mprotect(pages_.data(), pages_.size(), protection(access)) != 0) {
      throw std::system_error(errno, std::generic_category(), "mprotect");
    }
  }

  std::span<std::byte> bytes() const { return {pages_.data(), pages_.size()}; }
  // relaxed: a figure for observers, who may be in other threads; what reserves memory has its turn
  // with the endpoint.
  std::uint64_t reserved() const { return reserved_.load(std::memory_order_relaxed); }
  // Return how much of it has huge pages. relaxed: as above.
  std::uint64_t huge_bytes() const { return huge_bytes_.load(std::memory_order_relaxed); }
  const OwnedFd& file() const { return file_; }
  std::uint64_t offset() const { return offset_; }
  Access access() const { return access_; }
  bool is_dumped() const { return is_dumped_; }

  // Reserve memory for the first `bytes` bytes, so that touching them raises no SIGBUS, but take no
  // more than `room` bytes for it. Returns false if there is not enough.
  bool reserve(std::uint64_t bytes,
               std::uint64_t room = std::numeric_limits<std::uint64_t>::max()) {
    const std::uint64_t before = reserved();
    if (bytes <= before) return true;
    if (bytes > pages_.size() || !file_.is_intact()) return false;
    const std::uint64_t generous = std::min<std::uint64_t>(round_up(bytes, kStep), pages_.size());
    const std::uint64_t goal = generous - before <= room ? generous : bytes;
    if (goal - before > room) return false;
    if (has_huge_pages_) take_huge_pages(before, goal);
    std::uint64_t done = before;
    while (done < goal) {
      const std::uint64_t next = std::min(done + kPart, goal);
      if (!allocate(done, next)) break;
      done = next;
    }
    if (done < goal) give_back(done, goal);  // there may be huge pages beyond
    populate(before, done);
    reserved_.store(done, std::memory_order_relaxed);
    return done >= bytes;
  }

  // Give the last `bytes` bytes of what is reserved back to the system. Nobody may use them, and
  // what they hold is lost.
  void release(std::uint64_t bytes) {
    const std::uint64_t before = reserved();
    const std::uint64_t left = before - std::min(before, bytes);
    reserved_.store(left, std::memory_order_relaxed);
    give_back(left, before);
  }

  // Return how much memory the file system has left for anybody.
  std::uint64_t free_bytes() const {
    struct statvfs volume;
    if (!file_.is_intact() || fstatvfs(file_.number(), &volume) != 0) return 0;
    if (volume.f_blocks == 0) return std::numeric_limits<std::uint64_t>::max();  // without a limit
    return std::uint64_t{volume.f_bavail} * volume.f_frsize;
  }

 private:
  // Whether the file gets its memory bit by bit: all do but a ring's, which everybody writes to.
  static bool is_sparse(Access access, const MappingOptions& options) {
    return options.keep_fd || access == Access::read;
  }
  static int protection(Access access) {
    return access == Access::write ? PROT_READ | PROT_WRITE : PROT_READ;
  }

  static constexpr std::uint64_t kStep = 4 * 1024 * 1024;
  // At a time: a signal undoes what one call has done, and a profiler sends a thousand a second.
  static constexpr std::uint64_t kPart = 1024 * 1024;
  static constexpr int kMostTries = 1000;
  // What small pages take of a CPU for as much as a huge one, and what huge pages may take besides.
  static constexpr std::int64_t kSmallPagesNs = 1'000'000;
  static constexpr std::int64_t kHugePatienceNs = 5'000'000;

  bool allocate(std::uint64_t from, std::uint64_t to) {
    for (int tries = 0; tries < kMostTries; ++tries) {
      const int error = posix_fallocate(file_.number(), static_cast<off_t>(offset_ + from),
                                        static_cast<off_t>(to - from));
      if (error != EINTR) return error == 0;
    }
    return false;
  }

  void give_back(std::uint64_t from, std::uint64_t to) {
    std::erase_if(huge_pages_, [from](std::uint64_t page) { return page + kHugePage > from; });
    count_huge_pages();
    if (from == to || !file_.is_intact()) return;
    fallocate(file_.number(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              static_cast<off_t>(offset_ + from), static_cast<off_t>(to - from));
  }

  // Back what lies in whole huge pages by such, whatever tmpfs was told to do (Linux 6.1). That
  // takes a fifth of the time of small pages; and so do page faults, and to give the memory back.
  // Where memory is fragmented, the kernel moves pages for it, and may take longer than it is
  // worth.
  void take_huge_pages(std::uint64_t before, std::uint64_t goal) {
    std::int64_t patience_ends = thread_ns() + kHugePatienceNs;
    const std::uint64_t first = round_up(offset_ + before, kHugePage) - offset_;
    for (std::uint64_t page = first; page + kHugePage <= goal; page += kHugePage) {
      // The kernel collapses small pages, of which there must be one; it fills up what is missing,
      // and fails if there is not so much memory.
      if (!allocate(page, page + kPage)) break;
      if (madvise(pages_.data() + page, kHugePage, kCollapse) == 0) {
        huge_pages_.push_back(page);
      } else if (errno == EINVAL) {  // there is no such thing here
        has_huge_pages_ = false;
        break;
      }
      patience_ends += kSmallPagesNs;
      if (thread_ns() > patience_ends) break;
    }
    count_huge_pages();
  }

  // Return the time for which this thread has had a CPU.
  static std::int64_t thread_ns() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * std::int64_t{1'000'000'000} + now.tv_nsec;
  }

  void count_huge_pages() {
    huge_bytes_.store(huge_pages_.size() * kHugePage, std::memory_order_relaxed);
  }

  // Take all page faults at once: one at a time they cost as much as filling the pages.
  void populate(std::uint64_t before, std::uint64_t goal) {
    // This fails before Linux 5.14, which does no harm.
    madvise(pages_.data() + before, goal - before, kPopulateWrite);
  }

  OwnedFd file_;
  Pages pages_;
  std::uint64_t offset_;
  Access access_;
  bool is_dumped_;
  std::atomic<std::uint64_t> reserved_{0};
  bool has_huge_pages_ = true;             // as far as is known
  std::vector<std::uint64_t> huge_pages_;  // where they begin
  std::atomic<std::uint64_t> huge_bytes_{0};
};

// A private copy of part of a mapping: nobody else sees what is written to it. It takes memory only
// where it is written to, as long as the kernel has mappings to give: a process may have some
// 65 000 of them (vm.max_map_count), which are not all for us. Beyond that, the copy is made.
class PrivateCopy {
 public:
  // Throws std::bad_alloc.
  PrivateCopy(const Mapping& mapping, std::uint64_t offset, std::size_t bytes) {
    // relaxed: a count, which orders nothing.
    if (live().fetch_add(1, std::memory_order_relaxed) < kMostMappings &&
        mapping.file().is_intact()) {
      const std::uint64_t page = (mapping.offset() + offset) / kPage * kPage;
      skipped_ = static_cast<std::size_t>(mapping.offset() + offset - page);
      try {
        pages_ = std::make_unique<Pages>(mapping.file().number(), page, bytes + skipped_,
                                         PROT_READ | PROT_WRITE, MAP_PRIVATE, mapping.is_dumped());
        return;
      } catch (const std::system_error&) {
        // No address space, or too many mappings.
      }
    }
    live().fetch_sub(1, std::memory_order_relaxed);
    copy_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
    std::memcpy(copy_.get(), mapping.bytes().data() + offset, bytes);
  }
  PrivateCopy(const PrivateCopy&) = delete;
  PrivateCopy& operator=(const PrivateCopy&) = delete;
  ~PrivateCopy() {
    if (pages_ != nullptr) live().fetch_sub(1, std::memory_order_relaxed);
  }

  std::byte* data() const { return pages_ == nullptr ? copy_.get() : pages_->data() + skipped_; }
  // Whether it still refers to the mapping's memory.
  bool is_mapped() const { return pages_ != nullptr; }

 private:
  static constexpr std::size_t kMostMappings = 16 * 1024;
  static std::atomic<std::size_t>& live() {
    static std::atomic<std::size_t> count{0};
    return count;
  }

  std::unique_ptr<Pages> pages_;
  std::unique_ptr<std::byte[]> copy_;
  std::size_t skipped_ = 0;
};

}  // namespace shmcast

// Room: arena. Its memory: a shared-memory file mapped into this process and reserved in steps.
// Knows: mmap, and which pages have memory. No other file of the core maps memory.
// Does not know: what the memory is used for.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <system_error>

namespace shmcast {

inline constexpr std::size_t kPage = 4096;

constexpr std::uint64_t round_up(std::uint64_t bytes, std::uint64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

// Ask for huge pages in large memory that is about to be filled for the first time: one page fault
// for 2 MiB, where the system grants them on request. A hint.
inline void use_huge_pages(std::byte* data, std::size_t size) {
  constexpr std::size_t kHugePage = 2 * 1024 * 1024;
  if (size < 2 * kHugePage) return;
  const auto begin = round_up(reinterpret_cast<std::uintptr_t>(data), kHugePage);
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + size) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

enum class Access : std::uint8_t { read, write };

// A private copy-on-write mapping of part of the file: nobody else sees what is written to it.
class PrivatePages {
 public:
  PrivatePages(int fd, std::uint64_t offset, std::size_t bytes) {
    const std::uint64_t page = offset / kPage * kPage;
    skipped_ = static_cast<std::size_t>(offset - page);
    bytes_ = bytes + skipped_;
    void* pages =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, static_cast<off_t>(page));
    if (pages == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
    pages_ = static_cast<std::byte*>(pages);
  }
  PrivatePages(const PrivatePages&) = delete;
  PrivatePages& operator=(const PrivatePages&) = delete;
  ~PrivatePages() { munmap(pages_, bytes_); }

  std::byte* data() const { return pages_ + skipped_; }

 private:
  std::byte* pages_;
  std::size_t skipped_;
  std::size_t bytes_;
};

class Mapping {
 public:
  // Map a file of `bytes` bytes, of which none need be reserved. `fd` stays the caller's. Throws
  // std::system_error.
  Mapping(int fd, std::size_t bytes, Access access)
      : fd_(fcntl(fd, F_DUPFD_CLOEXEC, 0)), bytes_(bytes) {
    if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "dup");
    const int protection = access == Access::write ? PROT_READ | PROT_WRITE : PROT_READ;
    void* base = mmap(nullptr, bytes, protection, MAP_SHARED, fd_, 0);
    if (base == MAP_FAILED) {
      const int error = errno;
      ::close(fd_);
      throw std::system_error(error, std::generic_category(), "mmap");
    }
    base_ = static_cast<std::byte*>(base);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    munmap(base_, bytes_);
    ::close(fd_);
  }

  std::span<std::byte> bytes() const { return {base_, bytes_}; }
  int fd() const { return fd_; }
  std::uint64_t reserved() const { return reserved_; }

  // Reserve memory for the first `bytes` bytes, so that touching them raises no SIGBUS. Returns
  // false if there is not enough.
  bool reserve(std::uint64_t bytes) {
    if (bytes <= reserved_) return true;
    if (bytes > bytes_) return false;
    const std::uint64_t generous = std::min<std::uint64_t>(round_up(bytes, kStep), bytes_);
    for (const std::uint64_t goal : {generous, bytes}) {
      int error;
      do {
        error = posix_fallocate(fd_, static_cast<off_t>(reserved_),
                                static_cast<off_t>(goal - reserved_));
      } while (error == EINTR);
      if (error == 0) {
        populate(goal);
        reserved_ = goal;
        return true;
      }
    }
    return false;
  }

 private:
  static constexpr std::uint64_t kStep = 4 * 1024 * 1024;

  // Take all page faults at once: one at a time they cost as much as filling the pages.
  void populate(std::uint64_t goal) {
#ifdef MADV_POPULATE_WRITE
    // This fails before Linux 5.14, which does no harm.
    madvise(base_ + reserved_, goal - reserved_, MADV_POPULATE_WRITE);
#endif
  }

  int fd_;
  std::byte* base_;
  std::size_t bytes_;
  std::uint64_t reserved_ = 0;
};

}  // namespace shmcast

// Room: watch. Whether anybody lives who takes part in a segment, for who finds its file.
// Knows: the header's first fields, and the locks of all members.
// Does not know: names, pids, who may remove a segment.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>

#include "layout.hpp"
#include "watch/life_lock.hpp"

namespace shmcast {

// Return whether any member of the segment lives, if it is one whose writer has said that it holds
// its lock. `unknown`: it is no such segment, or one that is still being made.
inline Locked has_members(int fd) {
  Header header;
  // The magic number is written last, and the lock is held before.
  if (pread(fd, &header, sizeof header, 0) != sizeof header || header.magic != kMagic ||
      header.version < kFirstVersionOfThisHeader || header.version > kLayoutVersion ||
      header.writer.holds_lock != 1) {
    return Locked::unknown;
  }
  return is_locked(fd, 0, std::int64_t{header.readers} + 1);
}

}  // namespace shmcast

// Room: copy. Copies from memory that another thread may unmap meanwhile.
// Knows: that the kernel reports a bad address where a load would be a segmentation fault.
// Does not know: whose memory it is.
#pragma once

#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

namespace shmcast {

// Copy like memcpy. Returns false if the memory, or part of it, is no longer there. Where a sandbox
// forbids the system call, this is memcpy.
inline bool copy_unless_gone(std::byte* to, const std::byte* from, std::size_t size) {
  constexpr std::size_t kMostAtOnce = std::size_t{1} << 30;  // the kernel's limit is 2 GiB
  const pid_t me = getpid();
  while (size != 0) {
    const std::size_t part = std::min(size, kMostAtOnce);
    const iovec local{to, part};
    const iovec remote{const_cast<std::byte*>(from), part};
    const ssize_t copied = process_vm_readv(me, &local, 1, &remote, 1, 0);
    if (copied < 0 && (errno == EPERM || errno == ENOSYS || errno == EACCES)) {
      std::memcpy(to, from, size);
      return true;
    }
    if (copied <= 0) return false;
    to += copied;
    from += copied;
    size -= static_cast<std::size_t>(copied);
  }
  return true;
}

}  // namespace shmcast

"""POSIX shared-memory segments: name, size, mode, unlink. What is inside is not known here."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from pathlib import Path

import posix_ipc

from shmcast.errors import SegmentMismatch, SegmentNotFound, SharedMemoryFull

_MODE = 0o600
_SHM_FOLDER = Path("/dev/shm")  # noqa: S108 (where shm_open puts its names on Linux)


def create(size: int) -> tuple[str, mmap.mmap]:
    """Makes a segment that only this user can open, with all of its pages reserved.

    Args:
        size: bytes.

    Returns:
        Its name, and the mapping (zeroed).

    Raises:
        SharedMemoryFull: /dev/shm has no room for `size` bytes.
    """
    while True:
        name = f"/shmcast-{os.getuid()}-{os.urandom(8).hex()}"
        with contextlib.suppress(posix_ipc.ExistentialError):
            shm = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=_MODE)
            break
    try:
        os.fchmod(shm.fd, _MODE)  # whatever the umask took away
        _reserve(shm.fd, size)
        return name, _map(shm.fd, size)
    except BaseException:
        unlink(name)
        raise
    finally:
        shm.close_fd()


def attach(name: str, size: int) -> mmap.mmap:
    """Maps the segment that another process of this user and host has made.

    Raises:
        SegmentNotFound: no segment of this name exists here.
        SegmentMismatch: it has another owner, mode or size than `create` gives.
    """
    try:
        shm = posix_ipc.SharedMemory(name)
    except posix_ipc.ExistentialError:
        raise SegmentNotFound(
            errno.ENOENT,
            f"no shared-memory segment {name} on this host: its readers must run on the writer's "
            "node and share its /dev/shm (containers: --ipc=host or --ipc=container:<id>), and "
            "attach while the writer lives and before all its readers are there",
        ) from None
    except posix_ipc.PermissionsError:
        raise SegmentMismatch(
            f"the segment {name} belongs to another user; readers must run as the writer's user, "
            f"this process runs as uid {os.getuid()}"
        ) from None
    try:
        found = os.fstat(shm.fd)
        expected = {"owner uid": os.getuid(), "mode": _MODE, "size in bytes": size}
        actual = (found.st_uid, stat.S_IMODE(found.st_mode), found.st_size)
        for (what, want), got in zip(expected.items(), actual, strict=True):
            if got != want:
                raise SegmentMismatch(f"the segment {name} has {what} {got}, expected {want}")
        return _map(shm.fd, size)
    finally:
        shm.close_fd()


def unlink(name: str) -> None:
    """Removes the name; mappings live on. Nothing happens if it is gone already."""
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)


def _reserve(fd: int, size: int) -> None:
    """Makes the file `size` bytes long with every page there: no SIGBUS when it is used."""
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        room = os.statvfs(_SHM_FOLDER)
        raise SharedMemoryFull(
            errno.ENOSPC,
            f"a segment needs {size} bytes of shared memory and {_SHM_FOLDER} has "
            f"{room.f_bavail * room.f_frsize} free of {room.f_blocks * room.f_frsize}: enlarge it "
            "(docker run --shm-size=1g, Kubernetes: an emptyDir of medium Memory on /dev/shm), "
            "remove what others left there, or ask for fewer or smaller slots",
        ) from None


def _map(fd: int, size: int) -> mmap.mmap:
    # Populated at once: a page fault per slot would hit the first lap of messages.
    return mmap.mmap(fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)

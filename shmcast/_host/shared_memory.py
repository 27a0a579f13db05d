"""POSIX shared-memory segments: name, size, mode, unlink; not what is inside.

A segment's name says whose it is, so that what a killed process has left can be told from what is
in use, however little of it was made: user, pid namespace, pid and that process's start time.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import posix_ipc

from shmcast import _core
from shmcast._host.process import is_alive, pid_namespace, start_time
from shmcast.errors import SegmentMismatch, SegmentNotFound, SharedMemoryFull

_MODE = 0o600
_SHM_FOLDER = Path("/dev/shm")  # noqa: S108 (where shm_open puts its names on Linux)
_NAME = re.compile(r"shmcast-\d+-(\d+)-(\d+)-(\d+)-[0-9a-f]{16}", re.ASCII)


class Verdict(Enum):
    """Whether a segment's owner lives. The value is what `clean` prints."""

    DEAD = "its owner is dead"
    ALIVE = "its owner is alive"
    ELSEWHERE = "its owner is in another pid namespace (container): run clean there"


@dataclass(frozen=True, slots=True)
class Found:
    """A segment of this user that `clean` has come across."""

    name: str
    size: int
    """Bytes."""
    pid: int
    """The process that made it, as its own pid namespace numbers it."""
    verdict: Verdict
    """Only those of dead owners are removed."""


def create(size: int) -> tuple[str, mmap.mmap, int]:
    """Make a segment that only this user can open, with all of its pages reserved.

    First removes what this user's killed processes have left, see `clean`.

    Args:
        size: bytes.

    Returns:
        Its name, the mapping (zeroed), and a descriptor by which `attach` finds it when the name is
        gone; the caller closes it.

    Raises:
        SharedMemoryFull: /dev/shm has no room for `size` bytes.
    """
    name, fd = _make(lambda fd: _reserve(fd, size))
    try:
        return name, _map(fd, size), fd
    except BaseException:
        unlink(name)
        os.close(fd)
        raise


def create_unreserved(size: int) -> tuple[str, int]:
    """Make a segment without any pages, and unmapped: reserve them before they are used.

    Returns:
        Its name and a descriptor; the caller closes it.
    """
    return _make(lambda fd: os.ftruncate(fd, size))


def _make(size_it: Callable[[int], None]) -> tuple[str, int]:
    clean()
    owner = f"{os.getuid()}-{pid_namespace()}-{os.getpid()}-{start_time(os.getpid())}"
    while True:
        name = f"/shmcast-{owner}-{os.urandom(8).hex()}"
        with contextlib.suppress(posix_ipc.ExistentialError):
            shm = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=_MODE)
            break
    try:
        os.fchmod(shm.fd, _MODE)  # whatever the umask took away
        size_it(shm.fd)
        return name, shm.fd
    except BaseException:
        unlink(name)
        shm.close_fd()
        raise


def attach(name: str, size: int, holder: tuple[int, int] | None = None) -> mmap.mmap:
    """Map the segment that another process of this user and host has made.

    Args:
        name: as `create` gave it.
        size: bytes.
        holder: a process and a descriptor of it, to find the segment when its name is gone.

    Raises:
        SegmentNotFound: no segment of this name exists here.
        SegmentMismatch: it has another owner, mode or size than `create` gives.
    """
    fd = find(name, size, holder)
    try:
        return _map(fd, size)
    finally:
        os.close(fd)


def find(name: str, size: int, holder: tuple[int, int] | None = None) -> int:
    """Return a descriptor of what `attach` maps, for the caller to close; raise what it raises."""
    fd = _open(name, holder)
    try:
        found = os.fstat(fd)
        checks = (
            ("owner uid", os.getuid(), found.st_uid),
            ("mode", stat.filemode(stat.S_IFREG | _MODE), stat.filemode(found.st_mode)),
            ("size in bytes", size, found.st_size),
        )
        for what, want, got in checks:
            if got != want:
                raise SegmentMismatch(f"the segment {name} has {what} {got}, expected {want}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(name: str, holder: tuple[int, int] | None) -> int:
    try:
        return int(posix_ipc.SharedMemory(name).fd)
    except posix_ipc.ExistentialError:
        if holder is not None:
            # What the holder has open is the same file; the kernel lets its user in only.
            with contextlib.suppress(OSError):
                return os.open("/proc/{}/fd/{}".format(*holder), os.O_RDWR | os.O_CLOEXEC)
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
    except (OSError, ValueError) as error:  # a symbolic link, a socket; a folder
        raise SegmentMismatch(f"the segment {name} is not a file: {error}") from None


def unlink(name: str) -> None:
    """Remove the name, if it is still there; mappings live on."""
    with contextlib.suppress(posix_ipc.ExistentialError):
        posix_ipc.unlink_shared_memory(name)


def clean(dry_run: bool = False) -> list[Found]:
    """Remove the segments of this user whose owners are dead, and nothing else.

    An owner is dead if this is its pid namespace and no process of its pid and start time exists,
    or only a zombie; or if it held the lock of a member in its segment, and no member does so now.

    Args:
        dry_run: only look.

    Returns:
        This user's segments, those that were kept included.
    """
    mine = sorted(_SHM_FOLDER.glob(f"shmcast-{os.getuid()}-*"))
    found = [segment for path in mine if (segment := _judge(path))]
    if not dry_run:
        for segment in found:
            if segment.verdict is Verdict.DEAD:
                unlink(segment.name)
    return found


def _judge(path: Path) -> Found | None:
    """Return what a path is; None: no segment of this user, whatever its name, or just gone."""
    match = _NAME.fullmatch(path.name)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not match or not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
        return None
    namespace, pid, start = map(int, match.groups())
    has_members = _has_members(path)
    if namespace != pid_namespace():
        verdict = Verdict.DEAD if has_members is False else Verdict.ELSEWHERE
    else:
        verdict = Verdict.ALIVE if has_members or is_alive(pid, start) else Verdict.DEAD
    return Found(f"/{path.name}", status.st_size, pid, verdict)


def _has_members(path: Path) -> bool | None:
    """Return whether any member of a segment lives, by their locks; None: that can't be known."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _core.has_members(fd)
    finally:
        os.close(fd)


def _reserve(fd: int, size: int) -> None:
    """Make the file `size` bytes long with every page reserved, so that no use is a SIGBUS."""
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


def map_whole(fd: int, size: int) -> mmap.mmap:
    """Map a segment that `find` has found, for reading and writing."""
    return _map(fd, size)


def _map(fd: int, size: int) -> mmap.mmap:
    # Populated at once: a page fault per slot would hit the first lap of messages.
    return mmap.mmap(fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)

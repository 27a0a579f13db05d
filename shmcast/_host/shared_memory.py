"""POSIX shared-memory segments: made, reserved, mapped, cleaned up; not what is inside.

A segment's name says whose it is, so that what a killed process has left can be told from what is
in use, however little of it was made: user, pid namespace, pid and that process's start time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from shmcast import _core
from shmcast._host import switches
from shmcast._host.housekeeping import Housekeeping
from shmcast._host.memory_limit import MemoryLimit, Room
from shmcast._host.places import Places
from shmcast._host.process import UNKNOWN_START, is_alive, pid_namespace
from shmcast._host.segment_file import NAME, make
from shmcast._host.segment_file import SegmentFile as SegmentFile
from shmcast._host.segment_file import find as find
from shmcast._host.segment_file import unlink as unlink
from shmcast._host.signals import pass_on
from shmcast._host.system_errors import SHM_FOLDER, explaining
from shmcast.errors import HostError, SharedMemoryFull

DUMP_VARIABLE = "SHMCAST_CORE_DUMP"
"""Whether core dumps have shared memory in them: "1", or "0", the default."""

_SHM_FOLDER = Path(SHM_FOLDER)
_ARENA = "-arena"  # of a file without a layout: its owner locks the first byte before it has a size

_CLEAN_SECONDS = 60.0
_MOST_FILES = 100
_ENTRY_BYTES = 20  # what each file adds to the size that tmpfs gives a folder
_BLOCK_BYTES = 512  # of `st_blocks`
_PART = 1024 * 1024
_MOST_SPARE = 256 * 1024 * 1024  # what the arena leaves of the memory limit to the program


class OwnerState(Enum):
    """Whether a segment's owner lives. The value is what `clean` prints."""

    DEAD = "its owner is dead"
    STAYS = "its owner is dead, and the system refuses to remove it"
    ALIVE = "its owner is alive"
    ELSEWHERE = "its owner is in another pid namespace (container): run clean there"


@dataclass(frozen=True, slots=True)
class Found:
    """A segment of this user that `clean` has come across."""

    name: str
    size: int
    """Bytes of memory that it takes."""
    pid: int
    """The process that made it, as its own pid namespace numbers it."""
    owner: OwnerState
    """Only those of dead owners are removed."""


class Memory:
    """A mapped segment: its bytes, by slices. It is unmapped when nothing refers to it any more.

    It takes a page fault for each of its pages, unless `mapping.populate()` takes them all at once.
    """

    def __init__(self, fd: int, size: int) -> None:
        with explaining(f"a segment of {size} bytes", "mmap"):
            self.mapping = _core.Mapping(fd, size, True, dump=dumps_segments(), keep_fd=False)
        self._view = memoryview(self.mapping)

    def __getitem__(self, where: slice) -> bytes:
        return bytes(self._view[where])

    def __setitem__(self, where: slice, what: bytes) -> None:
        self._view[where] = what

    def close(self) -> None:
        """Let go of the bytes, which are not to be used from now on."""
        self._view.release()
        del self.mapping


def dumps_segments() -> bool:
    """Return whether core dumps are to have shared memory in them.

    Raises:
        InvalidArgument: the operator has set something else than 0 or 1.
    """
    return switches.is_on(DUMP_VARIABLE, "to have shared memory in core dumps")


def create(size: int) -> tuple[str, Memory, int]:
    """Make a segment that only this user can open, with all of its pages reserved.

    What this user's killed processes have left is removed now and then, see `clean`, and always
    where there is no room otherwise.

    Args:
        size: bytes.

    Returns:
        Its name, the memory (zeroed), and a descriptor by which `attach` finds it when the name is
        gone; the caller closes it.

    Raises:
        SharedMemoryFull: there is no room for `size` bytes, in /dev/shm or under a limit.
        HostError: the system refuses.
    """
    name, fd = _make(size, lambda fd: _reserve(fd, size))
    try:
        return name, _map(fd, size), fd
    except BaseException:
        os.close(fd)
        unlink(name)
        raise


def create_unreserved(size: int) -> tuple[str, int, _core.LifeLock | None]:
    """Make a segment without any pages, and unmapped: reserve them before they are used.

    Returns:
        Its name, a descriptor, which the caller closes, and a lock that says that its owner lives,
        which the caller releases once the name is gone. None: there are no such locks here.

    Raises:
        SharedMemoryFull: no file may be as large.
        HostError: the system refuses.
    """
    lock: _core.LifeLock | None = None

    def set_size(fd: int) -> None:
        with explaining(f"an arena of {size} bytes", "ftruncate"):
            os.ftruncate(fd, size)

    def lock_and_set_size(fd: int) -> None:
        nonlocal lock
        lock = Places(fd).hold(0)
        if lock is None:
            raise _NoLocks
        set_size(fd)

    try:
        return *_make(size, lock_and_set_size, _ARENA), lock
    except _NoLocks:
        return *_make(size, set_size), None
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def add_spill(fd: int, offset: int, nbytes: int) -> _core.Mapping | None:
    """Lengthen a segment that `create` has made by a part without any pages, and map that.

    Args:
        fd: of the segment.
        offset: where the part begins, in bytes.
        nbytes: its size.

    Returns:
        The part, whose `reserve` is as `map_arena` says; None: the system refuses.
    """
    size = os.fstat(fd).st_size
    try:
        os.ftruncate(fd, offset + nbytes)
        return _core.Mapping(
            fd, nbytes, True, dump=dumps_segments(), room=_arena_room(), offset=offset
        )
    except OSError as error:
        try:
            os.ftruncate(fd, size)
        except OSError as refusal:  # it may be this very call that is refused
            pass_on(refusal)
        pass_on(error)
        return None


def map_spill(fd: int, offset: int, nbytes: int) -> _core.Mapping | None:
    """Map for reading what `add_spill` has added; None: the system refuses."""
    try:
        return _core.Mapping(fd, nbytes, False, dump=dumps_segments(), keep_fd=False, offset=offset)
    except OSError as error:
        pass_on(error)
        return None


def map_arena(fd: int, size: int, writable: bool) -> _core.Mapping:
    """Map a segment that `create_unreserved` has made.

    The mapping's `reserve` takes no more memory than the cgroup's limit leaves, nor the last of it:
    a sixteenth of the limit, at most 256 MiB.

    Raises:
        HostError: the system refuses.
    """
    with explaining(f"an arena of {size} bytes", "mmap"):
        return _core.Mapping(
            fd, size, writable, dump=dumps_segments(), room=_arena_room() if writable else None
        )


def _arena_room() -> Callable[[], int | None]:
    limit = MemoryLimit()

    def room() -> int | None:
        left = limit.room()
        if left is None:
            return None
        return max(0, left.nbytes - min(left.limit // 16, _MOST_SPARE))

    return room


def _make(size: int, size_it: Callable[[int], None], kind: str = "") -> tuple[str, int]:
    _housekeeping.do()
    try:
        return make(size, size_it, kind)
    except SharedMemoryFull:
        if not _has_cleaned():
            raise
    return make(size, size_it, kind)


def _has_cleaned() -> bool:
    """Remove what was left; return whether there was anything."""
    with contextlib.suppress(HostError):
        return any(found.owner is OwnerState.DEAD for found in clean())
    return False


def attach(
    name: str, size: int, holder: tuple[int, int] | None = None, rejoin: bool = False
) -> Memory:
    """Map the segment that another process of this user and host has made.

    Args:
        name: as `create` gave it.
        size: bytes.
        holder: a process and a descriptor of it, to find the segment when its name was removed.
        rejoin: also where the holder's /dev/shm, which is another one than this process's, has the
            name.

    Raises:
        SegmentNotFound: no segment of this name exists here, or the kernel does not let this
            process in by the holder's descriptor (`errno` tells).
        SegmentMismatch: it has another owner, mode or size than `create` gives.
        HostError: the system refuses.
    """
    fd = find(name, size, holder, rejoin)
    try:
        return _map(fd, size)
    finally:
        os.close(fd)


def try_out(size: int) -> None:
    """Make a segment, map it as its writer and its readers do, and remove it, but nothing else.

    Raises:
        SharedMemoryFull: as `create`.
        SegmentNotFound, SegmentMismatch: as `attach`.
        HostError: the system refuses.
    """
    name, fd = make(size, lambda fd: _reserve(fd, size))
    try:
        _map(fd, size).close()
        attach(name, size).close()
    finally:
        os.close(fd)
        unlink(name)


class _NoLocks(Exception):
    """The kernel, or a sandbox, has no open file description locks."""


def clean(dry_run: bool = False) -> list[Found]:
    """Remove the segments of this user whose owners are dead, and nothing else.

    An owner is dead if it held the lock of a member in its segment, and no member does so now. Or,
    if it held none, if this is its pid namespace and no process of its pid and start time exists,
    or only a zombie.

    Args:
        dry_run: only look.

    Returns:
        This user's segments, those that were kept included.

    Raises:
        HostError: the system refuses to tell who lives.
    """
    with explaining("clean"):
        mine = sorted(_SHM_FOLDER.glob(f"shmcast-{os.geteuid()}-*"))
        found = [segment for path in mine if (segment := _judge(path))]
    if dry_run:
        return found
    return [
        segment if segment.owner is not OwnerState.DEAD else _remove(segment) for segment in found
    ]


def _is_crowded() -> bool:
    """Return whether the folder has so many files, of whomever, that to list them takes long."""
    try:
        return _SHM_FOLDER.stat().st_size > _MOST_FILES * _ENTRY_BYTES
    except OSError as error:  # whoever makes a file there is told the way out
        pass_on(error)
        return False


_housekeeping = Housekeeping(clean, _is_crowded, _CLEAN_SECONDS)


def _remove(segment: Found) -> Found:
    is_gone = unlink(segment.name)
    return segment if is_gone else dataclasses.replace(segment, owner=OwnerState.STAYS)


def _judge(path: Path) -> Found | None:
    """Return what a path is; None: no segment of this user, whatever its name, or just gone."""
    match = NAME.fullmatch(path.name)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not match or not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
        return None
    namespace, pid = int(match[1]), int(match[2])
    start = UNKNOWN_START if match[3] == "None" else int(match[3])
    has_members = _has_members(path, is_arena=match[4] is not None)
    if has_members is False:  # whatever runs under that pid now
        owner = OwnerState.DEAD
    elif namespace != pid_namespace():
        owner = OwnerState.ELSEWHERE
    else:
        owner = OwnerState.ALIVE if has_members or is_alive(pid, start) else OwnerState.DEAD
    return Found(f"/{path.name}", status.st_blocks * _BLOCK_BYTES, pid, owner)


def _has_members(path: Path, is_arena: bool) -> bool | None:
    """Return whether any member of a segment lives, by their locks; None: that can't be known."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if is_arena:
            return _core.is_locked(fd, 0) if os.fstat(fd).st_size else None
        return _core.has_members(fd)
    finally:
        os.close(fd)


def _reserve(fd: int, size: int) -> None:
    """Make the file `size` bytes long with every page reserved, so that no use is a SIGBUS."""
    room = MemoryLimit().room()
    if room is not None and size > room.nbytes:
        raise SharedMemoryFull(errno.ENOMEM, _over_the_limit(size, room))
    what = f"a segment of {size} bytes"
    with explaining(what, "fstatfs"):
        volume = os.fstatvfs(fd)
    with explaining(what, "fallocate"):
        if volume.f_blocks and size > volume.f_bavail * volume.f_frsize:
            # Known beforehand: nobody else is to run out of memory until fallocate says so.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            # In parts: a signal undoes what one call has done, and a profiler sends many.
            for begin in range(0, size, _PART):
                os.posix_fallocate(fd, begin, min(_PART, size - begin))
        except OSError:
            os.ftruncate(fd, 0)  # the error says how much is free
            raise


def _over_the_limit(size: int, room: Room) -> str:
    return (
        f"a segment of {size} bytes: the memory limit of the cgroup {room.cgroup}, {room.limit} "
        f"bytes, leaves {room.nbytes}, and the kernel kills who takes more: raise it (docker run "
        "--memory=, Kubernetes: resources.limits.memory), or ask for fewer or smaller slots"
    )


def map_whole(fd: int, size: int) -> Memory:
    """Map a segment that `find` has found, for reading and writing.

    Raises:
        HostError: the system refuses.
    """
    return _map(fd, size)


def _map(fd: int, size: int) -> Memory:
    return Memory(fd, size)

"""Which segments this user's processes have open, whether or not they have a name any more."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from shmcast._host import proc
from shmcast._host.segment_file import NAME
from shmcast._host.system_errors import explaining

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


class NoSegment(Exception):
    """A file has the name of a segment, and is none."""


@dataclass
class OpenSegment:
    """A segment's file that some process has open.

    Attributes:
        name: of the file, which may be gone.
        paths: where it can be opened: descriptors in /proc.
        holders: the processes, by pid as this process's /proc numbers them.
    """

    name: str
    paths: list[str] = field(default_factory=list)
    holders: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """Open the file for reading, by whichever way is open, in the block.

        Raises:
            NoSegment: it is a FIFO, say, which is not even opened: that could wake others.
            OSError: there is none: the processes have just ended, or are closed to this one.
        """
        error: OSError = FileNotFoundError(f"nobody has {self.name} open")
        for path in self.paths:
            try:
                if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
                    raise NoSegment("it is no segment, nor any regular file: it only has the name")
                fd = os.open(path, _READ)
            except OSError as refused:
                error = refused
                continue
            try:
                yield fd
            finally:
                os.close(fd)
            return
        raise error


def open_segments() -> list[OpenSegment]:
    """Return the segments of this user that processes have open, but no arenas.

    Processes that this one may not look at are left out, as are files of other users.

    Raises:
        HostError: there is no /proc.
    """
    with explaining("the list of processes"):
        pids = proc.pids()
    found: dict[tuple[int, int], OpenSegment] = {}
    for pid in pids:
        for path, name in _segments_of(pid):
            try:
                status = os.stat(path)  # noqa: PTH116 (as in the loops below: thousands of files)
            except OSError:
                continue
            if status.st_uid != os.geteuid():
                continue
            segment = found.setdefault((status.st_dev, status.st_ino), OpenSegment(name))
            segment.paths.append(path)
            if pid not in segment.holders:
                segment.holders.append(pid)
    return sorted(found.values(), key=lambda segment: segment.name)


def _segments_of(pid: int) -> Iterator[tuple[str, str]]:
    """Yield where a process has segments open, and their names."""
    folder = f"/proc/{pid}/fd"
    try:
        numbers = os.listdir(folder)  # noqa: PTH208
    except OSError:  # another user's, or it has ended
        return
    for number in numbers:
        path = f"{folder}/{number}"
        try:
            target = os.readlink(path)  # noqa: PTH115
        except OSError:
            continue
        name = target.removesuffix(" (deleted)").rpartition("/")[2]
        match = NAME.fullmatch(name)
        if match is not None and match[4] is None:
            yield path, name

"""How much memory this process's cgroups still let it take.

Shared memory counts against the memory limit of the cgroup that first touches it. Where it is
reserved beyond that limit, the kernel does not refuse: it kills the process, inside `fallocate`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from shmcast._host.cgroups import limiting, words_by_line

_UNLIMITED = 1 << 60  # v1 has a number near 2**63 for it


class Room(NamedTuple):
    """What is left under the tightest memory limit of a process."""

    nbytes: int
    """May still be taken, page cache that can be dropped and free swap included."""
    limit: int
    """Bytes in all."""
    cgroup: str
    """The folder of the cgroup that sets it."""


class MemoryLimit:
    """The memory limits of this process's cgroups, on the way to the root, in v2 and v1.

    Args:
        proc: the process's folder in procfs.
        cgroups: where the cgroup file systems are mounted.
    """

    def __init__(
        self, proc: Path = Path("/proc/self"), cgroups: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._meminfo = f"{proc.parent}/meminfo"
        self._limits = [
            (_V2 if is_v2 else _V1, folder)
            for is_v2, folder in limiting(proc, cgroups, "memory", _V2.limit, _V1.limit)
        ]

    def room(self) -> Room | None:
        """Return what is left as of now; None: nothing limits this process."""
        rooms = [room for kind, folder in self._limits if (room := self._left(kind, folder))]
        return min(rooms, key=lambda room: room.nbytes, default=None)

    def _left(self, kind: _Files, folder: str) -> Room | None:
        limit = _number(f"{folder}/{kind.limit}")
        if limit is None or limit >= _UNLIMITED:
            return None
        used = _number(f"{folder}/{kind.used}")
        if used is None:
            return None
        left = limit - used + _droppable(folder, kind) + self._swap(folder, kind)
        return Room(max(0, int(left)), int(limit), folder)

    def _swap(self, folder: str, kind: _Files) -> float:
        """Return the bytes of swap that this cgroup may still use."""
        free = _fields(self._meminfo).get("SwapFree:", 0) * 1024
        if not free:
            return 0
        limit = _number(f"{folder}/{kind.swap_limit}")
        used = _number(f"{folder}/{kind.swap_used}")
        if limit is None or used is None or limit >= _UNLIMITED:
            return free
        if kind is _V1:  # memory and swap in one
            limit -= _number(f"{folder}/{kind.limit}") or 0
            used -= _number(f"{folder}/{kind.used}") or 0
        return max(0, min(free, limit - used))


class _Files(NamedTuple):
    limit: str
    used: str
    swap_limit: str
    swap_used: str
    cache: tuple[str, ...]
    """The fields of memory.stat that sum up to page cache; shared memory is not in them."""


_V2 = _Files(
    "memory.max",
    "memory.current",
    "memory.swap.max",
    "memory.swap.current",
    ("inactive_file", "active_file"),
)
_V1 = _Files(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "memory.memsw.limit_in_bytes",
    "memory.memsw.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


def _number(path: str) -> float | None:
    match words_by_line(path):
        case [[b"max"]]:
            return math.inf
        case [[number]] if number.isdigit():
            return int(number)
    return None


def _droppable(folder: str, kind: _Files) -> int:
    stat = _fields(f"{folder}/memory.stat")
    return sum(stat.get(field, 0) for field in kind.cache)


def _fields(path: str) -> dict[str, int]:
    """Return the numbers of a file of lines "name number [unit]"."""
    return {
        words[0].decode(): int(words[1])
        for words in words_by_line(path)
        if len(words) > 1 and words[1].isdigit()
    }

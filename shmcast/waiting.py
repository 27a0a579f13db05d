"""How to wait, as data: the policy, and the CPUs that a policy may count on."""

from __future__ import annotations

import enum
import math
import os
from dataclasses import dataclass
from pathlib import Path

from shmcast.errors import InvalidArgument

_FOREVER_NS = 2**63 - 1

# Long enough to span the gap between two steps of a decode loop, so that a reader with a core of
# its own never sleeps while tokens flow; short enough that an idle engine is soon parked.
DEFAULT_MAX_SPIN = 0.025


class _Mode(enum.Enum):
    SPIN = "spin"
    SEMAPHORE = "semaphore"
    ADAPTIVE = "adaptive"


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """What an endpoint does while it waits: look in a loop (spin), or sleep until woken (park).

    Make one with `spin()`, `semaphore()` or `adaptive()`. It never changes what is delivered, only
    how soon and for how much CPU time. Readers of one writer may have different policies.
    """

    _mode: _Mode
    _max_spin: float

    @classmethod
    def spin(cls) -> WaitPolicy:
        """Never park: the lowest latency, one core at 100 % per waiting member.

        With fewer free cores than members this starves whoever has work to do.
        """
        return cls(_Mode.SPIN, math.inf)

    @classmethod
    def semaphore(cls) -> WaitPolicy:
        """Park at once: no CPU time while waiting, one wake-up (tens of µs) for each wait."""
        return cls(_Mode.SEMAPHORE, 0.0)

    @classmethod
    def adaptive(cls, max_spin: float = DEFAULT_MAX_SPIN) -> WaitPolicy:
        """Spin for at most `max_spin` seconds, then park; the default.

        Parks at once where the members on the node (readers and writer) outnumber the CPUs that
        this process may use, see `usable_cpus`: there, a spinner takes the core of the member that
        it waits for.

        Raises:
            InvalidArgument: `max_spin` is negative or not a number.
        """
        if not max_spin >= 0:
            raise InvalidArgument(f"max_spin={max_spin!r}: give a number of seconds >= 0")
        return cls(_Mode.ADAPTIVE, float(max_spin))

    def spin_ns(self, *, members: int, cpus: float) -> int:
        """Nanoseconds that one wait may spin before it parks.

        Args:
            members: endpoints of the segment, the writer included.
            cpus: CPUs that this process may use.
        """
        if self._mode is _Mode.ADAPTIVE and members > cpus:
            return 0
        return _FOREVER_NS if self._max_spin >= 9e9 else int(self._max_spin * 1e9)

    def __str__(self) -> str:
        limit = f"(max_spin={self._max_spin:g})" if self._mode is _Mode.ADAPTIVE else "()"
        return f"WaitPolicy.{self._mode.value}{limit}"


def usable_cpus(proc: Path = Path("/proc/self"), cgroups: Path = Path("/sys/fs/cgroup")) -> float:
    """CPUs that this process may use at once: its affinity, cut by its cgroups' CPU quotas.

    A container limited with `docker run --cpus=2.5` sees all of the host's cores in its affinity
    and gets 2.5 of them. The quota is the smallest one on the way from the process's cgroup to the
    root, in cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`).

    Args:
        proc: the process's folder in procfs.
        cgroups: where the cgroup file systems are mounted.
    """
    cpus = float(len(os.sched_getaffinity(0)))
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return cpus
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts, read_quota = (cgroups, cgroups / "unified"), _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read_quota = (cgroups / controllers, cgroups / "cpu"), _quota_v1
        else:
            continue
        for mount in mounts:
            # In a container the path is often that of the host, and the mount its own subtree:
            # what does not exist is skipped, and the mount's own root is always looked at.
            folder = mount / path.lstrip("/")
            for level in (folder, *folder.parents):
                cpus = min(cpus, read_quota(level))
                if level == mount:
                    break
    return cpus


def _quota_v2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _quota_v1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return math.inf if quota <= 0 else quota / period
    except (OSError, ValueError):
        return math.inf

"""How to wait, as data: the policy, and whether there are CPUs enough to spin."""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shmcast import _core
from shmcast._host import census
from shmcast.errors import InvalidArgument

DEFAULT_MAX_SPIN = 0.025
"""Seconds. A bound for the worst case: adaptive waiting rarely spins for so long."""

ENVIRONMENT_VARIABLE = "SHMCAST_WAIT"
"""Overrides every policy that a program chose: "spin", "semaphore" or "adaptive"."""

_FOREVER_NS = 2**63 - 1


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
        """Learn the gaps between messages and be awake in time; the default.

        Messages that come within half a millisecond are spun for. For steady gaps (a decode loop)
        the endpoint sleeps through most of the gap and spins from shortly before the next message
        is due. For gaps that can't be foretold, or after a pause, it is parked until woken. At
        most about a quarter of long gaps is spent spinning.

        It never spins where members outnumber the CPUs that they may run on (see `is_crowded`):
        there, a spinner takes the core of the member that it waits for. And it stops spinning, for
        a while, when its core is taken away.

        Args:
            max_spin: at most so many seconds of spinning in one wait.

        Raises:
            InvalidArgument: `max_spin` is negative or not a number.
        """
        if not max_spin >= 0:
            raise InvalidArgument(f"max_spin={max_spin!r}: give a number of seconds >= 0")
        return cls(_Mode.ADAPTIVE, float(max_spin))

    @classmethod
    def from_environment(cls) -> WaitPolicy | None:
        """What the operator has set in SHMCAST_WAIT; None if nothing.

        Raises:
            InvalidArgument: it is set to something else than a policy's name.
        """
        name = os.environ.get(ENVIRONMENT_VARIABLE)
        if not name:
            return None
        try:
            make = {"spin": cls.spin, "semaphore": cls.semaphore, "adaptive": cls.adaptive}[name]
        except KeyError:
            raise InvalidArgument(
                f"the environment variable {ENVIRONMENT_VARIABLE}={name!r} is none of spin, "
                "semaphore, adaptive; unset it to let the program choose"
            ) from None
        return make()

    def _for_core(self) -> _core.WaitPolicy:
        match self._mode:
            case _Mode.SPIN:
                return _core.WaitPolicy.spin()
            case _Mode.SEMAPHORE:
                return _core.WaitPolicy.park()
            case _Mode.ADAPTIVE:
                return _core.WaitPolicy.adaptive(int(min(self._max_spin * 1e9, _FOREVER_NS)))

    def __str__(self) -> str:
        limit = f"(max_spin={self._max_spin:g})" if self._mode is _Mode.ADAPTIVE else "()"
        return f"WaitPolicy.{self._mode.value}{limit}"


class CpuBudget:
    """CPUs that this process may use at once: its affinity, cut by its cgroups' CPU quotas.

    A container limited with `docker run --cpus=2.5` sees all of the host's cores in its affinity
    and gets 2.5 of them. The quota is the smallest one on the way from the process's cgroup to the
    root, in cgroup v2 (`cpu.max`) and v1 (`cpu.cfs_quota_us`). The process's cgroups are looked up
    once, their quotas each time: a pod may be resized in place.

    Args:
        proc: the process's folder in procfs.
        cgroups: where the cgroup file systems are mounted.
    """

    def __init__(
        self, proc: Path = Path("/proc/self"), cgroups: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._quotas = list(_quotas(proc, cgroups))

    def usable(self) -> float:
        """CPUs, as of now."""
        affinity = len(os.sched_getaffinity(0))
        return min([affinity, *(read(folder) for read, folder in self._quotas)])


def is_crowded(budget: CpuBudget, members: int, attached: int) -> bool:
    """Whether members outnumber the CPUs that they may run on: then nobody should spin.

    What counts is all threads of this user with endpoints on the node, of whatever writer, except
    those that are pinned to CPUs which the calling thread may not use.

    Args:
        budget: the CPUs.
        members: how many endpoints the caller's writer and readers are.
        attached: how many of these readers have attached. Until all have, the missing are counted
            as if they were here.
    """
    listed = census.members()
    if listed is None or attached < members - 1:
        listed = max(members, listed or 0)
    return listed > budget.usable()


def _quotas(proc: Path, cgroups: Path) -> Iterator[tuple[Callable[[str], float], str]]:
    """How to read each quota that may bind the process, and the folder where it is."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            mounts, name, read = (cgroups, cgroups / "unified"), "cpu.max", _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, name = (cgroups / controllers, cgroups / "cpu"), "cpu.cfs_quota_us"
            read = _quota_v1
        else:
            continue
        for mount in mounts:
            # In a container the path is often that of the host, and the mount its own subtree:
            # what does not exist is skipped, and the mount's own root is always looked at.
            folder = mount / path.lstrip("/")
            for level in (folder, *folder.parents):
                if (level / name).exists():
                    yield read, str(level)
                if level == mount:
                    break


def _quota_v2(folder: str) -> float:
    try:
        quota, period = _read(f"{folder}/cpu.max").split()
        return math.inf if quota == b"max" else int(quota) / int(period)
    except (OSError, ValueError):
        return math.inf


def _quota_v1(folder: str) -> float:
    try:
        quota = int(_read(f"{folder}/cpu.cfs_quota_us"))
        return math.inf if quota <= 0 else quota / int(_read(f"{folder}/cpu.cfs_period_us"))
    except (OSError, ValueError):
        return math.inf


def _read(path: str) -> bytes:
    # This happens in waits: pathlib and text files would take several times as long.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 64)
    finally:
        os.close(descriptor)

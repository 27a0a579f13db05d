"""The CPUs that this process may use, and whether members outnumber them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from shmcast._host import census


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
        """Return the number of CPUs as of now."""
        return min([_affinity(), *(read(folder) for read, folder in self._quotas)])


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except OSError:  # a seccomp filter refuses it
        return os.cpu_count() or 1


def is_crowded(budget: CpuBudget, members: int, attached: int) -> bool:
    """Return whether members outnumber the CPUs that they may run on: then nobody should spin.

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
    """Yield how to read each quota that may bind the process, and the folder where it is."""
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

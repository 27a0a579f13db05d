"""The CPU quotas of this process's cgroups."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from shmcast import _core


class CpuQuota:
    """How many CPUs the quotas of its cgroups leave to this process.

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

    def read(self) -> float:
        """Return the number of CPUs as of now; inf where there is no quota, or none to be read."""
        return min([math.inf, *(read(folder) for read, folder in self._quotas)])


def _quotas(proc: Path, cgroups: Path) -> Iterator[tuple[Callable[[str], float], str]]:
    """Yield how to read each quota that may bind the process, and the folder where it is."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        controllers, _, path = line.partition(":")[2].partition(":")
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
                if os.access(level / name, os.R_OK):
                    yield read, str(level)
                if level == mount:
                    break


# These run in waits, where a signal handler may raise any exception at any time: they catch none.


def _quota_v2(folder: str) -> float:
    match (_core.read_small_file(f"{folder}/cpu.max") or b"").split():
        case [quota, period]:
            return _ratio(quota, period)
    return math.inf


def _quota_v1(folder: str) -> float:
    quota = _core.read_small_file(f"{folder}/cpu.cfs_quota_us") or b""
    period = _core.read_small_file(f"{folder}/cpu.cfs_period_us") or b""
    return _ratio(quota.strip(), period.strip())


def _ratio(quota: bytes, period: bytes) -> float:
    """Return the CPUs of a quota: inf if there is none (max, -1) or it is not understood."""
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        return int(quota) / int(period)
    return math.inf

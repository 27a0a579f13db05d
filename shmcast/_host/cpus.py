"""The CPU quotas of this process's cgroups."""

from __future__ import annotations

import math
from pathlib import Path

from shmcast._host.cgroups import limiting, words_by_line


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
        self._quotas = [
            (_quota_v2 if is_v2 else _quota_v1, folder)
            for is_v2, folder in limiting(proc, cgroups, "cpu", "cpu.max", "cpu.cfs_quota_us")
        ]

    def read(self) -> float:
        """Return the number of CPUs as of now; inf where there is no quota, or none to be read."""
        return min([math.inf, *(read(folder) for read, folder in self._quotas)])


def _quota_v2(folder: str) -> float:
    match words_by_line(f"{folder}/cpu.max"):
        case [[quota, period]]:
            return _ratio(quota, period)
    return math.inf


def _quota_v1(folder: str) -> float:
    match words_by_line(f"{folder}/cpu.cfs_quota_us") + words_by_line(
        f"{folder}/cpu.cfs_period_us"
    ):
        case [[quota], [period]]:
            return _ratio(quota, period)
    return math.inf


def _ratio(quota: bytes, period: bytes) -> float:
    """Return the CPUs of a quota: inf if there is none (max, -1) or it is not understood."""
    if quota.isdigit() and period.isdigit() and int(quota) and int(period):
        return int(quota) / int(period)
    return math.inf

"""The CPU quotas of this process's cgroups."""

from __future__ import annotations

import math
from pathlib import Path

from shmcast import _core
from shmcast._host.cgroups import limiting


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

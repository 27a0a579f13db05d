"""The machine on which the numbers are measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import shmcast


def describe() -> dict[str, Any]:
    """Return the machine and its software, as of now."""
    usable = usable_cpus()
    cpu = _cpu_model()
    return {
        "name": f"{_short_name(cpu)}-{usable:g}cpu",
        "cpu": cpu,
        "cores": os.cpu_count(),
        "usable_cpus": usable,
        "governor": _governor(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        "shmcast": shmcast.__version__,
        "commit": _commit(),
        "load_average": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


class Steal:
    """How much of the CPUs' time the hypervisor has given to others since this was made."""

    def __init__(self) -> None:
        self._before = self._read()

    def share(self) -> float:
        """Return the share of all CPUs' time, 0 to 1."""
        (stolen, total), (stolen_before, total_before) = self._read(), self._before
        return (stolen - stolen_before) / max(1, total - total_before)

    @staticmethod
    def _read() -> tuple[int, int]:
        times = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return times[7], sum(times)


def usable_cpus() -> float:
    """Return how many CPUs this process may use: its affinity, or less by its cgroup's quota."""
    cpus = float(len(os.sched_getaffinity(0)))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            return min(cpus, int(limit) / int(period))
    return cpus


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _short_name(cpu: str) -> str:
    known = ("epyc", "xeon", "ryzen", "core", "neoverse", "graviton")
    return next((name for name in known if name in cpu.lower()), platform.machine())


def _governor() -> str:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text().strip() if path.exists() else "not visible"


def _commit() -> str:
    """Return the commit, marked "dirty" if anything but results differs from it."""
    commit = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", "--", ".", ":(exclude)bench/results")
    return f"{commit}-dirty" if changes else commit


def _git(*arguments: str) -> str:
    ran = subprocess.run(  # noqa: S603
        ["git", *arguments],  # noqa: S607 (the user's own git)
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout.strip()

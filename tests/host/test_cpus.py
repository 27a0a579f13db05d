"""The CPU quotas that bind a process."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from shmcast._host.cpus import CpuQuota


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return tmp_path / "proc"


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def test_without_a_quota_there_is_no_limit(proc: Path, cgroups: Path) -> None:
    assert CpuQuota(proc, cgroups).read() == math.inf
    write(proc / "cgroup", "0::/a\n")
    write(cgroups / "a/cpu.max", "max 100000\n")
    assert CpuQuota(proc, cgroups).read() == math.inf


def test_the_smallest_quota_on_the_way_up_counts(proc: Path, cgroups: Path) -> None:
    write(proc / "cgroup", "0::/pod/container\n")
    write(cgroups / "pod/container/cpu.max", "80000 100000\n")
    write(cgroups / "pod/cpu.max", "50000 100000\n")
    assert CpuQuota(proc, cgroups).read() == 0.5


def test_a_path_of_the_host_is_looked_up_at_the_containers_own_root(
    proc: Path, cgroups: Path
) -> None:
    write(proc / "cgroup", "0::/system.slice/docker-1234.scope\n")
    write(cgroups / "cpu.max", "25000 100000\n")
    assert CpuQuota(proc, cgroups).read() == 0.25


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_cgroup_v1(proc: Path, cgroups: Path, mount: str) -> None:
    write(proc / "cgroup", "4:memory:/m\n2:cpu,cpuacct:/docker/1\n")
    write(cgroups / mount / "docker/1/cpu.cfs_quota_us", "75000\n")
    write(cgroups / mount / "docker/1/cpu.cfs_period_us", "100000\n")
    write(cgroups / mount / "docker/cpu.cfs_quota_us", "-1\n")
    write(cgroups / mount / "docker/cpu.cfs_period_us", "100000\n")
    assert CpuQuota(proc, cgroups).read() == 0.75


@pytest.mark.parametrize("text", ["what?\n", "100000\n", "100000 0\n", "", "1 2 3\n"])
def test_an_unreadable_quota_is_no_quota(proc: Path, cgroups: Path, text: str) -> None:
    write(proc / "cgroup", "0::/a\n")
    write(cgroups / "a/cpu.max", text)
    assert CpuQuota(proc, cgroups).read() == math.inf


def test_a_cgroup_that_goes_leaves_no_quota(proc: Path, cgroups: Path) -> None:
    write(proc / "cgroup", "0::/a\n")
    write(cgroups / "a/cpu.max", "50000 100000\n")
    quota = CpuQuota(proc, cgroups)
    assert quota.read() == 0.5
    (cgroups / "a/cpu.max").unlink()
    assert quota.read() == math.inf


@pytest.mark.parametrize("text", ["", "\n", "nothing\n", "0:\n", "\xff:::\n"])
def test_without_cgroups_there_is_no_quota(proc: Path, cgroups: Path, text: str) -> None:
    assert CpuQuota(proc, cgroups).read() == math.inf
    proc.mkdir()
    (proc / "cgroup").write_bytes(text.encode("latin-1"))
    assert CpuQuota(proc, cgroups).read() == math.inf

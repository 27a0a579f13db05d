"""What this host, or this container, has for shmcast and lacks; and the way out."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shmcast import _core
from shmcast._host import proc, shared_memory
from shmcast._host.cpus import CpuQuota
from shmcast._host.memory_limit import MemoryLimit
from shmcast._host.places import Places
from shmcast._host.process import pid_namespace, py_spy
from shmcast._host.shared_memory import OwnerState
from shmcast._host.system_errors import SHM_FOLDER, explaining
from shmcast._operators import environment
from shmcast._operators.formats import size
from shmcast.errors import HostError, SegmentError, ShmcastError

_RING_BYTES = 4_300_000  # of one broadcaster, with the default shape
_DOCKERS_DEFAULT = 64 * 1024 * 1024
_LEAST_CPUS = 2
_UNSEEN = "could not be looked at without /proc"
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: "ok"; "note": works, but not as well as it could; "bad": does not work.
        value: what was found.
        advice: the way out; "" where none is needed.
    """

    name: str
    status: Literal["ok", "note", "bad"]
    value: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything. A look that fails is a finding, too."""
    return [found for look in _LOOKS for found in _attempted(look)]


def as_text(findings: list[Finding]) -> str:
    """Return what people read."""
    lines = []
    for found in findings:
        mark = {"ok": "  ", "note": " -", "bad": " !"}[found.status]
        lines.append(f"{mark} {found.name}: {found.value}")
        if found.advice:
            lines.append(f"     {found.advice}")
    return "\n".join(lines)


def _attempted(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except (OSError, ShmcastError) as error:
        name = look.__name__.strip("_").replace("_", " ")
        why = _told(error) if isinstance(error, ShmcastError) else error
        yield Finding(name, "bad", f"could not be looked at: {why}")


def _versions() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("kernel", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding("Python", "ok", f"{python}, {sys.executable}")
    yield Finding("spin hint", "ok", _core.idle_hint())


def _shared_memory() -> Iterator[Finding]:
    room = os.statvfs(SHM_FOLDER)
    whole, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    value = f"{size(free)} free of {size(whole)}"
    enlarge = (
        "Docker: --shm-size=1g; Kubernetes: an emptyDir of medium Memory on /dev/shm; else "
        "mount -o remount,size=1g /dev/shm"
    )
    if free < _RING_BYTES:
        yield Finding(SHM_FOLDER, "bad", f"{value}: too little for one broadcaster", enlarge)
    elif whole <= _DOCKERS_DEFAULT:
        yield Finding(SHM_FOLDER, "note", f"{value}: large messages may find no room", enlarge)
    else:
        yield Finding(SHM_FOLDER, "ok", value)
    left = [s for s in shared_memory.clean(dry_run=True) if s.owner is OwnerState.DEAD]
    if left:
        what = f"{len(left)} of dead processes, {size(sum(s.size for s in left))}"
        yield Finding("left over", "note", what, "shmcast clean")
    else:
        yield Finding("left over", "ok", "nothing")


def _segment() -> Iterator[Finding]:
    """Do what every endpoint begins with: whatever the system refuses there is in no list."""
    try:
        shared_memory.try_out(_RING_BYTES)
    except (SegmentError, HostError) as error:
        yield Finding("a broadcaster's segment", "bad", _told(error))
    else:
        yield Finding("a broadcaster's segment", "ok", "can be made, and attached by a reader")


def _told(error: ShmcastError) -> str:
    """Return what an error says, without the number that OSError puts before."""
    return str(getattr(error, "strerror", None) or error)


def _has_proc() -> bool:
    return Path("/proc/self").exists()


def _limits() -> Iterator[Finding]:
    room = MemoryLimit().room()
    if not _has_proc():
        yield Finding("memory limit", "note", _UNSEEN)
    elif room is None:
        yield Finding("memory limit", "ok", "none")
    else:
        status: Literal["ok", "bad"] = "ok" if room.nbytes > _RING_BYTES else "bad"
        advice = "" if status == "ok" else "--memory=, resources.limits.memory"
        value = f"{size(room.nbytes)} left of {size(room.limit)}, in {room.cgroup}"
        yield Finding("memory limit", status, value, advice)
    usable = len(os.sched_getaffinity(0))
    quota = CpuQuota().read()
    value = f"{usable} usable of {os.cpu_count()}"
    value += "" if quota == math.inf else f", a quota of {quota:.3g}"
    if min(usable, quota) < _LEAST_CPUS:
        yield Finding(
            "CPUs", "note", value, "with fewer CPUs than members nobody spins: messages come later"
        )
    else:
        yield Finding("CPUs", "ok", value)


def _processes() -> Iterator[Finding]:
    try:
        with explaining("the list of processes"):
            proc.pids()
    except HostError as error:
        yield Finding("/proc", "bad", _told(error))
        return
    if proc.is_own():
        yield Finding("/proc", "ok", f"of this pid namespace, {pid_namespace()}")
    else:
        yield Finding(
            "/proc", "note", "of another pid namespace", "mount -t proc proc /proc in this one"
        )


def _liveness() -> Iterator[Finding]:
    try:
        os.close(proc.pidfd_open(os.getpid()))
        yield Finding("pidfds", "ok", "there are")
    except OSError as error:
        yield Finding(
            "pidfds", "note", os.strerror(error.errno or 0),
            "deaths are noticed within a second: Linux 5.3, or a profile that allows pidfd_open",
        )  # fmt: skip
    if not _has_proc():
        yield Finding("file locks", "note", _UNSEEN)
        return
    fd = os.memfd_create("shmcast-doctor", os.MFD_CLOEXEC)
    try:
        lock = Places(fd).hold(0)
        if lock is None:
            yield Finding(
                "file locks", "note", "refused",
                "deaths in other pid namespaces are not noticed: pass timeouts, or share the pids",
            )  # fmt: skip
        else:
            lock.release()
            yield Finding("file locks", "ok", "there are")
    finally:
        os.close(fd)


def _huge_pages() -> Iterator[Finding]:
    try:
        setting = _HUGE_PAGES.read_text().strip()
    except OSError:
        yield Finding("huge pages", "note", "the kernel has none for shared memory")
        return
    yield Finding("huge pages", "ok", f"shmem_enabled: {setting}")


def _tools() -> Iterator[Finding]:
    spy = py_spy()
    if spy:
        yield Finding("py-spy", "ok", spy)
    else:
        yield Finding(
            "py-spy", "note", "not there: no stacks of processes that can't answer",
            "pip install 'shmcast[debug]'; in a container, the capability SYS_PTRACE",
        )  # fmt: skip


def _settings() -> Iterator[Finding]:
    yield Finding("settings", "ok", ", ".join(environment.all_set()) or "none in the environment")
    for variable, what, is_refused in environment.problems():
        value, _, advice = what.partition("; ")
        yield Finding(variable, "bad" if is_refused else "note", value, advice)


_LOOKS = (
    _versions, _shared_memory, _segment, _limits, _processes, _liveness, _huge_pages, _tools,
    _settings,
)  # fmt: skip

"""What the system refuses is a ShmcastError that says why, and the way out; nothing leaks."""

from __future__ import annotations

import errno
import functools
import os
import re
import resource
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmcast
from shmcast import Handle, Reader, Writer
from shmcast._host.memory_limit import MemoryLimit
from shmcast._host.system_errors import explained
from tests.support import confined
from tests.support.permissions import needs_mounts
from tests.support.processes import Worker
from tests.support.shared_memory import SHM

MIB = 1 << 20
Outcome = tuple[str, int, str, int]
"""Of a constructor: the error's type, errno and text; how many descriptors and names it left."""


@pytest.fixture
def alone() -> Iterator[Worker]:
    with confined.process() as worker:
        yield worker


def leftovers() -> int:
    try:
        names = [name for name in os.listdir(SHM) if f"-{os.getpid()}-" in name]  # noqa: PTH208
    except OSError:
        names = []
    return len(names) + sum(_is_open(fd) for fd in range(256))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def attempt(confine: Callable[[], object], arguments: dict[str, Any]) -> Outcome:
    """Make a writer in a confined process."""
    Writer(1).close()  # what is made once for all
    confine()
    before = leftovers()
    try:
        Writer(1, **arguments)
    except shmcast.ShmcastError as error:
        code = getattr(error, "errno", None) or 0
        return type(error).__name__, code, str(error), leftovers() - before
    return "made", 0, "", 0


def attempt_reader(confine: Callable[[], object], handle: Handle) -> Outcome:
    """Make a reader in a confined process."""
    Writer(1).close()  # what is made once for all
    confine()
    before = leftovers()
    try:
        Reader(handle, 0)
    except shmcast.ShmcastError as error:
        code = getattr(error, "errno", None) or 0
        return type(error).__name__, code, str(error), leftovers() - before
    return "made", 0, "", 0


def limited(which: int, limit: int) -> Callable[[], None]:
    return functools.partial(resource.setrlimit, which, (limit, limit))


def address_space(spare: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + spare
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def refusing(call: str, code: int) -> Callable[[], None]:
    return functools.partial(confined.refuse, call, code)


REFUSED_MMAP = functools.partial(confined.refuse, "mmap", errno.EPERM, confined.MAP_SHARED)
ARENA = {"arena_bytes": 16 * MIB, "slots": 2, "slot_bytes": 1024}
LARGE = {"slots": 64, "slot_bytes": 8 * MIB}

# How the process is confined, what it asks for, and what it is told: type, errno, way out.
REFUSALS: dict[str, tuple[Callable[[], object], dict[str, Any], str, int, str]] = {
    "ulimit -f, ring": (
        limited(resource.RLIMIT_FSIZE, MIB),
        {},
        "SharedMemoryFull",
        errno.EFBIG,
        r"writer: .*size of files, 1048576 bytes.*ulimit -f",
    ),
    "ulimit -f, arena": (
        limited(resource.RLIMIT_FSIZE, MIB),
        ARENA,
        "SharedMemoryFull",
        errno.EFBIG,
        "16777216 bytes: ftruncate.*ulimit -f",
    ),
    "ulimit -v, ring": (
        functools.partial(address_space, 64 * MIB),
        {"slots": 64, "slot_bytes": 2 * MIB},
        "HostError",
        errno.ENOMEM,
        "ulimit -v.*max_map_count",
    ),
    "ulimit -v, arena": (
        functools.partial(address_space, 64 * MIB),
        {"arena_bytes": 1 << 30},
        "HostError",
        errno.ENOMEM,
        "an arena of 1073741824 bytes.*ulimit -v",
    ),
    "fallocate, EPERM": (
        refusing("fallocate", errno.EPERM),
        {},
        "HostError",
        errno.EPERM,
        "seccomp.*allow fallocate",
    ),
    "fallocate, ENOSYS": (
        refusing("fallocate", errno.ENOSYS),
        {},
        "HostError",
        errno.ENOSYS,
        "seccomp.*allow fallocate",
    ),
    "fstatfs, EPERM": (
        refusing("fstatfs", errno.EPERM),
        {},
        "HostError",
        errno.EPERM,
        "seccomp.*allow fstatfs",
    ),
    "mmap, EPERM": (REFUSED_MMAP, {}, "HostError", errno.EPERM, "seccomp.*allow mmap"),
    "mmap, EPERM, arena": (REFUSED_MMAP, ARENA, "HostError", errno.EPERM, "arena.*allow mmap"),
}

MOUNTS: dict[str, tuple[Callable[[], object], dict[str, Any], str, int, str]] = {
    "no /dev/shm": (
        functools.partial(confined.hide, "/dev/shm"),
        {},
        "HostError",
        errno.ENOENT,
        "there is no /dev/shm here: mount one",
    ),
    "no /dev/shm, arena": (
        functools.partial(confined.hide, "/dev/shm"),
        ARENA,
        "HostError",
        errno.ENOENT,
        "there is no /dev/shm here: mount one",
    ),
    "read-only": (
        functools.partial(confined.mount_over, "/dev/shm", read_only=True),
        {},
        "HostError",
        errno.EROFS,
        "mounted read-only: remount it",
    ),
    "no inode": (
        functools.partial(confined.mount_over, "/dev/shm", "nr_inodes=1"),
        {},
        "SharedMemoryFull",
        errno.ENOSPC,
        "no inode left.*nr_inodes",
    ),
    "full": (
        functools.partial(confined.mount_over, "/dev/shm", "size=1m"),
        {},
        "SharedMemoryFull",
        errno.ENOSPC,
        "1048576 bytes free of 1048576: enlarge it .docker run --shm-size",
    ),
    "no /proc": (
        functools.partial(confined.mount_over, "/proc"),
        {},
        "HostError",
        errno.ENOENT,
        "there is no /proc here.*mount -t proc",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_limit_or_a_filter_is_named_with_the_way_out(case: str, alone: Worker) -> None:
    confine, arguments, *expected, text = REFUSALS[case]
    *told, said, left = alone.start(attempt, confine, arguments).result()
    assert told == expected
    assert re.search(text, said)
    assert left == 0


@needs_mounts
@pytest.mark.parametrize("case", MOUNTS)
def test_a_mount_that_is_missing_is_named_with_the_way_out(case: str, alone: Worker) -> None:
    confine, arguments, *expected, text = MOUNTS[case]
    *told, said, left = alone.start(attempt, confine, arguments).result()
    assert told == expected
    assert re.search(text, said)
    assert left == 0


@needs_mounts
def test_a_folder_that_is_closed_to_the_user_is_named(alone: Worker) -> None:
    def say(confine: Callable[[], object]) -> Outcome:
        outcome: Outcome = alone.start(attempt, confine, {}).result()
        return outcome

    *told, said, left = say(closed_to_others)
    assert told == ["HostError", errno.EACCES]
    assert "chmod 1777 /dev/shm" in said
    assert left == 0


def closed_to_others() -> None:
    confined.mount_over("/dev/shm", "mode=755")
    confined.become_another_user()


@pytest.mark.parametrize(
    ("confine", "code"),
    [
        (functools.partial(address_space, 16 * MIB), errno.ENOMEM),
        (REFUSED_MMAP, errno.EPERM),
        (limited(resource.RLIMIT_NOFILE, 3), errno.EMFILE),
    ],
    ids=["ulimit -v", "mmap", "ulimit -n"],
)
def test_a_refused_reader_has_taken_no_seat(
    confine: Callable[[], object], code: int, alone: Worker
) -> None:
    with Writer(1, arena_bytes=256 * MIB) as writer:
        kind, told, said, left = alone.start(attempt_reader, confine, writer.handle).result()
        assert (kind, told, left) == ("HostError", code, 0)
        assert said.startswith(f"[Errno {code}] reader 0: ")
        with Reader(writer.handle, 0) as reader:
            writer.send("the seat is free")
            assert reader.recv(5) == "the seat is free"


def send_where(call: str, code: int) -> list[Any]:
    """Send and receive where a call is refused; return that, and what close() warned of."""
    confined.refuse(call, code)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Writer(1, arena_bytes=16 * MIB) as writer, Reader(writer.handle, 0) as reader:
            writer.send([1, np.ones(MIB, "u1")])
            number, array = reader.recv(5)
    return [number, int(array.sum()), [str(w.message) for w in caught], os.getpid()]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_without_sched_getaffinity_all_goes_on(code: int, alone: Worker) -> None:
    number, total, told, _ = alone.start(send_where, "sched_getaffinity", code).result()
    assert (number, total, told) == (1, MIB, [])


def grow_where_fallocate_fails(code: int) -> tuple[int, int]:
    """Send a large array where the arena can't grow; return frames without room and bytes taken."""
    with Writer(1, arena_bytes=16 * MIB) as writer, Reader(writer.handle, 0) as reader:
        confined.refuse("fallocate", code)
        writer.send([1, np.ones(MIB, "u1")], timeout=20)
        assert reader.recv(5)[1].sum() == MIB
        figures = writer.statistics()
    return figures.arena_full, figures.arena_reserved_bytes


@pytest.mark.parametrize("code", [errno.EINTR, errno.EFBIG, errno.ENOSPC, errno.ENOMEM])
def test_an_arena_that_can_not_grow_is_done_without(code: int, alone: Worker) -> None:
    assert alone.start(grow_where_fallocate_fails, code).result() == (1, 0)


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
def test_a_name_that_can_not_be_removed_is_a_warning(code: int, alone: Worker) -> None:
    number, total, told, pid = alone.start(send_where, "unlink", code).result()
    assert (number, total) == (1, MIB)
    assert {re.sub("-[^ ]+ ", " ", text).partition(" unlink:")[0] for text in told} == {
        f"[Errno {code}] the segment /shmcast stays in /dev/shm:"
    }
    assert all("shmcast clean" in text or "allow unlink" in text for text in told)
    for path in SHM.glob(f"shmcast-*-{pid}-*"):
        path.unlink()


def descriptors_run_out(spare: int) -> tuple[str, int]:
    """Make a writer with few descriptors left; return how it failed, and what it left."""
    Writer(1).close()
    before = leftovers()
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(256)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, max(taken) + 1))
    for fd in taken[: spare or -256]:
        os.close(fd)
    said = "made"
    try:
        Writer(1, arena_bytes=MIB).close()
    except shmcast.ShmcastError as error:
        said = type(error).__name__
    for fd in taken[spare:]:
        os.close(fd)
    return said, leftovers() - before


def test_a_writer_that_fails_half_way_leaves_nothing(alone: Worker) -> None:
    outcomes = []
    for spare in range(12):
        outcomes.append(alone.start(descriptors_run_out, spare).result())
        alone.end()
    kinds = [kind for kind, _ in outcomes]
    assert kinds == ["HostError"] * kinds.count("HostError") + ["made"] * kinds.count("made")
    assert 0 < kinds.count("HostError") < 12
    assert [left for _, left in outcomes] == [0] * 12


@pytest.fixture
def small_cgroup() -> Iterator[confined.MemoryCgroup]:
    if os.geteuid() != 0:
        pytest.skip("only root makes cgroups here")
    cgroup = confined.MemoryCgroup(256 * MIB)
    yield cgroup
    cgroup.end()


def test_a_ring_over_the_cgroups_limit_is_an_error_and_no_kill(
    small_cgroup: confined.MemoryCgroup,
) -> None:
    with confined.process() as alone:
        kind, code, said, left = alone.start(attempt, small_cgroup.enter, LARGE).result()
        assert (kind, code, left) == ("SharedMemoryFull", errno.ENOMEM, 0)
        assert f"memory limit of the cgroup {small_cgroup.folder}, {256 * MIB} bytes" in said
        assert "--memory=" in said


def fill_the_arena(enter: Callable[[], object]) -> tuple[int, int]:
    """Send what an arena has no room for; return its size, and how much was streamed instead."""
    enter()
    kept = []
    with Writer(1, arena_bytes=1 << 30) as writer, Reader(writer.handle, 0) as reader:
        for _ in range(120):
            writer.send([0, np.zeros(3 * MIB, "u1")], timeout=5)
            kept.append(reader.recv(5, copy=False))
            if writer.statistics().arena_full:
                break
        figures = writer.statistics()
        kept.clear()
    return figures.arena_reserved_bytes, figures.arena_full


def test_an_arena_over_the_cgroups_limit_is_full_and_no_kill(
    small_cgroup: confined.MemoryCgroup,
) -> None:
    with confined.process() as alone:
        reserved, full = alone.start(fill_the_arena, small_cgroup.enter).result()
        assert full == 1
        assert 0 < reserved < 256 * MIB


def fake_cgroup(folder: Path, files: Mapping[str, object]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc" / "self"
    folder.mkdir(parents=True)
    (folder.parent / "meminfo").write_text("MemTotal: 100 kB\nSwapFree: 0 kB\n")
    return folder


def test_the_tightest_limit_counts_and_page_cache_can_be_dropped(
    tmp_path: Path, proc: Path
) -> None:
    (proc / "cgroup").write_text("0::/pod/engine\n")
    fake_cgroup(
        tmp_path / "cg" / "pod",
        {"memory.max": 1000, "memory.current": 900, "memory.stat": "active_file 50\nanon 7"},
    )
    fake_cgroup(tmp_path / "cg" / "pod" / "engine", {"memory.max": "max", "memory.current": 300})
    room = MemoryLimit(proc, tmp_path / "cg").room()
    assert room is not None
    assert (room.nbytes, room.limit, room.cgroup) == (150, 1000, str(tmp_path / "cg" / "pod"))


def test_free_swap_is_room_too(tmp_path: Path, proc: Path) -> None:
    (proc.parent / "meminfo").write_text("SwapFree: 1 kB\n")
    (proc / "cgroup").write_text("0::/\n")
    files = {"memory.max": 1000, "memory.current": 900}
    fake_cgroup(tmp_path / "cg", files | {"memory.swap.max": 300, "memory.swap.current": 100})
    room = MemoryLimit(proc, tmp_path / "cg").room()
    assert room is not None
    assert room.nbytes == 100 + 200


def test_version_1_is_read_too_and_its_huge_number_is_no_limit(tmp_path: Path, proc: Path) -> None:
    (proc / "cgroup").write_text("5:cpu:/a\n4:memory:/docker/x\n")
    fake_cgroup(
        tmp_path / "cg" / "memory",
        {"memory.limit_in_bytes": 2**63 - 4096, "memory.usage_in_bytes": 5},
    )
    limit = MemoryLimit(proc, tmp_path / "cg")
    assert limit.room() is None
    (tmp_path / "cg" / "memory" / "memory.limit_in_bytes").write_text("105")
    assert limit.room() is not None


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert MemoryLimit(tmp_path / "none", tmp_path / "none").room() is None


@pytest.mark.parametrize("code", [errno.EIO, errno.ENFILE, errno.ENODEV, errno.EDQUOT])
@pytest.mark.parametrize("call", ["open", "fallocate", "mmap", "unlink", ""])
def test_whatever_the_kernel_says_is_one_of_ours_with_its_errno(call: str, code: int) -> None:
    error = explained(OSError(code, os.strerror(code)), "writer", call)
    assert isinstance(error, OSError)
    assert error.errno == code
    assert str(error).startswith(f"[Errno {code}] writer: ")
    assert os.strerror(code) in str(error)

"""Descriptors, users and dumps: what a segment's file is to others, and they to it."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import shmcast
from shmcast import Handle, Reader, Writer
from shmcast._host import shared_memory
from tests.support import confined
from tests.support.permissions import needs_root
from tests.support.processes import Worker, WorkerFailed
from tests.support.shared_memory import SHM

MIB = 1 << 20


@pytest.fixture
def alone() -> Iterator[Worker]:
    with confined.process() as worker:
        yield worker


def path_of(name: str) -> Path:
    return SHM / name[1:]


# --- descriptors that others close ---


def collect_in_a_fork(closes: bool) -> list[int]:
    """Fork; the child closes all descriptors, opens its own and collects the endpoints.

    Returns those of the child's files that it can't write to any more.
    """
    writer = Writer(1, arena_bytes=4 * MIB)
    reader = Reader(writer.handle, 0)
    writer.wait_ready(5)
    incoming, outgoing = os.pipe()
    pid = os.fork()
    if pid == 0:
        report = 200
        os.dup2(outgoing, report)
        os.closerange(3, report)
        mine = [os.open("/dev/null", os.O_WRONLY) for _ in range(40)]
        if closes:
            writer.close()
            reader.close()
        del writer, reader
        gc.collect()
        for fd in mine:
            try:
                os.write(fd, b"x")
            except OSError:
                os.write(report, bytes([fd]))
        os._exit(0)
    os.close(outgoing)
    lost = [*os.read(incoming, 100)]
    os.waitpid(pid, 0)
    writer.send("the parent goes on")
    assert reader.recv(5) == "the parent goes on"
    writer.close()
    reader.close()
    return lost


@pytest.mark.parametrize("closes", [False, True])
def test_a_fork_keeps_its_own_files_when_an_endpoint_goes(closes: bool, alone: Worker) -> None:
    assert alone.start(collect_in_a_fork, closes).result() == []


def replace_descriptors(folder: str) -> tuple[int, list[int]]:
    """Close all descriptors by number, open files there, then use and close the endpoints.

    Returns how many frames found no room in the arena, and the sizes of the files.
    """
    writer = Writer(1, arena_bytes=16 * MIB)
    reader = Reader(writer.handle, 0)
    held = {fd for fd in range(3, 64) if os.path.exists(f"/proc/self/fd/{fd}")}  # noqa: PTH110
    ours = {fd for fd in held if "shmcast-" in os.readlink(f"/proc/self/fd/{fd}")}  # noqa: PTH115
    files = []
    for fd in ours:
        other = os.open(f"{folder}/{fd}", os.O_RDWR | os.O_CREAT)
        os.dup2(other, fd)
        os.close(other)
        files.append(fd)
    writer.send([0, np.ones(MIB, "u1")], timeout=5)
    assert reader.recv(5)[1].sum() == MIB
    full = writer.statistics().arena_full
    writer.close()
    reader.close()
    del writer, reader
    gc.collect()
    assert files
    return full, [os.fstat(fd).st_size for fd in files]


def test_a_file_that_took_a_segments_place_is_neither_grown_nor_closed(
    alone: Worker, tmp_path: Path
) -> None:
    full, sizes = alone.start(replace_descriptors, str(tmp_path)).result()
    assert full == 1  # no arena any more; the ring does it
    assert sizes == [0] * len(sizes)


CLOSED_STDIO = """
import os
[os.close(fd) for fd in range(3)]
import shmcast
from shmcast._host.process import Pidfd, start_time
writer = shmcast.Writer(1, arena_bytes=1 << 20)
reader = shmcast.Reader(writer.handle, 0)
mine = [fd for fd in range(64) if os.path.exists(f"/proc/self/fd/{fd}")
        and os.readlink(f"/proc/self/fd/{fd}").startswith(("/dev/shm/shmcast-", "anon_inode:"))]
assert len(mine) >= 5  # two segments' (one twice), the watcher's two
parent = Pidfd(os.getppid(), start_time(os.getppid()))
mine.append(parent.fileno())
for fd in range(3):
    try:
        os.write(fd, b"printed by a library" * 99)
    except OSError:
        pass
for number in range(70):
    writer.send(number, timeout=5)
    assert reader.recv(5) == number
os._exit(min(mine))
"""


def test_nothing_takes_a_descriptor_that_is_printed_to() -> None:
    run = subprocess.run([sys.executable, "-c", CLOSED_STDIO], timeout=50, check=False)  # noqa: S603
    assert 3 <= run.returncode < 64


# --- core dumps ---


def dumped(address: int) -> bool:
    """Return whether the mapping at an address of this process is in core dumps."""
    begins = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.startswith("VmFlags") and "-" in line.split()[0]:
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            begins = begin <= address < end
        elif begins and line.startswith("VmFlags"):
            return "dd" not in line.split()
    raise AssertionError("nothing is mapped there")


def dumped_mappings(chosen: str | None) -> list[bool]:
    """Return whether core dumps have the ring, the arena, a view of it and a private copy."""
    if chosen is not None:
        os.environ[shared_memory.DUMP_VARIABLE] = chosen
    import torch

    with Writer(1, arena_bytes=16 * MIB) as writer, Reader(writer.handle, 0) as reader:
        loan = writer.empty(MIB, "u1")
        writer.send([loan, torch.ones(MIB, dtype=torch.uint8)])
        view, tensor = reader.recv(5, copy=False)
        ring = next(
            int(line.split("-")[0], 16)
            for line in Path("/proc/self/maps").read_text().splitlines()
            if writer.handle.name in line
        )
        arrays = [array.__array_interface__["data"][0] for array in (loan, view)]
        return [dumped(address) for address in (ring, *arrays, tensor.data_ptr())]


@pytest.mark.parametrize(("chosen", "expected"), [(None, False), ("0", False), ("1", True)])
def test_core_dumps_have_no_segment_unless_asked_for(
    chosen: str | None, expected: bool, alone: Worker
) -> None:
    assert alone.start(dumped_mappings, chosen).result() == [expected] * 4


def test_another_word_for_the_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shared_memory.DUMP_VARIABLE, "yes")
    with pytest.raises(shmcast.InvalidArgument, match="SHMCAST_CORE_DUMP='yes' is neither"):
        Writer(1)


# --- users ---


def close_as_another_user() -> tuple[list[str], int, int]:
    """Change the user before readers attach, and close; return warnings, seats and descriptors."""
    held = open_segments()
    writer = Writer(1, arena_bytes=MIB)
    confined.become_another_user()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        writer.close()
    del writer
    gc.collect()
    return [str(warning.message) for warning in caught], os.getpid(), open_segments() - held


def open_segments() -> int:
    count = 0
    for fd in range(64):
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            count += status.st_dev == SHM.stat().st_dev and stat.S_ISREG(status.st_mode)
    return count


@needs_root
def test_a_change_of_user_before_the_end_costs_a_warning_only(alone: Worker) -> None:
    told, pid, left = alone.start(close_as_another_user).result()
    names = [path.name for path in SHM.glob(f"shmcast-0-*-{pid}-*")]
    assert len(told) == len(names) == 2
    assert all(any(name in text for text in told) for name in names)
    assert all(f"uid {confined.ANOTHER_UID}" in text for text in told)
    assert left == 0
    alone.end()
    shared_memory.clean()  # as root, who may
    assert not [name for name in names if (SHM / name).exists()]


def work_as_effective_user() -> list[object]:
    os.seteuid(confined.ANOTHER_UID)
    writer = Writer(2)
    found = [f.name for f in shared_memory.clean(dry_run=True)]
    with writer, Reader(writer.handle, 0) as reader:
        writer.send("attached")
        return [reader.recv(5), found == [writer.handle.name], writer.handle.name.split("-")[1]]


@needs_root
def test_what_counts_is_the_effective_user(alone: Worker) -> None:
    expected = ["attached", True, str(confined.ANOTHER_UID)]
    assert alone.start(work_as_effective_user).result() == expected


# --- the way in by a holder's descriptor ---


def attach(
    confine: Callable[[], object] | None, handle: Handle, index: int, rejoin: bool
) -> tuple[str, int, str]:
    """Attach a reader; return what was received, or the error."""
    if confine is not None:
        confine()
    try:
        with Reader(handle, index, rejoin=rejoin) as reader:
            return "received", 0, str(reader.recv(5))
    except shmcast.ShmcastError as error:
        return type(error).__name__, getattr(error, "errno", None) or 0, str(error)


def test_a_reader_finds_a_segment_whose_name_was_removed(alone: Worker) -> None:
    with Writer(1, arena_bytes=MIB) as writer:
        path_of(writer.handle.name).unlink()
        assert writer.handle.arena
        path_of(writer.handle.arena.name).unlink()
        job = alone.start(attach, None, writer.handle, 0, False)
        writer.send("by the writer's descriptor")
        assert job.result() == ("received", 0, "by the writer's descriptor")


def test_another_file_at_the_holders_descriptor_is_not_taken_for_the_segment(
    alone: Worker, tmp_path: Path
) -> None:
    with Writer(1) as writer:
        path_of(writer.handle.name).unlink()
        fd = writer.handle.holder[1]
        aside = os.dup(fd)
        with (tmp_path / "other").open("w") as other:
            os.dup2(other.fileno(), fd)
        kind, code, said = alone.start(attach, None, writer.handle, 0, False).result()
        assert (kind, code) == ("SegmentNotFound", errno.ENOENT)
        assert "the kernel lets" not in said
        os.dup2(aside, fd)
        os.close(aside)


@needs_root
@pytest.mark.parametrize("rejoin", [False, True])
@pytest.mark.parametrize(
    "confine",
    [confined.lose_capabilities, confined.enter_a_user_namespace],
    ids=["fewer capabilities", "another user namespace"],
)
def test_a_way_in_that_the_kernel_refuses_is_told_from_none(
    confine: Callable[[], object], rejoin: bool, alone: Worker
) -> None:
    with Writer(1) as writer:
        path_of(writer.handle.name).unlink()
        kind, code, said = alone.start(attach, confine, writer.handle, 0, rejoin).result()
        assert (kind, code) == ("SegmentNotFound", errno.EACCES)
        pid, fd = writer.handle.holder
        assert f"If process {pid} has made it, the kernel does not let this one in" in said
        assert f"/proc/{pid}/fd/{fd} (Permission denied)" in said
        assert "capabilities" in said


_kept: list[Writer] = []


def make_as_another_user() -> Handle:
    """Make a writer, whose process the kernel takes to know root's secrets."""
    confined.become_another_user()
    _kept.append(Writer(1))
    path_of(_kept[-1].handle.name).unlink()
    return _kept[-1].handle


@needs_root
@pytest.mark.skipif("hidepid" in Path("/proc/mounts").read_text(), reason="/proc hides processes")
def test_a_writer_that_has_changed_its_user_is_closed_to_its_new_self(alone: Worker) -> None:
    with confined.process("the writer's") as other:
        handle = other.start(make_as_another_user).result()
        confine = confined.become_another_user
        kind, code, said = alone.start(attach, confine, handle, 0, True).result()
    assert (kind, code) == ("SegmentNotFound", errno.EACCES)
    assert "has not changed its user" in said


def clean_beside_another_pid_namespace() -> list[object]:
    """Look at a segment of another pid namespace from here, and attach to it."""
    incoming, outgoing = os.pipe()
    confined.make_pid_namespace()
    pid = os.fork()
    if pid == 0:  # process 1, there
        writer = Writer(1)
        writer.send(os.getpid())
        os.write(outgoing, pickle.dumps(writer.handle))
        signal.pause()
    try:
        handle = pickle.loads(os.read(incoming, 4096))  # noqa: S301
        owners = [f.owner for f in shared_memory.clean() if f.name == handle.name]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with Reader(handle, 0) as reader:
                return [owners[0].name, reader.recv(5), "once a second" in str(caught[0].message)]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@needs_root
def test_a_segment_of_another_pid_namespace_is_left_alone(alone: Worker) -> None:
    outcome = alone.start(clean_beside_another_pid_namespace).result()
    assert outcome == ["ELSEWHERE", 1, True]  # (after unshare(2), a process can't start threads)


def test_every_step_of_an_ending_is_taken_whatever_the_others_raise() -> None:
    writer = Writer(1, arena_bytes=MIB)
    fds = [writer.handle.holder[1]]
    taken = []

    def fail() -> None:
        taken.append("failed")
        raise RuntimeError("a step failed")

    writer._end._ending.begin_with(fail)
    with pytest.raises(RuntimeError, match="a step failed"):
        writer.close()
    writer.close()
    assert taken == ["failed"]
    assert not path_of(writer.handle.name).exists()
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_an_interrupted_ending_is_finished_all_the_same() -> None:
    writer = Writer(1)
    interrupts = iter([KeyboardInterrupt()])

    def interrupted() -> None:
        for interrupt in interrupts:
            raise interrupt

    writer._end._ending.begin_with(interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.close()
    assert not path_of(writer.handle.name).exists()
    writer.close()
    assert not path_of(writer.handle.name).exists()


def crash(handle: Handle, folder: str) -> None:
    """Die by a signal that dumps the core."""
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    reader = Reader(handle, 0)
    reader.recv(5)
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_crash_takes_no_memory_of_the_arena(alone: Worker, tmp_path: Path) -> None:
    with Writer(1, arena_bytes=256 * MIB) as writer:
        job = alone.start(crash, writer.handle, str(tmp_path))
        writer.send("crash")
        with pytest.raises(WorkerFailed, match=f"exit code {-signal.SIGSEGV}"):
            job.result()
        assert writer.handle.arena
        assert os.fstat(writer.handle.arena.fd).st_blocks == 0

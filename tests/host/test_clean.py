"""What a killed process leaves, the next start or `clean` removes; and nothing else."""

from __future__ import annotations

import contextlib
import errno
import mmap
import multiprocessing
import os
import random
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from shmcast import (
    Handle,
    HostError,
    Reader,
    SharedMemoryFull,
    ShmcastWarning,
    Writer,
    __main__,
)
from shmcast._endpoints.frame_end import FrameEnd
from shmcast._host import shared_memory
from shmcast._host.housekeeping import Housekeeping
from shmcast._host.shared_memory import OwnerState
from tests.support.confined import in_namespaces
from tests.support.permissions import needs_own_shm
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until

SHM = Path("/dev/shm")
NAMESPACE = Path("/proc/self/ns/pid").stat().st_ino
START = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])


def die(*_args: object, **_options: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("outlived SIGKILL")


def reserve_a_part(fd: int, size: int) -> None:
    os.posix_fallocate(fd, 0, size // 2)
    die()


def reserve_and_die(fd: int, size: int) -> None:
    os.posix_fallocate(fd, 0, size)
    die()


def map_and_die(fd: int, size: int) -> None:
    mmap.mmap(fd, size)
    die()


# Where a process is killed: what it was about to call, and what it calls instead.
WRITER_DEATHS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "after shm_open": (os, "fchmod", die),
    "in posix_fallocate": (shared_memory, "_reserve", reserve_a_part),
    "after posix_fallocate": (shared_memory, "_reserve", reserve_and_die),
    "before mapping": (shared_memory, "_map", die),
    "after mapping": (shared_memory, "_map", map_and_die),
    "when formatted": (FrameEnd, "_end_when_collected", die),
    "before readers attach": (Writer, "wait_ready", die),
}
READER_DEATHS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "after shm_open": (os, "fstat", die),
    "after mapping": (shared_memory, "_map", map_and_die),
    "when seated": (FrameEnd, "_end_when_collected", die),
    "before it removes the name": (shared_memory, "unlink", die),
}


def die_as_writer(point: str) -> None:
    owner, name, instead = WRITER_DEATHS[point]
    setattr(owner, name, instead)
    Writer(2).wait_ready()


def die_as_reader(point: str, handle: Handle) -> None:
    owner, name, instead = READER_DEATHS[point]
    setattr(owner, name, instead)
    Reader(handle, 0)


def run_until_killed(function: Callable[..., None], *args: object) -> int:
    """Run the function in a process of its own, which must die; return its pid."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert process.pid
    return process.pid


def left_by(pid: int) -> list[str]:
    return [path.name for path in SHM.glob(f"shmcast-{os.getuid()}-{NAMESPACE}-{pid}-*")]


@pytest.fixture
def as_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process clean with its next writer, as if it had made none."""
    anew = Housekeeping(lambda: shared_memory.clean(), shared_memory._is_crowded, 60)
    monkeypatch.setattr(shared_memory, "_housekeeping", anew)


@needs_own_shm
@pytest.mark.parametrize("point", WRITER_DEATHS)
@pytest.mark.usefixtures("as_at_the_start")
def test_the_next_start_removes_what_a_writer_killed_in_set_up_has_left(point: str) -> None:
    pid = run_until_killed(die_as_writer, point)
    assert len(left_by(pid)) == 1
    Writer(1).close()
    assert not left_by(pid)


@needs_own_shm
@pytest.mark.usefixtures("as_at_the_start")
def test_where_there_are_many_files_a_start_does_not_wait_for_the_cleaning(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(start=START - 1)
    crowd = [SHM / f"not-ours-{k}" for k in range(200)]
    is_open = threading.Event()
    listing = Path.glob

    def glob(self: Path, pattern: str) -> Iterator[Path]:
        assert is_open.wait(40)
        return listing(self, pattern)

    monkeypatch.setattr(Path, "glob", glob)
    try:
        for file in crowd:
            file.touch()
        Writer(1).close()
        assert path.exists()
        is_open.set()
        wait_until(lambda: not path.exists())
    finally:
        is_open.set()
        for file in crowd:
            file.unlink(missing_ok=True)


def cleanings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the pids of the processes that have cleaned, as they do."""
    done: list[int] = []
    clean = shared_memory.clean

    def counted(dry_run: bool = False) -> list[shared_memory.Found]:
        done.append(os.getpid())
        return clean(dry_run)

    monkeypatch.setattr(shared_memory, "clean", counted)
    return done


@pytest.mark.usefixtures("as_at_the_start")
def test_a_process_cleans_at_most_once_in_a_while_and_each_fork_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = cleanings(monkeypatch)
    for _ in range(3):
        Writer(1).close()
    assert done == [os.getpid()]
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            Writer(1).close()
        os._exit(len(done))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 2
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    Writer(1).close()
    assert done == [os.getpid()] * 2


@needs_own_shm
def test_where_there_is_no_room_what_was_left_is_removed_first(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(start=START - 1)
    reserve = shared_memory._reserve

    def scarce(fd: int, size: int) -> None:
        if path.exists():
            raise SharedMemoryFull(errno.ENOSPC, "no room")
        reserve(fd, size)

    monkeypatch.setattr(shared_memory, "_housekeeping", Housekeeping(list, bool, 60))
    monkeypatch.setattr(shared_memory, "_reserve", scarce)
    done = cleanings(monkeypatch)
    Writer(1).close()
    assert not path.exists()
    assert len(done) == 1
    path.touch()
    monkeypatch.setattr(shared_memory, "clean", list)
    with pytest.raises(SharedMemoryFull, match="no room"):
        Writer(1)


def test_what_fails_in_the_cleaning_fails_no_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> NoReturn:
        raise OSError(errno.EIO, "broken")

    anew = Housekeeping(fails, lambda: False, 60)
    monkeypatch.setattr(shared_memory, "_housekeeping", anew)
    Writer(1).close()
    assert anew._pid == os.getpid()


@needs_own_shm
def test_a_folder_that_is_missing_is_no_business_of_the_housekeeping(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shared_memory, "_SHM_FOLDER", tmp_path / "missing")
    anew = Housekeeping(shared_memory.clean, shared_memory._is_crowded, 60)
    monkeypatch.setattr(shared_memory, "_housekeeping", anew)
    Writer(1).close()  # whoever can't make a file there is told so by the attempt


def test_clean_removes_what_was_left_and_says_so() -> None:
    pid = run_until_killed(die_as_writer, "before readers attach")
    (name,) = left_by(pid)
    said = f"/{name}  {(SHM / name).stat().st_blocks * 512} bytes  pid {pid}"
    assert f"{said}  would be removed: its owner is dead\n" in run_clean("--dry-run")
    assert left_by(pid) == [name]
    assert f"{said}  removed: its owner is dead\n" in run_clean()
    assert not left_by(pid)
    assert name not in run_clean()


@needs_own_shm
def test_what_can_not_be_removed_is_not_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = run_until_killed(die_as_writer, "before readers attach")
    with monkeypatch.context() as patched:

        def refuse(_path: Path, missing_ok: bool = False) -> NoReturn:
            raise PermissionError(errno.EPERM, "no")

        patched.setattr(Path, "unlink", refuse)
        with pytest.warns(ShmcastWarning, match="stays in /dev/shm: unlink"):
            found = [f for f in shared_memory.clean() if f.pid == pid]
    assert [f.owner for f in found] == [OwnerState.STAYS]
    shared_memory.clean()
    assert not left_by(pid)


def test_clean_without_proc_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "none", "/proc/self/ns/pid")

    with Writer(1):
        monkeypatch.setattr(shared_memory, "pid_namespace", missing)
        with pytest.raises(HostError, match=r"clean: /proc: .*mount -t proc"):
            shared_memory.clean()
        monkeypatch.setattr(sys, "argv", ["shmcast", "clean"])
        with pytest.raises(SystemExit, match="mount -t proc"):
            __main__.main()


def run_clean(*options: str) -> str:
    return run_module("clean", *options)


def run_module(*arguments: str) -> str:
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-m", "shmcast", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_without_a_command_there_is_help() -> None:
    assert "clean" in run_module()


@pytest.mark.parametrize("point", READER_DEATHS)
def test_a_killed_reader_leaves_nothing_and_costs_no_living_writer_its_segment(point: str) -> None:
    with Writer(1) as writer:
        run_until_killed(die_as_reader, point, writer.handle)
        Writer(1).close()
        assert (SHM / writer.handle.name[1:]).exists()
    assert not (SHM / writer.handle.name[1:]).exists()


def kill_at_random(_index: int, seed: int, rounds: int) -> list[str]:
    """Kill processes that make endpoints all the time; return what can't be cleaned up."""
    delay = random.Random(seed)  # noqa: S311
    for _ in range(rounds):
        pid = os.fork()
        if pid == 0:
            while True:
                with Writer(2, slots=2, slot_bytes=128) as writer, Reader(writer.handle, 0):
                    Reader(writer.handle, 1).close()
        time.sleep(delay.random() * 0.004)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        shared_memory.clean()
        if left := left_by(pid):
            return left
    return []


def test_a_kill_at_any_moment_leaves_nothing_that_clean_does_not_remove(crew: Crew) -> None:
    assert crew.run(1, kill_at_random, 7, 200) == [[]]


@pytest.fixture
def make() -> Iterator[Callable[..., Path]]:
    """Make files that are named as if someone's segments were left; remove them in the end."""
    made = []

    def make(
        uid: int | None = None, namespace: int = NAMESPACE, pid: int | None = None, start: int = 1
    ) -> Path:
        uid = os.getuid() if uid is None else uid
        pid = os.getpid() if pid is None else pid
        path = SHM / f"shmcast-{uid}-{namespace}-{pid}-{start}-{secrets.token_hex(8)}"
        path.write_bytes(b"left")
        made.append(path)
        return path

    yield make
    for path in made:
        path.unlink(missing_ok=True)


def owner_state(path: Path, dry_run: bool = False) -> OwnerState | None:
    """Return what `clean` says of that file; None if it does not care."""
    owners = {found.name: found.owner for found in shared_memory.clean(dry_run)}
    return owners.get(f"/{path.name}")


def test_a_process_that_has_the_pid_of_a_dead_owner_is_not_the_owner(
    make: Callable[..., Path],
) -> None:
    path = make(start=START - 1)
    assert owner_state(path, dry_run=True) is OwnerState.DEAD
    assert path.exists()
    assert owner_state(path) is OwnerState.DEAD
    assert not path.exists()


def test_a_zombie_is_dead(make: Callable[..., Path]) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        assert fields[0] == "Z"
        assert owner_state(make(pid=process.pid, start=int(fields[19]))) is OwnerState.DEAD


@pytest.mark.parametrize("start", ["None", "1"])
def test_a_name_without_a_known_start_is_judged_by_the_locks(start: str) -> None:
    with Writer(1, arena_bytes=1 << 20) as writer:
        assert writer.handle.arena is not None
        paths = [SHM / name[1:] for name in (writer.handle.name, writer.handle.arena.name)]
        others = []
        for path in paths:
            fields = path.name.split("-")
            others.append(path.with_name("-".join([*fields[:4], start, *fields[5:]])))
            os.link(path, others[-1])
        assert {owner_state(path) for path in others} == {OwnerState.ALIVE}
        writer.close()
        judged = {found.name: found.owner for found in shared_memory.clean()}
        dead = {judged[f"/{path.name}"] for path in others}
        assert dead == {OwnerState.DEAD}  # although its process lives
        assert not any(path.exists() for path in others)


def test_what_a_living_process_owns_is_kept(make: Callable[..., Path]) -> None:
    path = make(start=START)
    assert owner_state(path) is OwnerState.ALIVE
    with Writer(1) as writer:
        assert owner_state(SHM / writer.handle.name[1:]) is OwnerState.ALIVE
        assert f"{writer.handle.name}  " in run_clean()
        with Reader(writer.handle, 0) as reader:
            writer.send("in use")
            assert reader.recv(10) == "in use"
    assert path.exists()


def test_what_another_pid_namespace_owns_is_kept(make: Callable[..., Path]) -> None:
    path = make(namespace=NAMESPACE + 1)
    assert owner_state(path) is OwnerState.ELSEWHERE
    assert f"kept: {OwnerState.ELSEWHERE.value}" in run_clean()
    assert path.exists()


ELSEWHERE = """
import sys
from shmcast import Writer
from shmcast._host import shared_memory
with Writer(1) as writer:
    owners = {found.name: found.owner.name for found in shared_memory.clean()}
    print(owners[sys.argv[1]], owners[writer.handle.name])
"""


@pytest.mark.parametrize("proc", [[], ["--mount-proc"]], ids=["the old /proc", "its own /proc"])
def test_in_another_pid_namespace_only_its_own_segments_are_judged(proc: list[str]) -> None:
    command = in_namespaces("--pid", *proc)
    with Writer(1) as writer:
        ran = subprocess.run(  # noqa: S603
            [*command, sys.executable, "-c", ELSEWHERE, writer.handle.name],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert (ran.stdout, ran.stderr) == ("ELSEWHERE ALIVE\n", "")
        Reader(writer.handle, 0).close()


def test_what_another_user_owns_is_not_touched(make: Callable[..., Path]) -> None:
    path = make(uid=os.getuid() + 1)
    assert owner_state(path) is None
    assert path.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_another_users_file_is_not_touched_whatever_its_name_says(
    make: Callable[..., Path],
) -> None:
    path = make()
    os.chown(path, 1, -1)
    assert owner_state(path) is None
    assert path.exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO])
def test_what_is_no_file_is_not_touched(make: Callable[..., Path], kind: int) -> None:
    path = make()
    path.unlink()
    if kind == stat.S_IFLNK:
        path.symlink_to("/nowhere")
    elif kind == stat.S_IFDIR:
        path.mkdir()
    else:
        os.mkfifo(path)
    assert owner_state(path) is None
    assert stat.S_IFMT(path.lstat().st_mode) == kind
    if kind == stat.S_IFDIR:
        path.rmdir()


@pytest.mark.parametrize("suffix", ["", "-1-2-3", "-1-2-3-4-xyz", "-1-2-3-4-0123456789abcdef.bak"])
def test_other_files_in_shared_memory_are_not_touched(suffix: str) -> None:
    path = SHM / f"shmcast-{os.getuid()}{suffix}"
    path.touch()
    try:
        assert owner_state(path) is None
        assert path.exists()
    finally:
        path.unlink()

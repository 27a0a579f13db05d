"""The arena between processes that die, stop, fork and exit; and its names."""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

import shmcast
from shmcast import Reader, Writer
from shmcast._host import shared_memory
from tests.support import arena_roles
from tests.support.arena import address, check_whole, is_free
from tests.support.arena_roles import ARENA, LARGE, MIB, SECONDS, RawCodec, filled
from tests.support.processes import Crew, results
from tests.support.subprocess_programs import TorchPrograms, wait_until


def has_said(writer: Writer, index: int, times: int = 1) -> Callable[[], bool]:
    return lambda: writer._end.tensor_sets()[index] >= times


@pytest.mark.parametrize("on_death", ["raise", "drop"])
def test_what_a_killed_reader_held_is_free(crew: Crew, on_death: Any) -> None:
    with (
        Writer(2, arena_bytes=ARENA, on_reader_death=on_death) as writer,
        Reader(writer.handle, 1) as other,
    ):
        job = crew.workers[0].start(arena_roles.hold, 0, writer.handle, 2)
        writer.wait_ready(SECONDS)
        for k in range(3):  # the last is unread there
            writer.send(filled(MIB, k))
        kept = [other.recv(SECONDS, copy=False) for _ in range(2)]
        other.recv(SECONDS)
        wait_until(has_said(writer, 0))
        kept.clear()
        assert not is_free(writer)
        job.kill()
        wait_until(lambda: is_free(writer))
        if on_death == "drop":
            for _ in range(100):
                check_whole(writer, other)
        else:
            with pytest.raises(shmcast.PeerDied):
                writer.send("told at once")


def test_a_replacement_holds_what_it_receives_and_its_predecessors_views_are_free(
    crew: Crew,
) -> None:
    with Writer(1, slots=4, arena_bytes=ARENA, on_reader_death="drop") as writer:
        job = crew.workers[0].start(arena_roles.hold, 0, writer.handle, 1)
        for turn in range(3):
            wait_until(lambda: writer._end._ring.peers()[0].state in ("attached", "rejoining"))
            writer.send(filled(MIB, turn), SECONDS)
            wait_until(has_said(writer, 0, turn + 1))
            assert not is_free(writer)
            job.kill()
            if turn == 1:  # before anybody takes the place, or after
                wait_until(lambda: is_free(writer))
            job = crew.workers[0].start(arena_roles.hold, 0, writer.handle, 1, True)
            wait_until(lambda: writer._end._ring.peers()[0].state == "rejoining")
        job.kill()
        with Reader(writer.handle, 0, rejoin=True) as reader:
            writer.send(filled(MIB, 9))
            view = reader.recv(SECONDS, copy=False)
            for k in range(10):
                assert not is_free(writer)
                writer.send(filled(LARGE, k))
                assert np.array_equal(reader.recv(SECONDS, copy=False), filled(LARGE, k))
                assert np.array_equal(view, filled(MIB, 9))
            del view
            check_whole(writer, reader)


def test_what_the_dead_held_is_free_even_if_their_replacement_leaves_at_once(crew: Crew) -> None:
    with (
        Writer(2, arena_bytes=ARENA, on_reader_death="drop") as writer,
        Reader(writer.handle, 1) as other,
    ):
        job = crew.workers[0].start(arena_roles.hold, 0, writer.handle, 1)
        writer.wait_ready(SECONDS)
        writer.send(filled(MIB))
        other.recv(SECONDS)
        wait_until(has_said(writer, 0))
        job.kill()
        Reader(writer.handle, 0, rejoin=True).close()
        check_whole(writer, other)


def test_a_message_that_is_refused_admits_nobody(crew: Crew) -> None:
    shape: dict[str, Any] = {"arena_bytes": MIB, "on_reader_death": "drop", "codec": RawCodec()}
    with Writer(1, **shape) as writer, contextlib.closing(mmap.mmap(-1, 1 << 30)) as untouched:
        job = crew.workers[0].start(arena_roles.hold_raw, 0, writer.handle)
        writer.send([b"", bytes(MIB)])
        wait_until(has_said(writer, 0))
        job.kill()
        wait_until(lambda: is_free(writer))
        with Reader(writer.handle, 0, rejoin=True, codec=RawCodec()) as reader:
            with (
                memoryview(untouched) as gibibyte,
                pytest.raises(shmcast.MessageTooLarge, match="1099511627776 bytes"),
            ):
                writer.send([gibibyte] * 1024)
            writer.send([b"", b"x" * MIB])
            view = reader.recv(SECONDS, copy=False)[1]
            assert view.readonly
            assert not is_free(writer)
            del view
            assert is_free(writer)


def test_a_stopped_reader_is_not_dead(crew: Crew) -> None:
    with Writer(1, arena_bytes=ARENA) as writer:
        job = crew.workers[0].start(arena_roles.hold_until_told, 0, writer.handle)
        pid = job.worker.pid
        writer.send(filled(MIB))
        wait_until(has_said(writer, 0))
        os.kill(pid, signal.SIGSTOP)
        assert not is_free(writer)
        assert address(writer.empty(3 * MIB, np.uint8))
        os.kill(pid, signal.SIGCONT)
        assert not is_free(writer)
        writer.send("let go")
        wait_until(has_said(writer, 0, 2))
        assert is_free(writer)
        writer.send("end")
        job.result()


def test_views_outlive_the_death_of_the_writer(crew: Crew, tmp_path: Path) -> None:
    path = tmp_path / "handle"
    job = crew.workers[0].start(arena_roles.write_and_die, 0, path)
    wait_until(path.exists)
    with Reader(pickle.loads(path.read_bytes()), 0) as reader:  # noqa: S301
        array, other = reader.recv(SECONDS, copy=False)
        wait_until(lambda: reader._end._ring.peers()[0].behind == 1)
        job.kill()
        assert np.array_equal(array, filled(MIB, 3))
        assert np.array_equal(other, filled(MIB, 4))
        assert np.array_equal(reader.recv(SECONDS, copy=False), filled(MIB, 5))
        with pytest.raises(shmcast.PeerDied):
            reader.recv(SECONDS)
        assert np.array_equal(array, filled(MIB, 3))


def test_readers_that_copy_and_readers_that_keep_views_all_get_everything(
    crew: Crew,
) -> None:
    rng = random.Random(5)  # noqa: S311
    with Writer(4, arena_bytes=ARENA, slot_bytes=8192) as writer:
        jobs = crew.start(4, arena_roles.receive_and_keep, writer.handle, 5)
        for number in range(150):
            nbytes = rng.choice((10, 50_000, LARGE, 400_000, MIB))
            writer.send((number, filled(nbytes, number)), SECONDS)
        writer.send(None, SECONDS)
        views = results(jobs)
        assert views[0] > views[2] > views[3] == 0
        assert is_free(writer)  # the workers have closed and let go of all
        figures = writer.statistics()
        assert figures.arena_frames > 0
        assert [r.arena_frames for r in figures.readers] == [figures.arena_frames] * 4


FORK = """
import os, sys, numpy as np, torch, shmcast
writer = shmcast.Writer(1, arena_bytes=1 << 20)
reader = shmcast.Reader(writer.handle, 0)
writer.send([np.full(1 << 18, 3, np.uint8), torch.full((1 << 18,), 4, dtype=torch.uint8)])
array, tensor = reader.recv(10, copy=False)
loan = writer.empty(10, np.uint8)
def room():
    before = writer.statistics().arena_full
    writer.empty(1 << 20, np.uint8)
    return writer.statistics().arena_full == before
torch.set_num_threads(1)  # no pool of threads survives a fork
pid = os.fork()
if pid == 0:
    assert (array == 3).all() and (tensor == 4).all()
    tensor += 1
    reader.close()
    del array, tensor, loan, reader
    sys.exit()  # with all that runs at exit
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert not room()
assert (array == 3).all() and (tensor == 4).all()
del array, loan
assert not room()
del tensor
assert room()
print("done")
"""


EXIT = """
import numpy as np, torch, shmcast
writer = shmcast.Writer(2, arena_bytes=1 << 22)
reader = shmcast.Reader(writer.handle, 0)
loans = [writer.empty(1 << 19, np.uint8), writer.empty_tensor(1 << 19, dtype=torch.uint8)]
writer.send([*loans, np.ones(1 << 19, np.uint8), torch.ones(1 << 19)])
unread = writer.empty(10)
got = reader.recv(10, copy=False)
views = [part[1:] for part in got]
buffer = memoryview(got[0])
cycle = [views, loans]
cycle.append(cycle)
print("done")
"""


EXIT_AFTER_CLOSE = EXIT.replace("print(", "reader.close(); writer.close(); del writer\nprint(")


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(FORK, id="a forked child's views do not release its parent's"),
        pytest.param(EXIT, id="exit with live views and loans is clean"),
        pytest.param(EXIT_AFTER_CLOSE, id="exit with views of closed endpoints is clean"),
    ],
)
def test_program(torch_programs: TorchPrograms, program: str) -> None:
    ran = torch_programs.run_to_its_end(program)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


# Names


def names(writer: Writer) -> list[Path]:
    assert writer.handle.arena is not None
    return [Path("/dev/shm", name[1:]) for name in (writer.handle.name, writer.handle.arena.name)]


def exist(paths: Sequence[Path]) -> list[bool]:
    return [path.exists() for path in paths]


def test_both_names_are_gone_when_all_have_attached() -> None:
    with Writer(2, arena_bytes=ARENA) as writer:
        paths = names(writer)
        with Reader(writer.handle, 0):
            assert exist(paths) == [True, True]
            assert [path.stat().st_mode & 0o777 for path in paths] == [0o600, 0o600]
            with Reader(writer.handle, 1):
                assert exist(paths) == [False, False]


@pytest.mark.parametrize("end", ["close", "collect"])
@pytest.mark.usefixtures("no_gc")  # which closes what other tests have left
def test_both_names_are_gone_when_the_writer_is(end: str) -> None:
    writer = Writer(2, arena_bytes=ARENA)
    paths = names(writer)
    files = len([*Path("/proc/self/fd").iterdir()])
    assert exist(paths) == [True, True]
    if end == "close":
        writer.close()
    del writer
    assert exist(paths) == [False, False]
    assert len([*Path("/proc/self/fd").iterdir()]) < files


@pytest.mark.usefixtures("no_gc")  # which closes what other tests have left
def test_a_writer_that_cannot_be_made_leaves_no_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_size: int) -> NoReturn:
        raise shmcast.SharedMemoryFull("full")

    Writer(1).close()  # opens what stays open
    files = len([*Path("/proc/self/fd").iterdir()])
    monkeypatch.setattr(shared_memory, "create", fail)
    with pytest.raises(shmcast.SharedMemoryFull):
        Writer(1, arena_bytes=ARENA)
    assert len([*Path("/proc/self/fd").iterdir()]) == files

    # (That no segment is left, every test checks.)


def test_clean_removes_the_arena_of_a_killed_writer(crew: Crew, tmp_path: Path) -> None:
    path = tmp_path / "handle"
    job = crew.workers[0].start(arena_roles.write_and_die, 0, path)
    wait_until(path.exists)
    handle = pickle.loads(path.read_bytes())  # noqa: S301
    assert handle.arena is not None
    left = [Path("/dev/shm", name[1:]) for name in (handle.name, handle.arena.name)]
    assert exist(left) == [True, True]
    job.kill()
    # (What it prints is not looked at: another process may be faster.)
    subprocess.run([sys.executable, "-m", "shmcast", "clean"], timeout=50, check=True)
    assert exist(left) == [False, False]

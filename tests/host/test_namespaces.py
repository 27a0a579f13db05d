"""Members in namespaces of their own: who lives is told by locks, whatever pids and clocks say."""

from __future__ import annotations

import base64
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shmcast import Reader, Writer
from shmcast._host import shared_memory
from shmcast._host.places import Places
from tests.support.confined import in_namespaces
from tests.support.endings import SECONDS
from tests.support.permissions import needs_own_shm
from tests.support.ring_roles import send_until_told
from tests.support.subprocess_programs import ROOT

READ_THEN_DIE = """
import base64, os, pickle, sys
from shmcast import Reader
reader = Reader(pickle.loads(base64.b64decode(sys.argv[1])), 0)
assert reader.recv(20) == "hello"
print("read", flush=True)
sys.stdin.read()
os._exit(9)
"""

LEAVE_A_SEGMENT = """
import os
from shmcast import Writer
writer = Writer(1, arena_bytes=1 << 20)
print(writer.handle.name, writer.handle.arena.name, flush=True)
input()
os.kill(os.getpid(), 9)
os._exit(9)
"""


def start(command: list[str], program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603
        [*command, sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "kinds",
    [
        ("--pid",),
        ("--pid", "--mount-proc"),
        ("--time", "--boottime", "100000"),
        ("--pid", "--mount-proc", "--time", "--boottime", "100000"),
    ],
    ids=" ".join,
)
def test_a_peer_in_other_namespaces_lives_until_it_dies(kinds: tuple[str, ...]) -> None:
    command = in_namespaces(*kinds)
    with Writer(1, slots=2**14, slot_bytes=256) as writer:
        handle = base64.b64encode(pickle.dumps(writer.handle)).decode()
        with start(command, READ_THEN_DIE, handle) as process:
            writer.wait_ready(SECONDS)
            writer.send("hello")
            assert process.stdout is not None
            assert process.stdout.readline() == "read\n"
            writer._end._watch.observe(writer._end._ring.peers())
            for k in range(100):  # as long as it lives, nobody says that it died
                writer.send(k)
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
            told = send_until_told(writer)
            assert told.peer == "reader 0"


def test_the_same_pid_in_another_namespace_is_another_process() -> None:
    command = in_namespaces("--pid", "--mount-proc")
    program = """
import os, sys, base64, pickle
from shmcast import PeerDied, Writer
assert os.getpid() == 1
writer = Writer(1, slots=2**14, slot_bytes=256)
print(base64.b64encode(pickle.dumps(writer.handle)).decode(), flush=True)
writer.wait_ready(20)
writer.send("hello")
try:
    while True:
        input()
        writer.send("more")
except PeerDied as error:
    print(error.pid, flush=True)
"""
    with start(command, program) as author:
        assert author.stdout is not None
        assert author.stdin is not None
        handle = author.stdout.readline().strip()
        with start(command, READ_THEN_DIE, handle) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            assert process.stdout.readline() == "read\n"
            process.stdin.close()
            process.wait()
        give_up = time.monotonic() + SECONDS
        while author.poll() is None and time.monotonic() < give_up:
            try:
                author.stdin.write("\n")
                author.stdin.flush()
            except BrokenPipeError:
                break
            time.sleep(0.01)
        assert author.stdout.readline() == "1\n"


@needs_own_shm
@pytest.mark.parametrize("kinds", [("--pid",), ("--pid", "--mount-proc")], ids=" ".join)
def test_what_a_killed_writer_of_another_namespace_left_is_removed(kinds: tuple[str, ...]) -> None:
    command = in_namespaces(*kinds)
    with start(command, LEAVE_A_SEGMENT) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        paths = [Path("/dev/shm", name[1:]) for name in process.stdout.readline().split()]
        assert len(paths) == 2  # the ring and the arena
        shared_memory.clean()
        assert all(path.exists() for path in paths)  # their owner lives
        process.stdin.write("\n")
        process.stdin.close()
        process.wait()
    assert all(path.exists() for path in paths)
    shared_memory.clean()
    assert not any(path.exists() for path in paths)


IN_A_FOREIGN_PROC = """
import os, signal, subprocess, sys, time
from pathlib import Path

from shmcast import PeerDied, Writer
from tests.host.test_namespaces import READ_THEN_DIE, encoded

def skip_to(first):
    # The next process has the first number from there on, which /proc has, or has not.
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(first - 1))

number, mode, ending = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if os.getpid() == 1:  # so that the writer's own number is not that of /proc
    skip_to(number)
    sys.exit(subprocess.call([sys.executable, "-c", sys.orig_argv[2], *sys.argv[1:]]))
told = []
on_death = told.append if mode == "drop" else None
writer = Writer(2, slots=2**14, slot_bytes=256, on_reader_death=mode, on_death=on_death)
print(writer.handle.name, flush=True)
readers = [
    subprocess.Popen(
        [sys.executable, "-c", READ_THEN_DIE.replace("), 0)", f"), {k})"), encoded(writer)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    for k in range(2)
]
writer.wait_ready(20)
writer.send("hello")
for reader in readers:
    assert reader.stdout.readline() == b"read\\n"
for k in range(100):
    writer.send(k)
if ending == "kill":
    readers[0].kill()
else:
    readers[0].stdin.close()
readers[0].wait()
try:
    while not told:
        writer.send("more", 20)
        time.sleep(0.001)  # as to readers that keep up
except PeerDied as error:
    told = [error]
print(told[0].peer, told[0].pid == readers[0].pid, told[0].how, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def encoded(writer: Writer) -> str:
    return base64.b64encode(pickle.dumps(writer.handle)).decode()


@pytest.mark.parametrize("number", ["of nobody in /proc", "of others in /proc"])
@pytest.mark.parametrize("mode", ["raise", "drop"])
@pytest.mark.parametrize(
    ("ending", "how"), [("kill", "killed by SIGKILL"), ("exit", "exit code 9")]
)
def test_a_proc_that_numbers_processes_otherwise_hides_no_death(
    number: str, mode: str, ending: str, how: str
) -> None:
    command = in_namespaces("--pid")
    first = 2
    if number == "of nobody in /proc":
        taken = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
        first = next(n for n in range(9000, 30000) if taken.isdisjoint(range(n, n + 50)))
    with start(command, IN_A_FOREIGN_PROC, str(first), mode, ending) as process:
        assert process.stdout is not None
        segment = process.stdout.readline().strip()
        assert process.stdout.readline() == f"reader 0 True {how}\n"
    shared_memory.clean()
    assert not Path("/dev/shm", segment[1:]).exists()


def test_an_arena_that_is_being_made_elsewhere_is_left_alone() -> None:
    path = Path(f"/dev/shm/shmcast-{os.geteuid()}-1-1-1-{os.urandom(8).hex()}-arena")
    path.touch(0o600)
    try:
        shared_memory.clean()
        assert path.exists()
        os.truncate(path, 4096)  # it would have been locked before
        shared_memory.clean()
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


def test_without_locks_an_arena_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Places, "hold", lambda *_: None)
    with Writer(1, arena_bytes=1 << 20) as writer:
        assert writer.handle.arena is not None
        assert not writer.handle.arena.name.endswith("-arena")
        assert not writer._end._ring.peers()[-1].holds_lock


def test_a_living_writer_of_another_time_keeps_its_segment() -> None:
    command = in_namespaces("--time", "--boottime", "100000")
    with start(command, LEAVE_A_SEGMENT) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        names = process.stdout.readline().split()
        found = {segment.name: segment.owner for segment in shared_memory.clean()}
        assert {found[name] for name in names} == {shared_memory.OwnerState.ALIVE}
        process.stdin.write("\n")
        process.stdin.close()
        process.wait()
    found = {segment.name: segment.owner for segment in shared_memory.clean()}
    assert {found[name] for name in names} == {shared_memory.OwnerState.DEAD}


def test_a_lock_outlives_closed_descriptors_and_forks() -> None:
    program = """
import os, sys, base64, pickle
from shmcast import Reader
reader = Reader(pickle.loads(base64.b64decode(sys.argv[1])), 0)
keep = {0, 1, 2}
os.closerange(3, 1024)
assert reader.recv(20) == "hello"
if (child := os.fork()) == 0:
    os.read(0, 1)  # lives on when its parent has died
    os._exit(0)
print(child, flush=True)
os.read(0, 1)
os._exit(5)
"""
    with Writer(1, slots=2**14, slot_bytes=256) as writer:
        handle = base64.b64encode(pickle.dumps(writer.handle)).decode()
        with start([], program, handle) as process:
            writer.wait_ready(SECONDS)
            writer.send("hello")
            assert process.stdout is not None
            child = int(process.stdout.readline())
            peer = writer._end._ring.peers()[0]
            assert peer.holds_lock
            places = writer._end._watch._places
            assert places.is_held(0)
            os.kill(process.pid, 9)
            process.wait()
            assert places.is_held(0) is False
            told = send_until_told(writer)
            assert told.how == "killed by SIGKILL"
            os.kill(child, 9)


def test_in_one_process_each_place_has_its_own_lock() -> None:
    with Writer(2) as writer, Reader(writer.handle, 0):
        places = writer._end._watch._places
        assert [places.is_held(place) for place in range(3)] == [True, False, True]
        assert places.hold(0) is None
    assert places.is_held(0) is None  # its descriptor is closed

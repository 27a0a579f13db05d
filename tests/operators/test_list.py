"""`shmcast list`: every segment of this user is a row, and nobody else's."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import shmcast
from shmcast import Handle, Reader, Writer
from shmcast._host import proc, segment_file
from shmcast._operators import commands, listing
from shmcast._operators.discovery import OpenSegment, open_segments
from shmcast._operators.snapshot import GONE, Replies, Snapshot, all_snapshots, chosen, take
from tests.support import confined, operators
from tests.support.confined import in_namespaces
from tests.support.operators import rows, run_shmcast
from tests.support.permissions import needs_mounts
from tests.support.processes import Crew
from tests.support.subprocess_programs import ROOT

SHM = Path("/dev/shm")


def snapshot_of(handle: Handle) -> Snapshot:
    [found] = [s for s in all_snapshots() if f"/{s.name}" == handle.name]
    return found


@contextlib.contextmanager
def file_of(writer: Writer) -> Iterator[mmap.mmap]:
    """Write to a segment as nobody does."""
    with (
        (SHM / writer.handle.name[1:]).open("r+b") as file,
        mmap.mmap(file.fileno(), 1 << 16) as memory,
    ):
        yield memory


@pytest.fixture
def three(crew: Crew) -> Iterator[list[int]]:
    """Three programs with a broadcaster each."""
    yield crew.run(3, operators.open_pair, "three")
    crew.run(3, operators.close_all)


def test_the_broadcasters_of_all_programs_are_listed(three: list[int]) -> None:
    found = {row["writer_pid"]: row for row in rows("list", "three ")}
    assert {*found} == {*three}
    for index, pid in enumerate(three):
        row = found[pid]
        assert row["label"].startswith(f"three {index}: ")
        assert row["writer_state"] in ("sleeping", "running")
        assert (row["kind"], row["nodes"], row["slots"], row["error"]) == ("ring", 1, 256, "")
        [reader] = row["readers"]
        assert reader | {"state": ""} == {
            "index": 0,
            "pid": pid,
            "lag": 0,
            "state": "",
            "name": "reader 0",
        }
    text = run_shmcast("list", "three ").stdout
    assert all(str(pid) in text for pid in three)
    assert max(map(len, text.splitlines())) <= 100


def test_a_pid_chooses_the_segments_of_a_process(three: list[int]) -> None:
    assert [row["writer_pid"] for row in rows("list", str(three[1]))] == [three[1]]
    assert rows("list", "no such label", code=3) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_segments_of_another_user_are_not_listed(fresh: tuple[Crew, str]) -> None:
    crew, _ = fresh
    theirs = crew.workers[0].start(operators.open_pair, 0, "theirs", 54321).result()
    assert theirs in [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    assert chosen(all_snapshots(), str(theirs)) == []
    crew.workers[0].start(operators.close_all, 0).result()


WRITE_ELSEWHERE = """
import os
from shmcast import Writer
writer = Writer(1, label="elsewhere")
print(os.getpid(), flush=True)
input()
"""


def test_pids_of_another_pid_namespace_are_nobodys_here() -> None:
    command = [*in_namespaces("--pid"), sys.executable, "-c", WRITE_ELSEWHERE]
    with subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        theirs = int(process.stdout.readline())
        [row] = rows("list", "elsewhere: ")
        by_pid = chosen(all_snapshots(), str(theirs))
        process.communicate("\n")
    assert (row["writer_pid"], row["command"]) == (theirs, "")
    assert row["writer_state"] == "in another pid namespace"
    assert row["name"] not in {s.name for s in by_pid}


def test_the_command_is_not_that_of_another_process_with_the_writers_pid() -> None:
    with Writer(1, label="its own") as writer:
        seen = snapshot_of(writer.handle)
    assert seen.writer is not None
    assert listing.as_json(seen)["command"] == proc.command_line(os.getpid())
    another = dataclasses.replace(seen.writer, start_time=seen.writer.start_time - 1)
    assert listing.as_json(dataclasses.replace(seen, writer=another))["command"] == ""


def test_what_a_segment_has_is_told() -> None:
    with Writer(3, slots=8, slot_bytes=256, arena_bytes=1 << 20, label="shape") as writer:
        writer.send("one")
        with Reader(writer.handle, 1, label="the second") as reader:
            reader.recv(10)
            writer.send("two")
            seen = snapshot_of(writer.handle)
        after = snapshot_of(writer.handle)
    assert seen.label.startswith("shape: ")
    assert (seen.slots, seen.slot_bytes, seen.arena_bytes, seen.nodes) == (8, 256, 1 << 20, 1)
    assert [r.state for r in seen.readers][::2] == ["not attached"] * 2
    assert [(r.lag, r.name) for r in seen.readers] == [(2, ""), (1, "the second"), (2, "")]
    assert seen.writer is not None
    assert seen.writer.name == "shape"
    assert seen.writer.figures["messages"] == 2
    assert seen.sent_age is not None
    assert 0 <= seen.sent_age < 50
    assert 0 <= seen.age < 50
    assert (after.readers[1].state, after.readers[1].lag) == ("left", 0)


def test_a_segment_is_found_when_its_name_is_gone() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0):
        assert not (SHM / writer.handle.name[1:]).exists()
        assert snapshot_of(writer.handle).holders == (os.getpid(),)


def test_what_all_have_left_is_closed_and_only_listed() -> None:
    writer = Writer(1, label="over")
    with writer, Reader(writer.handle, 0) as reader:
        assert not snapshot_of(writer.handle).is_over
    seen = snapshot_of(writer.handle)
    assert seen.is_over
    assert " closed " in listing.as_text([seen])
    assert [row["label"] for row in rows("list", "over:")]
    for command in (["diagnose"], ["top", "--once"]):
        assert writer.handle.name[1:] not in {row["name"] for row in rows(*command, code=None)}
    del reader


def test_a_hub_is_listed_with_its_replies(crew: Crew) -> None:
    handle = crew.workers[0].start(operators.keep_hub, 0, 2, "a hub").result()
    try:
        [row] = rows("list", "a hub:")
        assert (row["kind"], len(row["readers"])) == ("hub", 2)
        assert snapshot_of(handle).replies == (Replies(0, 0, False),) * 2
        assert snapshot_of(handle).barriers == (0, 0, 0)
    finally:
        crew.workers[0].start(operators.close_all, 0).result()


def test_another_layout_version_is_a_row() -> None:
    with Writer(1, label="foreign") as writer:
        with file_of(writer) as memory:
            memory[8:12] = (7).to_bytes(4, "little")
            package = memory.find(shmcast.__version__.encode(), 0, 4096)
            memory[package : package + 2] = b"\xff\0"  # what this is there, nobody knows
        seen = snapshot_of(writer.handle)
        assert "layout version 7, of shmcast ?;" in seen.error
        row = listing.as_json(seen)
        assert (row["writer_pid"], row["readers"], row["holders"]) == (None, [], [os.getpid()])
        text = listing.as_text([seen])
        assert "layout version 7" in text
        assert str(os.getpid()) in text
        assert json.dumps(row)


def confined_list() -> str:
    confined.mount_over("/proc")
    with pytest.raises(SystemExit) as ended:
        commands.main(["list"])
    return str(ended.value)


@needs_mounts
def test_without_proc_nobody_says_that_there_is_no_broadcaster() -> None:
    with confined.process() as alone:
        assert "there is no /proc here" in alone.start(confined_list).result()


@pytest.mark.parametrize("nbytes", [0, 100, 8192])
def test_a_segment_that_is_being_made_is_a_row(nbytes: int) -> None:
    name, fd = segment_file.make(max(nbytes, 1), lambda fd: os.ftruncate(fd, nbytes))
    try:
        [seen] = [s for s in all_snapshots() if f"/{s.name}" == name]
        assert "being made" in seen.error
    finally:
        os.close(fd)
        segment_file.unlink(name)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_only_has_a_segments_name_is_a_row(make: Callable[[Path], None]) -> None:
    name, fd = segment_file.make(1, lambda fd: os.ftruncate(fd, 1))
    os.close(fd)
    segment_file.unlink(name)
    path = SHM / name[1:]
    make(path)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        [seen] = [s for s in all_snapshots() if f"/{s.name}" == name]
        assert seen.error.startswith("it is no segment")
    finally:
        os.close(fd)
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("offset", [12, 16, 24, 32, 40])
def test_a_damaged_segment_is_a_row(offset: int) -> None:
    with Writer(2) as writer, file_of(writer) as memory:
        memory[offset : offset + 4] = b"\xff" * 4
        assert "damaged" in snapshot_of(writer.handle).error


def test_seats_that_are_nonsense_are_a_row() -> None:
    with Writer(2) as writer, file_of(writer) as memory:
        seat = 384 + 128 + 128 + 8
        assert memory[seat : seat + 8] == bytes(8)
        memory[seat : seat + 8] = b"\xff" * 8
        assert "seat's state" in snapshot_of(writer.handle).error
        memory[seat : seat + 8] = (1).to_bytes(4, "little") + b"\xff" * 4
        assert "has pid" in snapshot_of(writer.handle).error
        memory[seat : seat + 8] = bytes(8)


def test_a_process_that_has_just_ended_is_a_row() -> None:
    gone = OpenSegment("shmcast-x", ["/proc/4194304/fd/3"], [4194304])
    assert take(gone).error == GONE
    assert take(OpenSegment("shmcast-x")).error


def test_an_arena_is_no_row_of_its_own() -> None:
    with Writer(1, arena_bytes=1 << 20) as writer:
        names = [s.name for s in open_segments() if os.getpid() in s.holders]
        assert writer.handle.name[1:] in names
        assert not any(name.endswith("-arena") for name in names)


def test_a_label_can_not_drive_the_terminal() -> None:
    with Writer(1, label="\x1b[2Jwiped\n") as writer:
        assert snapshot_of(writer.handle).label.startswith("\N{REPLACEMENT CHARACTER}[2Jwiped")


def test_a_label_that_is_too_long_is_cut_between_characters() -> None:
    with Writer(1, label="ä" * 1000) as writer:
        assert snapshot_of(writer.handle).label == "ä" * 112


def test_a_label_may_be_anything() -> None:
    with Writer(1, label="\udc80") as writer, Reader(writer.handle, 0, label="\udc81"):
        assert snapshot_of(writer.handle).label.startswith("?: ")


def test_without_any_broadcaster_it_says_so() -> None:
    assert listing.as_text([]) == "No process of this user has a broadcaster on this host."
    assert "a broadcaster of the label or pid 'tp0' on this host" in listing.as_text([], "tp0")

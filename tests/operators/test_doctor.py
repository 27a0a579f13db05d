"""`shmcast doctor`: what this host lacks, and the way out."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import resource
from collections.abc import Callable
from typing import NoReturn

import pytest

from shmcast._host import segment_file
from shmcast._host.memory_limit import MemoryLimit, Room
from shmcast._host.places import Places
from shmcast._operators import commands, doctor
from tests.support import confined
from tests.support.operators import rows
from tests.support.permissions import needs_mounts, needs_root, needs_torch


def finding(name: str) -> doctor.Finding:
    [found] = [f for f in doctor.examine() if f.name == name]
    return found


def test_a_host_that_has_all_is_told_so() -> None:
    found = {row["name"]: row for row in rows("doctor")}
    assert {"/dev/shm", "CPUs", "memory limit", "py-spy", "pidfds", "spin hint"} <= {*found}
    assert found["/dev/shm"]["status"] in ("ok", "note")


def statvfs_of(nbytes: int) -> object:
    class Room:
        f_frsize, f_blocks, f_bavail = 1, nbytes, nbytes

    return lambda _path: Room


def test_a_small_shared_memory_is_a_note_and_a_full_one_is_bad(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "statvfs", statvfs_of(64 << 20))
    assert finding("/dev/shm").status == "note"
    assert "--shm-size" in finding("/dev/shm").advice
    monkeypatch.setattr(os, "statvfs", statvfs_of(1 << 20))
    assert finding("/dev/shm").status == "bad"
    assert commands.main(["doctor"]) == commands.SOMETHING_WRONG
    assert " ! /dev/shm: 1 MiB free of 1 MiB" in capsys.readouterr().out


def test_a_tight_memory_limit_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = Room(nbytes=1 << 10, limit=1 << 20, cgroup="/a")
    monkeypatch.setattr(MemoryLimit, "room", lambda _self: tight)
    assert finding("memory limit").status == "bad"


def test_what_the_kernel_refuses_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int) -> NoReturn:
        raise OSError(errno.ENOSYS, "no")

    monkeypatch.setattr("shmcast._host.proc.pidfd_open", refuse)
    monkeypatch.setattr(Places, "hold", lambda _self, _place: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    for name in ("pidfds", "file locks", "CPUs"):
        assert finding(name).status == "note"


def test_a_look_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: str) -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "/dev/shm")

    monkeypatch.setattr(os, "statvfs", refuse)
    assert finding("shared memory").status == "bad"
    assert finding("CPUs").value


def confined_doctor(confine: Callable[[], object]) -> tuple[int, str]:
    """Confine this process, and return the exit code of a doctor there, and what it says."""
    confine()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = commands.main(["doctor"])
    return code, printed.getvalue()


def no_room_for_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100 << 10, 100 << 10))


def closed_to_others(mode: str) -> None:
    confined.mount_over("/dev/shm", f"mode={mode}")
    confined.become_another_user()


# How the process is confined, and what it is told.
NO_ENDPOINT: dict[str, tuple[Callable[[], object], str]] = {
    "read-only": (
        functools.partial(confined.mount_over, "/dev/shm", read_only=True),
        "/dev/shm is mounted read-only: remount it",
    ),
    "no inodes": (
        functools.partial(confined.mount_over, "/dev/shm", "nr_inodes=1"),
        "/dev/shm has no inode left",
    ),
    "another user's": (functools.partial(closed_to_others, "700"), "chmod 1777 /dev/shm"),
    "not writable": (functools.partial(closed_to_others, "755"), "chmod 1777 /dev/shm"),
    "small files": (no_room_for_files, "ulimit -f unlimited"),
    "no /proc": (
        functools.partial(confined.mount_over, "/proc"),
        "! /proc: the list of processes: /proc: No such file or directory: there is no /proc here",
    ),
}


@needs_root
@needs_mounts
@pytest.mark.parametrize("case", NO_ENDPOINT)
def test_where_no_endpoint_can_be_made_it_is_bad_and_the_way_out_is_told(case: str) -> None:
    confine, told = NO_ENDPOINT[case]
    with confined.process() as alone:
        code, said = alone.start(confined_doctor, confine).result()
    assert code == commands.SOMETHING_WRONG, said
    assert told in said
    if case == "no /proc":
        for name in ("memory limit", "file locks"):
            assert f" - {name}: could not be looked at without /proc" in said


def test_nothing_but_its_own_segment_is_made_and_removed() -> None:
    name, fd = segment_file.make(4096, lambda fd: os.ftruncate(fd, 4096))
    try:
        before = sorted(os.listdir("/dev/shm"))  # noqa: PTH208
        assert finding("a broadcaster's segment").status == "ok"
        assert sorted(os.listdir("/dev/shm")) == before  # noqa: PTH208
        assert name[1:] in before
    finally:
        os.close(fd)
        segment_file.unlink(name)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SHMCAST_ARENA_BYTES", "100"),
        ("SHMCAST_CODEC", "no_such_module:codec"),
        ("SHMCAST_CORE_DUMP", "yes"),
        ("SHMCAST_REPORTS", "maybe"),
        ("SHMCAST_SETUP_TIMEOUT", "soon"),
        ("SHMCAST_SGLANG", "true"),
        ("SHMCAST_SLOTS", "3"),
        ("SHMCAST_SLOT_BYTES", "100"),
        ("SHMCAST_SPILL_BYTES", "-1"),
        ("SHMCAST_SWITCH_INTERVAL", "2"),
        ("SHMCAST_TIMEOUT", "-1"),
        ("SHMCAST_TRACE", "perf"),
        ("SHMCAST_VLLM", "true"),
        ("SHMCAST_WAIT", "fast"),
        ("SHMCAST_WARN_AFTER", "never"),
    ],
)
def test_a_setting_that_can_not_be_is_bad(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(found.name != variable for found in doctor.examine())
    monkeypatch.setenv(variable, value)
    assert finding(variable).status == "bad"
    assert value in finding(variable).value


@pytest.mark.parametrize(
    "value", ["off", "0", "none", pytest.param("torch", marks=needs_torch), ""]
)
def test_settings_that_can_be_are_no_finding(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCAST_TRACE", value)
    monkeypatch.setenv("SHMCAST_SLOTS", "64")
    assert not [f for f in doctor.examine() if f.name.startswith("SHMCAST_")]
    assert finding("settings").value == f"SHMCAST_SLOTS=64, SHMCAST_TRACE={value}"


def test_a_setting_that_there_is_not_is_a_note_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHMCAST_REPORT", "1")
    found = finding("SHMCAST_REPORT")
    assert (found.status, found.value) == ("note", "there is no such setting")
    assert found.advice == "SHMCAST_REPORTS?"

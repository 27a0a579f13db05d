"""`shmcast top`: how all broadcasters do, in a terminal of 80 columns."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from shmcast import Reader, Writer
from shmcast._operators import commands, top
from shmcast._operators.rates import SORT_KEYS, Rates, rates
from shmcast._operators.snapshot import Snapshot, all_snapshots, chosen
from tests.support.operators import rows, run_shmcast
from tests.support.terminal import WIDTH, rendered

BUSY = Rates(
    label="decode",
    name="a",
    messages=123_456.0,
    nbytes=9.99e9,
    p50=1.234e-6,
    p99=123.4e-3,
    lag=256,
    spun=1.0,
    parked=1.0,
    cpu=12.34,
    waits_for="r: dead",
    is_stuck=True,
)


def snapshot_of(label: str) -> Snapshot:
    [found] = chosen(all_snapshots(), label)
    return found


def test_the_picture_fits_80_columns() -> None:
    lines = rendered(top.picture([BUSY, Rates("idle", "b")], WIDTH, 1.0))
    assert lines[0].startswith("shmcast: 2 broadcasters, 1 stuck")
    row = next(line for line in lines if line.startswith("decode"))
    assert " ".join(row.split()) == "decode 123k 9.99k 1.23 us 123 ms 256 100% 100% 1234% r: dead"


def test_the_picture_fits_80_columns_when_nobody_runs() -> None:
    lines = rendered(top.picture([], WIDTH, 1.0))
    assert lines[-1] == "No process of this user has a broadcaster on this host."


def test_rates_are_what_happened_between_two_looks() -> None:
    with Writer(1, label="rated", slots=64) as writer, Reader(writer.handle, 0) as reader:
        before = snapshot_of("rated:")
        for _ in range(32):
            writer.send(b"x" * 1000)
        for _ in range(30):
            reader.recv(10)
        now = snapshot_of("rated:")
    found = rates(before, now)
    seconds = now.taken - before.taken
    assert found.messages == pytest.approx(32 / seconds)
    assert found.nbytes > 32_000 / seconds
    assert 0 < found.p50 <= found.p99 < 50
    assert (found.lag, found.is_stuck) == (2, False)
    assert found.waits_for.startswith("reader 0: ")
    idle = rates(now, now)
    assert (idle.messages, idle.p50, idle.cpu) == (0, 0, 0)


def test_what_can_not_be_read_is_a_row_too() -> None:
    broken = Snapshot("shmcast-x", (1,), "it is damaged")
    assert rates(broken, broken).label == "it is damaged"
    assert rendered(top.picture([rates(broken, broken)], WIDTH, 1.0))


@pytest.mark.parametrize("key", SORT_KEYS)
def test_each_key_sorts(key: str) -> None:
    idle = Rates("a label before", "b")
    expected = [idle, BUSY] if key == "l" else [BUSY, idle]
    assert sorted([idle, BUSY], key=SORT_KEYS[key]) == expected
    assert f"{key} " in top._KEYS


def test_once_is_one_picture() -> None:
    with Writer(1, label="pictured"):
        ran = run_shmcast("top", "--once", "--seconds", "0.1")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "pictured" in ran.stdout
    assert max(map(len, ran.stdout.splitlines())) <= WIDTH


def test_programs_get_numbers() -> None:
    with Writer(1, label="counted"):
        found = {row["label"]: row for row in rows("top", "--seconds", "0.1")}
    [label] = [label for label in found if label.startswith("counted:")]
    assert (found[label]["messages"], found[label]["waits_for"]) == (0, "reader 0: not attached")


@pytest.mark.parametrize("option", [["--sort", "x"], ["--seconds", "0"], ["--seconds", "nan"]])
def test_wrong_options_are_refused(option: list[str]) -> None:
    assert run_shmcast("top", "--once", *option).returncode == 2


def test_without_rich_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "shmcast._operators.top")
    monkeypatch.delattr("shmcast._operators.top")
    with pytest.raises(SystemExit, match=r"pip install 'shmcast\[top\]'"):
        commands.main(["top", "--once"])


@pytest.fixture
def screen() -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run it in a terminal of its own."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-m", "shmcast", "top", "--seconds", "0.1"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    with subprocess.Popen(  # noqa: S603
        program, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        yield ours, process
        process.kill()
    os.close(ours)


def read_until(fd: int, text: bytes) -> bytes:
    got = b""
    give_up = time.monotonic() + 40
    while text not in got:
        assert select.select([fd], [], [], max(0, give_up - time.monotonic()))[0], got
        got += os.read(fd, 4096)
    return got


def test_q_ends_it_and_the_terminal_is_as_before(
    screen: tuple[int, subprocess.Popen[bytes]],
) -> None:
    fd, process = screen
    with Writer(1, label="on screen"):
        read_until(fd, b"on screen")
        os.write(fd, b"c")
        read_until(fd, b"on screen")
        os.write(fd, b"q")
        read_until(fd, b"\x1b[?1049l")  # the other screen is shown again
        assert process.wait(40) == 0

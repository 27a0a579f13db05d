"""`shmcast top`: how all broadcasters do, in a terminal of 80 columns."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from shmcast import Reader, Writer
from shmcast._operators import commands, observer, top
from shmcast._operators.discovery import OpenSegment
from shmcast._operators.rates import SORT_KEYS, Rates, ordered, rates
from shmcast._operators.snapshot import GONE, Snapshot, all_snapshots, chosen, take
from tests.support.operators import rows, run_shmcast
from tests.support.terminal import WIDTH, drawn, rendered

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


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (79, "LABEL MSG/S MB/S P50 P99 LAG CPU WAITS FOR"),
        (50, "LABEL MSG/S P99 LAG WAITS FOR"),
        (30, "LABEL MSG/S WAITS FOR"),
    ],
)
def test_a_narrow_terminal_has_fewer_columns_and_who_is_waited_for(width: int, shown: str) -> None:
    lines = drawn(top.picture([BUSY], width, 1.0), width)
    assert lines[0].startswith("shmcast: 1 broadcaster, 1 s")
    assert " ".join(lines[3].split()) == shown
    assert lines[4].startswith("decode")
    assert lines[4].rstrip().endswith("r: dead")
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("waits_for", "shown"),
    [
        ("member 1: stopped", "member 1: stopped"),
        ("rank 12: not attached", "rank 12: absent"),
        ("rank 1: sleeping", "rank 1"),
        ("writer: running", "writer"),
    ],
)
def test_who_is_waited_for_is_readable_in_80_columns(waits_for: str, shown: str) -> None:
    row = dataclasses.replace(BUSY, label="decode, ranks 0-7: serve.py", waits_for=waits_for)
    lines = drawn(top.picture([row], WIDTH, 1.0), WIDTH)
    assert lines[-1].startswith("decode, ")
    assert lines[-1].rstrip().endswith(f" {shown}")


LITERAL = ["run [/models/llama]", "decode [tp]", ":smile: [red]", "a\\\\[b]"]


@pytest.mark.parametrize("label", LITERAL)
def test_what_a_program_calls_itself_is_shown_as_it_is(label: str) -> None:
    row = dataclasses.replace(BUSY, label=label, waits_for="[x] :+1: [/]")
    line = drawn(top.picture([row], 120, 1.0), 120)[-1]
    assert line.startswith(f"{label} ")
    assert line.rstrip().endswith(" [x] :+1: [/]")


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


def test_the_cpu_time_of_a_process_is_not_lost_to_one_elsewhere_with_its_pid() -> None:
    with Writer(1, label="counted twice") as writer, Reader(writer.handle, 0):
        before = snapshot_of("counted twice:")
    elsewhere = dataclasses.replace(before.members[-1], cpu_seconds=0.0, is_here=False)
    before = dataclasses.replace(before, writer=elsewhere)
    assert before.readers[0].cpu_seconds > 0
    now = dataclasses.replace(before, taken=before.taken + 1)
    assert rates(before, now).cpu == 0


def test_what_can_not_be_read_is_a_row_too() -> None:
    broken = Snapshot("shmcast-x", (1,), "it is damaged")
    assert rates(broken, broken).label == "it is damaged"
    assert rendered(top.picture([rates(broken, broken)], WIDTH, 1.0))


def test_a_segment_whose_processes_have_ended_is_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = OpenSegment("shmcast-ended", ["/proc/self/fd/99999"], [1])
    monkeypatch.setattr(observer, "open_segments", lambda: [ended])
    assert take(ended).error == GONE
    looking = observer.Observer()
    assert [looking.look(), looking.look()] == [[], []]


@pytest.mark.parametrize("key", SORT_KEYS)
def test_those_that_are_stuck_come_first_whatever_the_order(key: str) -> None:
    quick, idle = dataclasses.replace(BUSY, label="z", is_stuck=False), Rates("a label before", "b")
    stuck = Rates("m", "c", is_stuck=True)
    found = ordered([quick, stuck, idle], key)
    assert found[0] is stuck
    assert found[1:] == sorted([quick, idle], key=SORT_KEYS[key])


@pytest.mark.parametrize(("height", "shown"), [(8, 3), (24, 12), (16, 12), (15, 10), (1, 1)])
def test_what_has_no_room_in_the_terminal_is_counted(height: int, shown: int) -> None:
    found = [BUSY, *(Rates(f"idle {n}", str(n)) for n in range(11))]
    lines = drawn(top.picture(found, 40, 1.0, height), 40)
    names = [line for line in lines if line.startswith(("decode", "idle"))]
    assert len(names) == shown
    assert (lines[-1] == f"… {12 - shown} more") == (shown < 12)
    assert len(lines) <= max(height, 6)


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
        found = {row["label"]: row for row in rows("top", "--once", "--seconds", "0.1")}
    [label] = [label for label in found if label.startswith("counted:")]
    assert (found[label]["messages"], found[label]["waits_for"]) == (0, "reader 0: not attached")


def test_programs_get_a_line_of_numbers_for_each_look_until_they_have_enough() -> None:
    program = [sys.executable, "-m", "shmcast", "top", "--json", "--seconds", "0.1"]
    with (
        Writer(1, label="watched"),
        subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process,  # noqa: S603
    ):
        assert process.stdout is not None
        looks = [json.loads(process.stdout.readline()) for _ in range(2)]
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19  # it takes nobody's core
        process.stdout.close()
        assert process.wait(40) == 0
    for found in looks:
        assert [row for row in found if row["label"].startswith("watched:")]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (["--sort", "x"], "argument --sort: invalid choice: 'x'"),
        (["--seconds", "0"], "argument --seconds: '0' is no number of seconds >= 0.1"),
        (["--seconds", "nan"], "argument --seconds: 'nan' is no number of seconds >= 0.1"),
        (["--seconds", "soon"], "argument --seconds: 'soon' is no number of seconds >= 0.1"),
    ],
)
def test_wrong_options_are_refused(option: list[str], told: str) -> None:
    ran = run_shmcast("top", "--once", *option)
    assert ran.returncode == 2
    assert told in ran.stderr


def test_without_rich_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "shmcast._operators.top")
    monkeypatch.delattr("shmcast._operators.top")
    with pytest.raises(SystemExit, match=r"pip install 'shmcast\[top\]'"):
        commands.main(["top", "--once"])


class Screen:
    """A terminal of its own, in which a session of its own runs it, as a shell does."""

    def __init__(self) -> None:
        self.fd, self._theirs = pty.openpty()
        self._before = termios.tcgetattr(self._theirs)
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
        self.shell = subprocess.Popen(  # noqa: S603
            [sys.executable, "-c", SHELL, sys.executable, "-m", "shmcast", "top"],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            text=True,
        )
        self.got = b""

    def told(self) -> str:
        """Return the next line that the shell says of its job."""
        assert self.shell.stderr is not None
        return self.shell.stderr.readline().strip()

    def shows(self, text: bytes) -> None:
        """Wait until this is on the screen."""
        self.got = b""
        give_up = time.monotonic() + 40
        while text not in self.got:
            left = max(0, give_up - time.monotonic())
            assert select.select([self.fd], [], [], left)[0], self.got
            self.got += os.read(self.fd, 4096)

    def is_as_before(self) -> bool:
        """Return whether the terminal has its mode, and its cursor and first screen were shown."""
        while select.select([self.fd], [], [], 0)[0]:
            self.got += os.read(self.fd, 4096)
        return (
            self.got.rfind(b"\x1b[?25h") > self.got.rfind(b"\x1b[?25l")
            and self.got.rfind(b"\x1b[?1049l") > self.got.rfind(b"\x1b[?1049h")
            and termios.tcgetattr(self._theirs) == self._before
        )

    def close(self) -> None:
        """End it."""
        with self.shell:
            self.shell.kill()
        os.close(self.fd)
        os.close(self._theirs)


# Tells, of its job: the pid, and each time that it stops or ends.
SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
job = os.fork()
if not job:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpgrp())
    for number in (signal.SIGTTOU, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.execv(sys.argv[1], [*sys.argv[1:], "--seconds", "0.1"])
print(job, file=sys.stderr, flush=True)
status = None
while status is None or os.WIFSTOPPED(status):
    status = os.waitpid(job, os.WUNTRACED)[1]
    if os.WIFSTOPPED(status):
        print("stopped", file=sys.stderr, flush=True)
print(os.waitstatus_to_exitcode(status), file=sys.stderr, flush=True)
"""


@pytest.fixture
def screen() -> Iterator[Screen]:
    screen = Screen()
    yield screen
    screen.close()


def test_q_ends_it_and_the_terminal_is_as_before(screen: Screen) -> None:
    assert screen.told()
    with Writer(1, label="on screen"):
        screen.shows(b"on screen")
        os.write(screen.fd, b"c")
        screen.shows(b"on screen")
        os.write(screen.fd, b"q")
        assert screen.told() == "0"
        assert screen.is_as_before()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
def test_a_signal_ends_it_and_the_terminal_is_as_before(
    screen: Screen, number: signal.Signals
) -> None:
    job = int(screen.told())
    screen.shows(b"broadcaster")
    os.kill(job, number)
    assert screen.told() == str(130 if number == signal.SIGINT else -number)
    assert screen.is_as_before()


def test_a_stopped_one_gives_the_terminal_back_and_draws_again_when_it_goes_on(
    screen: Screen,
) -> None:
    job = int(screen.told())
    for _ in range(2):
        screen.shows(b"broadcaster")
        os.write(screen.fd, b"\x1a")  # Ctrl-Z
        assert screen.told() == "stopped"
        assert screen.is_as_before()
        os.kill(job, signal.SIGCONT)
        screen.shows(b"\x1b[?1049h")  # the other screen again
    os.write(screen.fd, b"q")
    assert screen.told() == "0"
    assert screen.is_as_before()

"""Long waits are told in the log, the longer the rarer, with what those waited for are doing."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import signal
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import NoReturn, cast

import pytest

from shmcast import _core
from shmcast._endpoints import slow_peers as _slowness
from shmcast._endpoints.slow_peers import SlownessReport, SlowPeer, wait_of
from shmcast._host.process import state_of
from tests.support.subprocess_programs import BLOCKS, SPINS, hear, running, wait_until


class Wait:
    """A wait of `rank 0: send` that is as long as the test says."""

    def __init__(self, warn_after: float, peers: Iterable[SlowPeer] = ()) -> None:
        self.report = SlownessReport("rank 0", warn_after)
        self._first_look = warn_after / 2  # as a watch's `patience` says
        self.peers = list(peers)
        self.begin()

    def begin(self) -> None:
        self._due = self._first_look
        self._is_first = True
        self.looks = 0

    def until(self, seconds: float, action: str = "send", goal: str = "room") -> None:
        """Take the one look that the waiter takes then."""
        if seconds >= self._due:
            self._due = self.report.look(seconds, self._is_first, action, goal, self.peers)
            self._is_first = False
            self.looks += 1


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch all of the log, which no py-spy makes longer."""
    caplog.set_level(logging.DEBUG, "shmcast")
    monkeypatch.setattr(_slowness, "stack_of", lambda _pid, _timeout: "")


def cpu_seconds(pid: int) -> float:
    state = state_of(pid)
    assert state is not None
    return state.cpu_seconds


def is_in_state(pid: int, name: str) -> Callable[[], bool]:
    def is_so() -> bool:
        state = state_of(pid)
        return state is not None and state.name == name

    return is_so


def test_a_wait_is_told_when_it_has_lasted(caplog: pytest.LogCaptureFixture) -> None:
    wait = Wait(60)
    wait.until(59.9)
    assert not caplog.records
    wait.until(60)
    wait.until(60.1, "recv", "a message")
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("shmcast", "WARNING")
    assert record.message == "rank 0: send has waited 60 s for room"


def test_the_action_and_what_it_waits_for_are_told(caplog: pytest.LogCaptureFixture) -> None:
    Wait(0.5).until(2.25, "recv", "a message")
    assert caplog.messages == ["rank 0: recv has waited 2.2 s for a message"]


def test_reports_grow_rarer_with_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    wait = Wait(60)
    for second in range(0, 1000, 5):
        wait.until(second)
    told = [re.findall(r"waited (\d+) s", message)[0] for message in caplog.messages]
    assert told == ["60", "120", "240", "480", "960"]


def test_a_wait_that_was_told_is_told_to_have_ended(caplog: pytest.LogCaptureFixture) -> None:
    wait = Wait(60)
    wait.until(60)
    caplog.clear()
    wait.report.end(75)
    wait.report.end(76)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.message == "rank 0: send went on after 75 s"


def test_a_wait_that_was_not_told_ends_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    wait = Wait(60)
    wait.until(59)
    wait.report.end(59.5)
    assert not caplog.records


def test_each_wait_is_timed_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    wait = Wait(60)
    wait.until(60)  # and raises, so that nobody ends it
    caplog.clear()
    wait.begin()
    wait.until(59)
    wait.report.end(59.5)
    assert not caplog.records
    wait.begin()
    wait.until(61)
    assert "waited 61 s" in caplog.text


def test_peers_are_looked_at_half_way_and_for_each_report() -> None:
    wait = Wait(60)
    looks = []
    for second in (0, 29, 30, 31, 59, 60, 61, 119, 120):
        wait.until(second)
        looks.append(wait.looks)
    assert looks == [0, 0, 1, 1, 1, 2, 2, 2, 3]


def test_each_peer_is_told_on_a_line_with_how_far_it_is_behind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Wait(60, [SlowPeer("rank 1", None, "5 fragments behind"), SlowPeer("rank 2")]).until(60)
    assert caplog.messages[0].splitlines()[1:] == ["  rank 1, 5 fragments behind", "  rank 2"]


def test_a_stopped_process_is_told_as_stopped(caplog: pytest.LogCaptureFixture) -> None:
    with running(BLOCKS) as process:
        process.send_signal(signal.SIGSTOP)
        wait_until(is_in_state(process.pid, "stopped"))
        Wait(60, [SlowPeer("rank 1", process.pid, "1 fragment behind")]).until(60)
    line = f"  rank 1, pid {process.pid}, 1 fragment behind: stopped, 1 thread"
    assert caplog.messages[0].splitlines()[1:] == [line]


def test_a_process_that_blocks_is_told_as_sleeping_and_without_cpu_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running(f"print(flush=True); {BLOCKS}") as process:
        hear(process)  # its start is over, which takes CPU time
        wait_until(is_in_state(process.pid, "sleeping"))
        wait = Wait(60, [SlowPeer("rank 1", process.pid)])
        wait.until(30)
        wait.until(60)
    assert "sleeping, 1 thread, 0.00 s of CPU time in the last 30 s" in caplog.text


def test_a_process_that_computes_is_told_with_its_cpu_time_since_the_last_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running(SPINS) as process:
        wait = Wait(60, [SlowPeer("rank 1", process.pid)])
        wait.until(30)
        for second, last in ((60, 30), (120, 60)):
            before = cpu_seconds(process.pid)
            wait_until(lambda: cpu_seconds(process.pid) >= before + 0.05)  # noqa: B023
            wait.until(second)
            told = re.search(
                r"running, 1 thread, (.*) s of CPU time in the last (.*) s", caplog.text
            )
            caplog.clear()
            assert told is not None
            assert 0.05 <= float(told[1]) < 30
            assert told[2] == str(last)


def test_a_process_that_was_not_looked_at_before_has_no_cpu_time_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wait = Wait(60)
    wait.until(30)
    wait.peers = [SlowPeer("rank 1", os.getpid())]
    wait.until(60)
    assert f"rank 1, pid {os.getpid()}: " in caplog.text
    assert "CPU" not in caplog.text


def test_a_process_that_is_gone_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    with running("") as process:
        process.wait()
    Wait(60, [SlowPeer("rank 1", process.pid)]).until(60)
    assert f"  rank 1, pid {process.pid}: not in /proc" in caplog.text


def test_a_process_that_may_not_be_looked_at_breaks_no_report(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_core, "read_file", lambda _path: PermissionError())
    Wait(60, [SlowPeer("rank 1", os.getpid())]).until(60)
    assert "not in /proc" in caplog.text


def test_a_time_limit_that_goes_off_in_a_report_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that raises TimeoutError, which is an OSError, does so wherever the program is."""

    def go_off(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise TimeoutError

    def interrupt(_path: str) -> bytes:
        signal.raise_signal(signal.SIGUSR1)
        return b""

    monkeypatch.setattr(_core, "read_file", interrupt)
    before = signal.signal(signal.SIGUSR1, go_off)
    try:
        with pytest.raises(TimeoutError):
            Wait(60, [SlowPeer("rank 1", os.getpid())]).until(60)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_stack_of_a_peer_is_told_below_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_slowness, "stack_of", lambda _pid, _timeout: "Thread 1\n  f (x.py:1)\n")
    Wait(60, [SlowPeer("rank 1", os.getpid()), SlowPeer("rank 2")]).until(60)
    _, peer, *stack, other = caplog.messages[0].splitlines()
    assert peer.startswith("  rank 1")
    assert stack == ["    Thread 1", "      f (x.py:1)"]
    assert other == "  rank 2"


def test_all_stacks_of_a_report_together_take_less_than_a_second(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    limits: list[float] = []

    def hang(_pid: int, timeout: float) -> str:
        nonlocal now
        limits.append(timeout)
        now += 0.5
        return ""

    monkeypatch.setattr(_slowness, "monotonic", lambda: now)
    monkeypatch.setattr(_slowness, "stack_of", hang)
    Wait(60, [SlowPeer(f"rank {rank}", os.getpid()) for rank in range(1, 8)]).until(60)
    assert limits == pytest.approx([0.9, 0.4])
    assert "rank 7" in caplog.text


# Who is to blame


@dataclasses.dataclass
class FakePeer:
    """A member as the core shows it."""

    index: int
    behind: int = 0
    state: str = "attached"


def members(*behind: int) -> Sequence[_core.Peer]:
    """Readers that are so far behind, and their writer."""
    return cast("Sequence[_core.Peer]", [FakePeer(*pair) for pair in enumerate([*behind, 0])])


def blamed(me: int, *behind: int) -> tuple[str, list[int], bool]:
    wait = wait_of(me, members(*behind), 64, "rank 0")
    return f"{wait.action} for {wait.goal}", [p.index for p, _ in wait.peers], wait.is_usual


def test_a_reader_that_waits_for_a_writer_without_room_blames_who_leaves_none() -> None:
    goal = "recv for a message, as rank 0 waits for room"
    assert blamed(0, 0, 64, 3, 64) == (goal, [1, 3], False)


def test_a_reader_that_waits_for_an_idle_writer_blames_nobody() -> None:
    assert blamed(0, 0, 63, 3) == ("recv for a message", [3], True)
    assert blamed(1, 5, 64) == ("recv for a message", [2], True)  # it is what the writer waits for


def test_a_writer_blames_the_readers_that_are_behind_and_then_those_that_are_missing() -> None:
    assert blamed(3, 2, 0, 1) == ("send for room", [0, 2], False)
    peers = members(0, 0)
    cast("FakePeer", peers[1]).state = "vacant"
    wait = wait_of(2, peers, 64, "rank 0")
    assert (wait.action, [p.index for p, _ in wait.peers]) == ("wait_ready", [1])


def test_a_usual_wait_is_for_debugging_only(caplog: pytest.LogCaptureFixture) -> None:
    report = SlownessReport("rank 1", 60)
    report.look(60, True, "recv", "a message", [SlowPeer("rank 0", os.getpid())], is_usual=True)
    report.end(61)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_a_usual_wait_for_a_stopped_process_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with running(BLOCKS) as process:
        process.send_signal(signal.SIGSTOP)
        wait_until(is_in_state(process.pid, "stopped"))
        report = SlownessReport("rank 1", 60)
        peers = [SlowPeer("rank 0", process.pid)]
        report.look(60, True, "recv", "a message", peers, is_usual=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_no_stacks_are_taken_for_a_message_that_nobody_reads(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stack_of(_pid: int, _timeout: float) -> str:
        raise AssertionError("taken")

    caplog.set_level(logging.WARNING, "shmcast")
    monkeypatch.setattr(_slowness, "stack_of", stack_of)
    report = SlownessReport("rank 1", 60)
    report.look(60, True, "recv", "a message", [SlowPeer("rank 0", os.getpid())], is_usual=True)
    assert not caplog.records


def test_a_peer_that_makes_a_report_itself_is_shown_in_its_wait(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = """Thread 7 (active): "MainThread"
    poll (selectors.py:415)
    communicate (subprocess.py:2021)
    run (subprocess.py:503)
    stack_of (shmcast/_host/process.py:218)
    look (shmcast/_endpoints/slow_peers.py:88)
    report_slow (shmcast/_endpoints/peers.py:200)
    consume (shmcast/_endpoints/frame_reader.py:99)
    step (engine.py:8)
Thread 8 (idle): "other"
    wait (threading.py:320)
"""
    monkeypatch.setattr(_slowness, "stack_of", lambda _pid, _timeout: stack)
    Wait(60, [SlowPeer("rank 1", os.getpid())]).until(60)
    assert [line.strip() for line in caplog.messages[0].splitlines()[2:]] == [
        'Thread 7 (active): "MainThread"',
        "consume (shmcast/_endpoints/frame_reader.py:99)",
        "step (engine.py:8)",
        'Thread 8 (idle): "other"',
        "wait (threading.py:320)",
    ]


def test_a_filter_that_raises_breaks_no_wait(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_record: logging.LogRecord) -> bool:
        raise RuntimeError("a filter's fault")

    log = logging.getLogger("shmcast")
    log.addFilter(refuse)
    try:
        Wait(60).until(60)
    finally:
        log.removeFilter(refuse)
    assert not caplog.records
    assert "RuntimeError: a filter's fault" in capsys.readouterr().err

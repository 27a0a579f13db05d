"""The harness of bench/: fair turns, honest figures, and one peer's failure is not the others'."""

from __future__ import annotations

import dataclasses
import functools
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.run import (
    busy_thread,
    crew,
    engine,
    harness,
    intervals,
    launchers,
    line,
    measure,
    neighbours,
    smoke,
    suites,
)
from bench.run.case import BURST, NEIGHBOURS, PATTERNS, Case
from bench.run.crew import Crew
from bench.run.harness import Harness
from bench.run.measure import Done, Turn
from bench.transports import registry
from bench.transports.base import Peer, Seat, Skipped, Transport
from bench.workloads import catalogue
from tests.support.permissions import needs_torch

QUICK = Case("49 B", 1, 0.2, messages=8, seconds=0.5, warm_up=2)


# What a turn is


@pytest.mark.parametrize("pattern", [p for p in PATTERNS if p != "trace"])
def test_gaps_are_the_same_for_every_transport_and_have_the_mean_that_was_asked_for(
    pattern: str,
) -> None:
    turn = Turn(Case("49 B", gap_ms=2.0, pattern=pattern), 0, 100 * BURST, 0)
    gaps = turn.gaps_ns(None)
    assert gaps == turn.gaps_ns(None)
    assert len(gaps) == 100 * BURST
    assert np.mean(gaps) == pytest.approx(2e6, rel=0.15)
    assert min(gaps) >= 0


def test_a_trace_is_sent_once_and_in_order_by_the_turns_together_with_its_own_gaps() -> None:
    case = Case("trace", pattern="trace")
    messages, gaps = list(range(40)), [float(i) for i in range(40)]
    counted = []
    for number in range(5):
        turn = Turn(case, number, 8, 3)
        sent = turn.of(messages)
        assert turn.gaps_ns(gaps) == [i * 1_000_000 for i in sent]
        counted += sent[3:]
    assert counted == messages


def test_a_workload_without_timing_can_t_be_replayed_with_its_own() -> None:
    with pytest.raises(ValueError, match="'49 B' has no timing"):
        Turn(Case("49 B", pattern="trace"), 0, 8, 0).gaps_ns(None)


def test_an_unknown_pattern_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'often' is none of steady, jitter"):
        Case("49 B", pattern="often")


# Figures


def test_a_latency_ends_when_the_last_reader_has_the_message() -> None:
    latencies = measure.latencies_us([1_000, 5_000], [[3_000, 6_000], [2_000, 9_000]])
    assert latencies == [2.0, 4.0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(1, 1e6), min_size=1, max_size=20), min_size=1, max_size=5))
def test_an_interval_lies_within_the_values_and_has_its_low_end_first(
    turns: list[list[float]],
) -> None:
    low, high = intervals.interval([*map(np.array, turns)], intervals.percentile(50))
    every = [value for turn in turns for value in turn]
    assert min(every) <= low <= high <= max(every)


def test_turns_that_differ_widen_the_interval_more_than_messages_that_do() -> None:
    rng = np.random.default_rng(1)
    mixed = [rng.permutation(np.r_[np.full(50, 10.0), np.full(50, 20.0)]) for _ in range(6)]
    apart = [np.full(100, 10.0), np.full(100, 20.0)] * 3
    mean = np.mean

    def width(turns: list[Any]) -> float:
        low, high = intervals.interval(turns, lambda values: float(mean(values)))
        return high - low

    assert width(apart) > 2 * width(mixed)


def done(starts: list[int], ends: list[int], cpu_ns: int = 0) -> Done:
    count = len(ends)
    return Done(
        starts, ends, cpu_ns=cpu_ns, wall_ns=10_000_000, messages=count, counted=len(starts)
    )


def test_a_row_has_the_figures_of_all_turns_and_cpu_time_by_message() -> None:
    turns = [
        [done([0, 0], [500, 500], 4_000), done([], [1_000, 2_000], 8_000)],
        [done([0, 0], [500, 500], 4_000), done([], [3_000, 4_000], 8_000)],
    ]
    row = harness.row(QUICK, "pipe", turns, {"memory_mib": 1.5})
    assert row["p50_us"] == 2.5
    assert row["max_us"] == 4.0
    assert row["send_p50_us"] == 0.5
    assert row["quantiles_us"][0] == 1.0
    assert row["quantiles_us"][100] == 4.0
    assert (row["source_cpu_us"], row["reader_cpu_us"]) == (2.0, 4.0)
    assert row["reader_cpu"] == pytest.approx(8_000 / 10_000_000, abs=1e-5)
    assert (row["messages"], row["turns"], row["memory_mib"]) == (4, 2, 1.5)
    assert row["bytes"] == len(pickle.dumps(catalogue.tiny(), pickle.HIGHEST_PROTOCOL))


def test_a_rate_counts_until_the_last_reader_has_the_last_message() -> None:
    case = dataclasses.replace(QUICK, gap_ms=0)
    turn = [done([0, 100], [90, 190]), done([], [500, 1_000]), done([], [600, 2_000])]
    row = harness.row(case, "pipe", [turn], {})
    assert row["rate_per_s"] == pytest.approx(2 / 2_000e-9)
    assert "p50_us" not in row


class Counting(Transport):
    """Notes what is sent, and how often the clocks were looked at by then."""

    def __init__(self, looks: list[str]) -> None:
        self._looks = looks
        self.sent: list[tuple[Any, int]] = []

    def broadcast(self, obj: Any, /) -> Any:
        self.sent.append((obj, len(self._looks)))
        return obj


def looked(looks: list[str], clock: Callable[[], int]) -> int:
    looks.append("look")
    return clock()


def test_back_to_back_no_clock_is_read_between_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    for name in ("monotonic_ns", "thread_time_ns", "process_time_ns"):
        monkeypatch.setattr(time, name, functools.partial(looked, looks, getattr(time, name)))
    turn = Turn(dataclasses.replace(QUICK, gap_ms=0), 0, 5, 2)
    taken = np.zeros(1, np.int64)
    source, reader = Counting(looks), Counting(looks)
    sent = measure.send(source, [*range(7)], [0] * 7, turn, taken)
    assert [obj for obj, _ in source.sent] == [*range(7)]
    assert [seen for _, seen in source.sent] == [2] * 2 + [3] * 5
    assert (len(sent.starts), len(sent.ends), sent.counted, sent.messages) == (1, 1, 5, 7)
    looks.clear()
    got = measure.receive(reader, turn, taken, is_busy=False)
    assert [seen for _, seen in reader.sent] == [2] * 7
    assert (len(got.ends), got.messages) == (1, 7)


# Runs of real processes


class Failing(Transport):
    """A transport that goes wrong in the way of its name."""

    def __init__(self, how: str, seat: Seat) -> None:
        self._how, self._seat = how, seat
        if how == "can't be made":
            raise Skipped("no such device")

    def broadcast(self, obj: Any, /) -> Any:
        if self._how == "raises":
            raise RuntimeError("it broke")
        if self._how == "dies" and not self._seat.is_source:
            os._exit(3)
        if self._how == "hangs" and not self._seat.is_source:
            threading.Event().wait()
        if self._how == "loses":
            raise Skipped("a message was lost")
        return obj


class Maker:
    """Makes a `Failing` one; can be pickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, seat: Seat) -> Transport:
        return Failing(self.how, seat)


HOWS = ("can't be made", "raises", "dies", "loses")


def failing(how: str) -> Peer:
    return Peer(how, functools.partial(Failing, how), f"crew that {how}", "for tests")


def peers(*names: str) -> list[Peer]:
    return [registry.peer(name) for name in names]


@needs_torch
def test_every_transport_of_a_case_has_a_row_of_all_its_turns() -> None:
    with Harness(peers("pipe", "queue", "shmcast"), turns=2) as runs:
        ((case, rows),) = runs.run([QUICK])
        assert runs.skipped == {}
    assert case is QUICK
    assert [row["transport"] for row in rows] == ["pipe", "queue", "shmcast"]
    for row in rows:
        assert row["turns"] == 2
        assert 2 <= row["messages"] <= 16
        assert 0 < row["p50_low_us"] <= row["p50_us"] <= row["p50_high_us"]
        assert row["p50_us"] <= row["p99_us"] <= row["max_us"]
        assert row["reader_cpu_us"] > 0
        assert row["memory_mib"] >= 0


def test_the_first_turn_of_new_processes_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    ask = Crew.ask

    def noted(self: Crew, what: str, *args: Any) -> Any:
        if what == "turn":
            asked.append(args[0])
        return ask(self, what, *args)

    monkeypatch.setattr(Crew, "ask", noted)
    monkeypatch.setattr(line, "look", lambda: None)  # or a case is repeated
    with Harness(peers("pipe", "queue"), turns=2) as runs:
        for _, rows in runs.run([QUICK, dataclasses.replace(QUICK, gap_ms=0.3)]):
            assert [row["turns"] for row in rows] == [2, 2]
    probes, turns = 2, 2 * 2
    assert asked[:3] == ["pipe", "queue", "pipe"]  # the third: both share the crew
    assert len(asked) == (probes + 1 + turns) + (probes + turns)


def test_what_a_message_carries_is_what_readers_sum() -> None:
    case = Case("64 KiB array", 1, 0.2, messages=4, seconds=0.5, lockstep=True, reads=True)
    with Harness(peers("memcpy", "streamed", "loan, just filled"), turns=1) as runs:
        ((_, rows),) = runs.run([case])
    by_name = {row["transport"]: row for row in rows}
    assert by_name["streamed"]["read_p50_us"] > 0
    assert by_name["loan, just filled"]["read_p50_us"] > 0
    assert "read_p50_us" not in by_name["memcpy"]  # it has no readers


@pytest.mark.parametrize("how", HOWS)
def test_what_goes_wrong_with_one_transport_is_told_and_the_others_are_measured(how: str) -> None:
    why = {
        "can't be made": "no such device",
        "raises": "it broke",
        "dies": "rank 1 has ended",
        "loses": "a message was lost",
    }
    with Harness([failing(how), *peers("pipe")], turns=2) as runs:
        ((_, rows),) = runs.run([QUICK])
        (told,) = runs.skipped.values()
    assert [row["transport"] for row in rows] == ["pipe"]
    assert why[how] in told


def test_a_case_is_repeated_while_the_cpus_move(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = line.Trip(40.0), line.Trip(180.0)
    looks = [near, far, far, far]
    monkeypatch.setattr(line, "look", lambda: looks.pop(0))
    with Harness(peers("pipe"), turns=1) as runs:
        ((_, (row,)),) = runs.run([QUICK])
        assert (row["line"], row["line_before_ns"], row["line_after_ns"]) == ("far", 180.0, 180.0)
        assert row["p50_us"] <= row["p99_us"] <= row["p999_us"] <= row["max_us"]
        looks += [near, far] * 3
        ((_, (row,)),) = runs.run([QUICK])
        assert (row["line"], row["line_before_ns"]) == ("moved", 40.0)
        assert looks == []
        monkeypatch.setattr(line, "look", lambda: None)
        ((_, (row,)),) = runs.run([QUICK])
        assert "line" not in row


def test_a_line_takes_some_time_between_two_cpus_and_there_may_be_no_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trip = line.look()
    if trip is not None:
        assert 0 < trip.ns < 1e6
        assert trip.state in ("near", "far")
    line._compiled.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert line.look() is None
    line._compiled.cache_clear()


@needs_torch
@pytest.mark.parametrize("part", ["rpc", "reply"])
def test_an_engine_has_steps_and_replies_by_two_transports_of_a_kind(part: str) -> None:
    case = Case("decode 8", 2, 0, messages=4, seconds=0.5, warm_up=1, engine=part)
    with Harness(peers("shmcast", "streamed"), turns=2) as runs:
        ((_, rows),) = runs.run([case])
        assert runs.skipped == {}
    assert [row["transport"] for row in rows] == ["shmcast", "streamed"]
    for row in rows:
        assert row["engine"] == part
        assert row["messages"] >= 2
        assert 0 < row["p50_us"] <= row["p99_us"] <= row["p999_us"]
        assert 0 < row["steps_per_s"] < 500  # workers compute for 2 ms at least


def test_an_engine_has_two_parts() -> None:
    with pytest.raises(ValueError, match="engine 'wheels' is none of rpc, reply"):
        Case("49 B", engine="wheels")
    driver, first, second = Done(counted=1), Done(counted=2), Done(counted=3)
    assert engine.by_part("rpc", [driver, first, second]) == [driver, first, second]
    assert engine.by_part("reply", [driver, first, second]) == [first, driver, second]


def test_a_missing_module_is_named() -> None:
    peer = dataclasses.replace(registry.peer("pipe"), modules=("no_such_module",))
    with Harness([peer]) as runs:
        ((_, rows),) = runs.run([QUICK])
        assert "no_such_module" in runs.skipped["pipe"]
    assert rows == []


def test_a_transport_of_one_size_is_skipped_for_a_trace_and_takes_part_in_other_cases() -> None:
    trace = Case("trace, fast", 1, pattern="trace", messages=4, warm_up=1)
    one_size = dataclasses.replace(registry.peer("pipe"), name="one size", one_object=True)
    with Harness([one_size], turns=1) as runs:
        (_, of_trace), (_, of_small) = runs.run([trace, QUICK])
        assert "one size only" in runs.skipped[f"one size: {trace}"]
    assert of_trace == []
    assert [row["transport"] for row in of_small] == ["one size"]


def test_a_member_that_hangs_is_named_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Crew.ask

    def impatient(self: Crew, method: str, *args: Any) -> list[Any]:
        seconds = 1.0 if (method, args[:1]) == ("turn", ("hangs",)) else crew.START_SECONDS
        monkeypatch.setattr(crew, "ANSWER_SECONDS", seconds)
        return ask(self, method, *args)

    monkeypatch.setattr(Crew, "ask", impatient)
    monkeypatch.setattr(launchers, "END_SECONDS", 0.1)
    with Harness([failing("hangs"), *peers("pipe")], turns=1) as runs:
        ((_, rows),) = runs.run([QUICK])
        assert "no answer of rank 1 in 1 s" in runs.skipped["hangs"]
    assert [row["transport"] for row in rows] == ["pipe"]


# Suites and bounds


@pytest.mark.parametrize("suite", suites.SUITES)
def test_everything_that_a_suite_names_is_there(suite: str) -> None:
    chosen = suites.SUITES[suite]
    cases = chosen.cases(1.0)
    assert cases
    for case in cases:
        assert catalogue.workload(case.workload).name == case.workload
        assert set(case.transports) <= set(chosen.transports)
    for name in chosen.transports:
        assert registry.peer(name).settings


def test_importing_the_transports_imports_no_peer() -> None:
    program = (
        "import sys; from bench.transports import registry; registry.peers(); "
        "print(*{'torch', 'zmq', 'ray', 'vllm', 'mpi4py', 'kickmsg'} & set(sys.modules))"
    )
    command = [sys.executable, "-W", "error", "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)  # noqa: S603
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stderr


ROW = {"transport": "shmcast", "p50_us": 10.0}
OTHER = {"transport": "pipe", "p50_us": 40.0}


def test_a_bound_is_about_the_ratio_of_two_transports() -> None:
    bound = smoke.Bound(QUICK, "shmcast", "pipe", 0.3)
    assert bound.ratio([OTHER, ROW]) == 0.25
    rates = [{"transport": "shmcast", "rate_per_s": 400}, {"transport": "pipe", "rate_per_s": 100}]
    of_rates = dataclasses.replace(bound, case=dataclasses.replace(QUICK, gap_ms=0))
    assert of_rates.ratio(rates) == 0.25


def test_a_bound_that_is_missed_three_times_fails_and_says_which(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = {
        "case": {"workload": "49 B", "gap_ms": 0.2, "messages": 4, "seconds": 0.2},
        "transport": "queue",
        "peer": "pipe",
    }
    codec_path = tmp_path / "codec_bounds.json"
    codec_path.write_text("[]")
    path = tmp_path / "bounds.json"
    path.write_text(json.dumps([written | {"at_most": 1e-6}, written | {"at_most": 1e6}]))
    with pytest.raises(typer.Exit) as exited:
        smoke.main(path, codec_path)
    assert exited.value.exit_code == 1
    assert "queue takes more than 1e-06 times what" in " ".join(capsys.readouterr().out.split())
    path.write_text(json.dumps([written | {"at_most": 1e6}]))
    smoke.main(path, codec_path)


def test_the_committed_bounds_are_of_transports_that_every_checkout_has() -> None:
    bounds = smoke.read(smoke.BOUNDS)
    assert bounds
    for bound in bounds:
        for name in (bound.transport, bound.peer):
            assert set(registry.peer(name).modules) <= {"torch", "msgspec"}
        assert bound.at_most > 0


# Neighbours


@pytest.mark.parametrize(("name", "interval"), busy_thread.INTERVALS.items())
def test_a_busy_thread_runs_inside_a_case_and_no_longer(name: str, interval: float | None) -> None:
    before = sys.getswitchinterval()
    with busy_thread.inside(name):
        assert name in [thread.name for thread in threading.enumerate()]
        assert sys.getswitchinterval() == pytest.approx(interval or before)
    assert name not in [thread.name for thread in threading.enumerate()]
    assert sys.getswitchinterval() == before
    with pytest.raises(ValueError, match="inside 'a lazy thread' is none of a busy thread;"):
        Case("49 B", inside="a lazy thread")


@pytest.mark.parametrize("name", ["", *NEIGHBOURS])
def test_a_neighbour_is_there_and_gone(name: str) -> None:
    before = multiprocessing.active_children()
    with neighbours.beside(name):
        there = [each for each in multiprocessing.active_children() if each not in before]
        assert all(each.is_alive() for each in there)
        assert len(there) == {"": 0, "two idle pairs": 2}.get(name, 1)
    assert not any(each.is_alive() for each in there)


def test_a_neighbour_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="neighbour 'a loud one' is none of two idle pairs"):
        Case("49 B", beside="a loud one")

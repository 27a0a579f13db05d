"""`python -m bench engines`: what its probe notes, and what is made of it."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import commands
from bench.engines import probe, process, runs
from bench.report import report
from tests.support.permissions import needs_torch


def _end(pid: int, parent: int, is_writer: bool, times: list[tuple[int, ...]]) -> probe.End:
    """Return one with a call, a return and perhaps the CPU time so far, for each message."""
    flat = [len(times), *(time for each in times for time in (*each, 0)[:3])]
    return probe.End("a queue", is_writer, pid, parent, np.array(flat))


def test_a_delay_ends_with_the_last_reader_and_begins_when_all_are_there() -> None:
    writer = _end(1, 0, True, [(1_000, 2_000), (20_000, 21_000)])
    readers = [
        _end(2, 1, False, [(500, 4_000), (5_000, 23_000)]),
        _end(3, 1, False, [(3_000, 8_000), (9_000, 22_000)]),
    ]
    link = probe.Link(writer, readers)
    assert link.delays_us(0, 2).tolist() == [5.0, 3.0]
    assert link.enqueue_us(1, 2).tolist() == [1.0]


def test_what_waiting_takes_is_counted_between_returns() -> None:
    """Before the first one, a reader may have waited for long; other work is between calls."""
    times = [(0, 1_000_000, 900_000), (1_500_000, 2_000_000, 1_000_000), (0, 3_000_000, 1_200_000)]
    of_other = [(0, 1_000_000, 0), (0, 2_000_000, 500_000), (0, 3_000_000, 500_000)]
    readers = [_end(2, 1, False, [*times]), _end(3, 1, False, [*of_other])]
    link = probe.Link(_end(1, 0, True, [(0, 1)] * 3), readers)
    assert link.waiting_cpu(0, 3) == pytest.approx((0.15 + 0.25) / 2)
    assert link.waiting_cpu(0, 2) == pytest.approx((0.1 + 0.5) / 2)


def test_the_queues_of_an_engine_are_told_apart() -> None:
    def ends(queue: str, writer: tuple[int, int], *readers: tuple[int, int]) -> list[probe.End]:
        of_writer = probe.End(queue, True, *writer, np.array([writer[0] % 10]))
        return [of_writer, *(probe.End(queue, False, *reader, np.zeros(1)) for reader in readers)]

    core, first, second = (10, 1), (23, 10), (22, 10)
    found = [
        *ends("calls", core, first, second),
        *ends("replies of the first", first, core),
        *ends("replies of the second", second, core),
        *ends("of a group", first, second),
    ]
    calls, replies = probe.links(found)
    assert (calls.writer.queue, len(calls.readers)) == ("calls", 2)
    assert replies.writer.queue == "replies of the first"  # who has answered more


def test_the_probe_notes_calls_and_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(probe.FOLDER, str(tmp_path))
    clock = itertools.count(0, 100)
    monkeypatch.setattr(time, "thread_time_ns", clock.__next__)
    queue: Any = SimpleNamespace(handle=SimpleNamespace(buffer_handle=(1, 2, 3, "ring")))

    def dequeue(_self: Any, timeout: float) -> float:
        if timeout < 0:
            raise TimeoutError("in vain")
        return timeout

    noted = probe._noted(dequeue, "reader")
    assert [noted(queue, timeout) for timeout in (1.0, 2.0)] == [1.0, 2.0]
    [end] = probe.ends(tmp_path)
    assert (end.queue, end.is_writer, end.pid) == ("ring", False, os.getpid())
    assert end.count == 2
    times = end.messages(0, 2)
    assert sorted(times[:, :2].ravel()) == [*times[:, :2].ravel()]
    assert [*times[:, 2]] == [100, 200]
    assert probe.first_error(tmp_path, os.getpid()) is None
    for _ in range(2):
        with pytest.raises(TimeoutError):
            noted(queue, -1.0)
    noted(queue, 3.0)
    assert end.messages(2, 3)[0, 2] == 500  # (what calls in vain have spent is told, too)
    told = probe.first_error(tmp_path, os.getpid())
    assert told is not None
    assert told[1] == "TimeoutError: in vain"


def test_its_plugin_is_found(tmp_path: Path) -> None:
    probe.write_plugin(tmp_path)
    program = (
        "from importlib.metadata import entry_points\n"
        "[found] = [each for each in entry_points(group='vllm.general_plugins') "
        "if each.name == 'shmcast_bench_probe']\n"
        "print(found.load().__qualname__)"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == "install\n", ran.stderr


def test_without_the_environment_it_says_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ROOT", tmp_path)
    arguments = ["engines", "--folder", str(tmp_path / "results")]
    result = CliRunner().invoke(commands.app, arguments)
    assert result.exit_code == 2
    assert "run `make engines`" in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "results").exists()


def test_what_is_measured_anew_takes_the_place_of_what_was_there() -> None:
    def rows(case: str, ranks: int, batches: tuple[int, ...], figure: int) -> list[dict[str, Any]]:
        return [{"case": case, "ranks": ranks, "batch": each, "cpu": figure} for each in batches]

    kept = [
        *rows("tokens", 1, (1, 8), 0),
        *rows("waiting", 1, (0,), 0),
        *rows("tokens", 2, (1, 8), 0),
        *rows("waiting", 2, (0,), 0),
    ]
    anew = [*rows("waiting", 2, (0, 1), 1), *rows("waiting", 1, (0, 1), 1)]
    assert runs.merged(kept, anew) == [
        *rows("tokens", 1, (1, 8), 0),
        *rows("waiting", 1, (0, 1), 1),
        *rows("tokens", 2, (1, 8), 0),
        *rows("waiting", 2, (0, 1), 1),
    ]
    assert runs.merged(kept, []) == kept


def test_of_rounds_there_are_the_median_and_each() -> None:
    made = runs._medians([{"cpu": 3.0, "p": 1.0}, {"cpu": 1.0, "p": 2.0}, {"cpu": 2.0, "p": 9.0}])
    of_rounds = {"cpu": [3.0, 1.0, 2.0], "p": [1.0, 2.0, 9.0]}
    assert made == {"rounds": 3, "cpu": 2.0, "p": 2.0, "of_rounds": of_rounds}


@needs_torch  # of which the machine's description has the version
def test_one_case_can_be_measured_anew_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "peers", dict)
    measured = []

    def run(
        _console: Any, _ranks: Any, _rounds: int, write: Any, cases: Any
    ) -> list[dict[str, Any]]:
        measured.append([*cases])
        rows = [
            {"case": case, "ranks": 1, "transport": "shmcast", "gap_ms": -1.0, "cpu": len(measured)}
            for case in cases
        ]
        write(rows)
        return rows

    monkeypatch.setattr(runs, "run", run)
    monkeypatch.setattr(report, "write", lambda folder: folder)
    command = ["engines", "--folder", str(tmp_path)]
    runner = CliRunner()
    assert runner.invoke(commands.app, command).exit_code == 0
    assert runner.invoke(commands.app, [*command, "--cases", "waiting"]).exit_code == 2
    anew = runner.invoke(commands.app, [*command, "--cases", "waiting", "--overwrite"])
    assert anew.exit_code == 0, anew.output
    unknown = runner.invoke(commands.app, [*command, "--cases", "typo", "--overwrite"])
    assert unknown.exit_code == 2
    assert "'typo' is none of" in unknown.output.replace("\n", " ")
    path = tmp_path / "engines.json"
    rows = json.loads(path.read_text())["rows"]
    assert {row["case"]: row["cpu"] for row in rows} == {
        "tokens": 1,
        "waiting": 2,
        "killed": 1,
        "requests": 1,
    }
    assert measured == [[*runs.CASES], ["waiting"]]

    elsewhere = json.loads(path.read_text())
    elsewhere["machine"]["cpu"] = "another"
    path.write_text(json.dumps(elsewhere))
    refused = runner.invoke(commands.app, [*command, "--cases", "waiting", "--overwrite"])
    assert refused.exit_code == 2
    assert "another machine" in refused.output.replace("\n", " ")
    assert json.loads(path.read_text()) == elsewhere

"""`python -m bench engines`: what its probe notes, and what is made of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import commands
from bench.engines import probe, runs


def _end(pid: int, parent: int, is_writer: bool, times: list[tuple[int, int]]) -> probe.End:
    flat = [len(times), *(time for pair in times for time in pair)]
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
    times = end.messages(0, 2).ravel()
    assert sorted(times) == [*times]
    assert probe.first_error(tmp_path, os.getpid()) is None
    for _ in range(2):
        with pytest.raises(TimeoutError):
            noted(queue, -1.0)
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
    monkeypatch.setattr(runs, "_ROOT", tmp_path)
    arguments = ["engines", "--folder", str(tmp_path / "results")]
    result = CliRunner().invoke(commands.app, arguments)
    assert result.exit_code == 2
    assert "run `make engines`" in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "results").exists()

"""`python -m bench run`: what is asked for is checked first, and results are never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench import commands, terminal
from bench.run import job
from bench.run.case import Case
from bench.run.selection import choose
from bench.run.suites import SUITES
from tests.support.permissions import needs_torch
from tests.support.processes import ANSWER_SECONDS

ROOT = Path(__file__).parents[2]
RUN = ["run", "peers", "--workloads", "49 B", "--readers", "1", "--gaps", "0.3", "--turns", "1"]
QUICK = [*RUN, "--scale", "0.05", "--only", "pipe"]


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(commands.app, [*arguments, "--folder", str(folder)])
    return result.exit_code, result.output.replace("\n", " ")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["run", "peers", "typo"], "'typo'"),
        (["run", "peers", "--workloads", "TYPO"], "'TYPO'"),
        (["run", "peers", "--only", "zmq"], "'zmq'"),
        (["run", "peers", "--readers", "77"], "77"),
        (["run", "peers", "--gaps", "0.123"], "0.123"),
    ],
)
def test_a_name_that_is_none_ends_it_before_anything_is_touched(
    tmp_path: Path, arguments: list[str], why: str
) -> None:
    (tmp_path / "peers.json").write_text("good")
    code, output = run(tmp_path, *arguments, "--overwrite")
    assert code == 2
    assert f"{why} is none of" in output
    assert (tmp_path / "peers.json").read_text() == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["peers.json"]


@needs_torch
def test_results_are_replaced_only_when_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "peers.json").write_text("good")
    code, output = run(tmp_path, *QUICK)
    assert code == 2
    assert "--overwrite" in output
    assert (tmp_path / "peers.json").read_text() == "good"
    code, _ = run(tmp_path, *QUICK, "--overwrite")
    assert code == 0
    result = json.loads((tmp_path / "peers.json").read_text())
    assert [row["transport"] for row in result["rows"]] == ["pipe"]


def test_each_case_is_written_when_it_is_done() -> None:
    cases = [Case("49 B", 1, 0.3, messages=4, seconds=0.2, warm_up=1)] * 2
    written: list[int] = []
    commands.run_cases(
        terminal.console(), "two", ["pipe"], cases, 1, lambda rows, _: written.append(len(rows))
    )
    assert written == [1, 2, 2]


def test_a_suite_without_a_case_that_was_asked_for_is_left_out() -> None:
    every = choose([], [], [], [], [], 1.0)
    assert [one.suite for one in every] == [*SUITES, job.SUITE]
    some = choose([], [], ["49 B"], [], [], 1.0)
    assert all(case.workload == "49 B" for one in some for case in one.cases)
    assert job.SUITE not in [one.suite for one in some]


def test_what_looks_like_markup_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    console = terminal.console()
    console.print(terminal.definitions([("bench[all]", "pip install 'x[peers]'")], "a [title]"))
    console.print("needs [peers]", style="yellow")
    shown = capsys.readouterr().out
    for text in ("bench[all]", "'x[peers]'", "a [title]", "needs [peers]"):
        assert text in shown


@needs_torch
def test_an_interrupted_run_keeps_what_it_has_and_prints_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", *RUN, "--only", "pipe", "--scale", "1000"]
    command[command.index("--turns") + 1] = "1000"
    with subprocess.Popen(  # noqa: S603
        [*command, "--folder", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"FORCE_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        shown = b""
        try:
            while b", settling" not in shown:  # (the bar: a turn is under way, and a long one)
                read = os.read(process.stdout.fileno(), 65536)
                assert read, shown
                shown += read
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
            rest, _ = process.communicate(timeout=ANSWER_SECONDS)
        finally:
            process.kill()
    assert b"Traceback" not in shown + rest
    assert process.returncode == 130

"""`shmcast bench`: each transport in each case, whatever is missing, and nothing is left behind."""

from __future__ import annotations

import multiprocessing
import os
import pty
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from shmcast._operators.bench import figures
from shmcast._operators.bench.cases import MESSAGES, percentile, reader_counts
from shmcast._operators.bench.crew import Crew, CrewFailed
from shmcast._operators.bench.figures import Figure
from shmcast._operators.bench.transports import TRANSPORTS
from tests.support import operators
from tests.support.confined import in_namespaces
from tests.support.operators import rows
from tests.support.permissions import needs_torch
from tests.support.terminal import WIDTH

QUICK = ("bench", "--readers", "2", "--seconds", "0.1")


@pytest.fixture
def _no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@needs_torch
def test_each_transport_is_measured_in_each_case() -> None:
    found = rows("bench", "--readers", "1", "--seconds", "0.1")
    assert [row["error"] for row in found] == [""] * len(found)
    cases = {(row["transport"], row["message"], row["gap_ms"]) for row in found}
    assert cases == {(by, what, gap) for by in TRANSPORTS for what in MESSAGES for gap in (0, 1)}
    assert {row["readers"] for row in found} == {1}
    for row in found:
        if row["gap_ms"]:
            assert 0 < row["p50_us"] <= row["p99_us"]
            assert row["messages_per_second"] is None
        else:
            assert row["messages_per_second"] > 0
            assert row["p50_us"] is row["p99_us"] is None
        assert row["transport"] != "shmcast" or row["ratio"] == 1
        assert row["ratio"] > 0


@pytest.mark.usefixtures("_no_torch")
def test_a_peer_that_is_not_there_is_named_and_the_others_are_measured() -> None:
    found = rows(*QUICK)
    assert {row["readers"] for row in found} == {2}
    errors = {row["transport"]: row["error"] for row in found}
    assert errors.pop("gloo") == "the source: ImportError: there is no torch here"
    assert errors == {"shmcast": "", "pipe": ""}
    text = figures.as_text([Figure(**row) for row in found])
    assert text.endswith(
        "\n\ngloo was not measured: the source: ImportError: there is no torch here"
    )


def test_without_a_network_gloo_is_given_up_at_once() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "COMMAND", [*in_namespaces("--net"), *operators.COMMAND])
        found = rows(*QUICK)
    errors = {row["transport"]: row["error"] for row in found}
    assert errors.pop("gloo").startswith(
        "the source: ConnectionError: there is no loopback network here: "
    )
    assert errors == {"shmcast": "", "pipe": ""}


def said_and_ended(answer: tuple[str, object] | None) -> Connection:
    """Return the end to a process that has said this, and ended."""
    mine, its = multiprocessing.Pipe()
    with its:
        if answer is not None:
            its.send(answer)
    return mine


@pytest.mark.parametrize(
    ("source", "reader", "told"),
    [
        (("ready", ""), ("failed", "no"), "reader 0: no"),
        (("failed", "why"), ("failed", "no"), "the source: why"),
        (("failed", "why"), None, "the source: why"),
        (("ready", ""), None, "reader 0 has ended"),
        (None, None, "the source has ended"),
    ],
)
def test_who_fails_is_told_before_others_give_up(
    source: tuple[str, object] | None, reader: tuple[str, object] | None, told: str
) -> None:
    crew = Crew.__new__(Crew)
    crew._controls = [*map(said_and_ended, (source, reader, ("ready", "")))]
    with pytest.raises(CrewFailed, match=f"^{told}$"):
        crew.meet()
    for control in crew._controls:
        control.close()


@pytest.mark.usefixtures("_no_torch")
def test_it_has_its_code_if_shmcast_can_not_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCAST_SLOTS", "3")
    found = rows(*QUICK, code=4)
    [error] = {row["error"] for row in found if row["transport"] == "shmcast"}
    assert error.startswith("the source: InvalidArgument: ")
    assert {row["ratio"] for row in found} == {None}
    assert any(row["p50_us"] for row in found if row["transport"] == "pipe")


@pytest.mark.usefixtures("_no_torch")
def test_an_interrupt_leaves_no_process() -> None:
    terminal, its = pty.openpty()
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "shmcast", *QUICK],
        stdout=subprocess.PIPE,
        stderr=its,
        start_new_session=True,
        text=True,
    ) as program:
        os.close(its)
        told = b""
        while b"round 1" not in told:
            told += os.read(terminal, 1000)
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        members = [pid for pid in children if b"spawn_main" in command_line(pid)]
        os.killpg(program.pid, signal.SIGINT)
        printed, _ = program.communicate(timeout=40)
    os.close(terminal)
    assert (program.returncode, printed) == (130, "")
    assert len(members) == 2 * 3  # of shmcast and of the Pipes
    assert [pid for pid in members if Path(f"/proc/{pid}").exists()] == []
    held = {holder for row in rows("list") for holder in row["holders"]}
    assert held.isdisjoint(map(int, members))


def command_line(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def test_the_table_fits_a_terminal() -> None:
    slow = Figure("shmcast", "decode step", 99_999, 1.0, 4096, 2, 123456.0, 1234567.0, None, 1.0)
    rate = Figure("pipe", "decode step", 99_999, 0.0, 4096, 2, None, None, 123456.0, 1234.5)
    lines = figures.as_text([slow, rate]).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert "…" not in "".join(lines)


def test_percentiles_are_values_that_were_seen() -> None:
    seen = [float(number) for number in range(1, 101)]
    assert [percentile(seen, part) for part in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]


def test_there_is_always_a_reader() -> None:
    assert reader_counts()[0] == 1

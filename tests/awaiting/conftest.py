"""Fixtures of the tests of awaiting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shmcast import Reader
from shmcast._endpoints import awaiting
from tests.support.loops import LOOPS, Run
from tests.support.processes import Crew, Job
from tests.support.ring_roles import handle_at, send_numbered


@pytest.fixture(params=LOOPS, ids=lambda run: run.__name__)
def run(request: pytest.FixtureRequest) -> Run:
    """Each event loop in turn: what runs a coroutine function to its end, in a loop of its own."""
    found: Run = request.param
    return found


@pytest.fixture
def only_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loops look when they are woken, and never because it is time: a lost byte is noticed."""
    for name in ("FIRST_INTERVAL", "LONGEST_INTERVAL", "USUAL_INTERVAL"):
        monkeypatch.setattr(awaiting, name, 3600.0)


Sender = Callable[..., tuple[Job, Reader]]


@pytest.fixture
def sender(crew: Crew, tmp_path: Path) -> Sender:
    """Start a process that sends so many numbered messages; with a reader of them."""

    def start(count: int, nbytes: int = 0) -> tuple[Job, Reader]:
        job = crew.workers[0].start(send_numbered, 0, tmp_path / "handle", count, nbytes)
        return job, Reader(handle_at(tmp_path / "handle"), 0)

    return start

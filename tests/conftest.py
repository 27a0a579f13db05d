"""Fixtures that start processes, so that a test reads as the story of a writer and its readers."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator

import pytest

from shmcast import WaitPolicy
from shmcast._host import shared_memory as segment
from tests.support import ranks
from tests.support.processes import Crew


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Eight spawned processes without torch."""
    crew = Crew(8)
    yield crew
    crew.end()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crew]:
    """Four spawned processes that are ranks 0 to 3 of a gloo world."""
    crew = Crew(4)
    crew.run(4, ranks.join, 4, str(tmp_path_factory.mktemp("world") / "store"))
    yield crew
    crew.end()


@pytest.fixture(params=[WaitPolicy.spin(), WaitPolicy.semaphore(), WaitPolicy.adaptive()], ids=str)
def wait(request: pytest.FixtureRequest) -> WaitPolicy:
    """Each wait policy in turn."""
    policy: WaitPolicy = request.param
    return policy


@pytest.fixture(autouse=True)
def _no_segment_is_left() -> Iterator[None]:
    """Every test leaves /dev/shm as it found it."""
    before = _segments()
    yield
    left = _segments() - before
    assert not left, f"segments left behind: {left}"


def _segments() -> set[str]:
    """Those of this process, its children and the dead: other programs may run at the same time."""
    family = {os.getpid(), *(child.pid for child in multiprocessing.active_children())}
    return {
        found.name
        for found in segment.clean(dry_run=True)
        if found.pid in family or found.verdict is segment.Verdict.DEAD
    }


@pytest.fixture
def no_gc() -> Iterator[None]:
    """What must go by itself goes without the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()

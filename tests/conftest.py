"""Fixtures that start processes, so that a test reads as the story of a writer and its readers."""

from __future__ import annotations

import faulthandler
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from shmcast import WaitPolicy
from tests.support import permissions, shared_memory
from tests.support.processes import ONE_THREAD, Crew, spawning, wait_for_an_engine
from tests.support.ranks import World
from tests.support.subprocess_programs import TorchPrograms

settings.register_profile("tests", deadline=None)  # examples take longer on a busy machine
settings.load_profile("tests")

_is_alone_in_shm = pytest.StashKey[bool]()
_terminal = pytest.StashKey[int]()  # the descriptor of stderr, while that of tests is captured


def pytest_configure(config: pytest.Config) -> None:
    """Keep the way to the terminal open for the last words of a run that hangs.

    And have modules compiled once, not in each process that tests start.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    with config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        config.stash[_terminal] = os.dup(2)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Close it."""
    os.close(config.stash[_terminal])


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> None:
    """End the test's process, with all stacks, if its time-out can't end the test.

    Its signal is handled in Python, to which native code that hangs never returns. The run goes on:
    xdist replaces the process, and counts the test as failed.
    """
    wait_for_an_engine()
    seconds = 3 * settings.timeout
    faulthandler.dump_traceback_later(seconds, exit=True, file=item.config.stash[_terminal])


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer() -> None:
    """Let the run go on: the test has ended."""
    faulthandler.cancel_dump_traceback_later()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Set up what all tests and their processes share.

    A /dev/shm of their own, where the machine permits it: other programs of this user would remove
    what tests leave on purpose, and add to what tests count.
    """
    os.environ |= ONE_THREAD
    try:
        shared_memory.make_private()
    except permissions.NotPermitted:
        session.config.stash[_is_alone_in_shm] = False
    else:
        session.config.stash[_is_alone_in_shm] = True


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    """Skip modules that need torch where there is none, as for Pythons without a wheel of it."""
    report = yield
    is_refused = report.failed and "No module named 'torch" in str(report.longrepr)
    if is_refused and not permissions.HAS_TORCH:
        report.outcome = "skipped"
        report.longrepr = (report.nodeid, None, "there is no torch here")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Iterator[None]:
    """Skip a test one of whose fixtures is refused what it needs."""
    with permissions.skipping():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Skip a test that is refused what it needs."""
    with permissions.skipping():
        return (yield)


@pytest.fixture(scope="session", autouse=True)
def _programs_heed_signals() -> None:
    """Have the programs that tests start heed what a script's background job or nohup ignores.

    They would ignore it, too. A signal with a handler is nobody's in a program that is started.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session")
def mounts(request: pytest.FixtureRequest) -> None:
    """Skip a test that needs what the session was refused: to mount what it likes."""
    if not request.config.stash[_is_alone_in_shm]:
        raise permissions.NotPermitted("this machine lets the tests mount nothing (root may)")


@pytest.fixture(scope="session")
def crew() -> Iterator[Crew]:
    """Eight processes."""
    with Crew(8) as crew:
        yield crew


@pytest.fixture(scope="session")
def children() -> Iterator[Crew]:
    """Three spawned processes, of which every kernel tells this one how they ended."""
    with Crew(3, spawning()) as crew:
        yield crew


@pytest.fixture(scope="session")
def _world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(4, tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture
def world(_world: World) -> Crew:
    """Four processes that are ranks 0 to 3 of a gloo world."""
    _world.mend()
    return _world


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[tuple[Crew, str]]:
    """Four processes for one test alone, and the file of a store by which they can join a world."""
    with Crew(4) as crew:
        yield crew, str(tmp_path / "store")


@pytest.fixture(scope="session")
def torch_programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchPrograms]:
    """Run programs whose interpreters have imported torch already."""
    programs = TorchPrograms(tmp_path_factory.mktemp("programs"))
    yield programs
    programs.close()


@pytest.fixture(params=[WaitPolicy.spin(), WaitPolicy.semaphore(), WaitPolicy.adaptive()], ids=str)
def wait(request: pytest.FixtureRequest) -> WaitPolicy:
    """Each wait policy in turn."""
    policy: WaitPolicy = request.param
    return policy


@pytest.fixture(autouse=True)
def _no_segment_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that every test leaves /dev/shm as it found it."""
    is_alone = request.config.stash[_is_alone_in_shm]
    before = _segments(is_alone)
    yield
    left = _segments(is_alone) - before
    assert not left, f"segments left behind: {left}"


def _segments(is_alone: bool) -> set[str]:
    """Return all that there are; beside other programs, those of this process and its children."""
    if is_alone:
        return shared_memory.segments()
    family = {os.getpid(), *(child.pid or 0 for child in multiprocessing.active_children())}
    return shared_memory.segments_of(*family)


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Keep the garbage collector away from what must go by itself.

    A test's own collections are spared all that there was before: modules, most of all.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()

"""A test that hangs fails alone: its time-out ends it wherever it waits, and the run goes on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.subprocess_programs import ROOT

HANGS = """
import contextlib
import signal
import threading

import pytest

import shmcast
from shmcast import Reader, WaitPolicy, Writer
from tests.support.processes import Crew, spawning


@pytest.mark.timeout(0.25)
@pytest.mark.parametrize("wait", [WaitPolicy.spin(), WaitPolicy.semaphore(), WaitPolicy.adaptive()])
def test_recv(wait):
    with Writer(1) as writer, Reader(writer.handle, 0, wait=wait) as reader:
        reader.recv()


@pytest.mark.timeout(0.25)
def test_send():
    with Writer(1, slots=2) as writer, Reader(writer.handle, 0):
        while True:
            writer.send(bytes(100_000))


@pytest.mark.timeout(0.25)
def test_wait_ready():
    with Writer(1) as writer:
        writer.wait_ready()


def receive(reader):
    with contextlib.suppress(shmcast.Closed):
        reader.recv()


@pytest.mark.timeout(0.25)
def test_another_thread():
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        thread = threading.Thread(target=receive, args=(reader,))
        thread.start()
        thread.join()


@pytest.mark.timeout(1)
def test_another_process():
    with Crew(1, spawning()) as crew:
        crew.workers[0].start(signal.pause).result()


@pytest.fixture
def hanging():
    threading.Event().wait()


@pytest.mark.timeout(0.25)
def test_set_up(hanging):
    pass


def test_the_next_one():
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send("on")
        assert reader.recv(10) == "on"
"""

HANGS_IN_NATIVE_CODE = """
import ctypes

import pytest


@pytest.mark.timeout(0.25)
def test_never_returns():
    lock = ctypes.CDLL(None).pthread_mutex_lock
    mutex = ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)


def test_the_next_one():
    pass
"""


def run(tests: Path, *options: str) -> subprocess.CompletedProcess[str]:
    options = ("-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", *options)
    return subprocess.run(  # noqa: S603
        [sys.executable, "-m", "pytest", *options, str(tests)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_a_test_that_hangs_fails_alone_and_the_run_goes_on(tmp_path: Path) -> None:
    tests = tmp_path / "test_hangs.py"
    tests.write_text(HANGS)
    ran = run(tests, "-n0", "-rA", "--tb=no")
    summary = ran.stdout.partition("short test summary info")[2]
    assert re.findall(r"^PASSED .*::(\w+)", summary, re.M) == ["test_the_next_one"], ran.stdout
    ended = re.findall(r"^(?:FAILED|ERROR) .*::(\w+).* - Failed: Timeout", summary, re.M)
    assert len(ended) == 8, ran.stdout


def test_a_test_that_hangs_in_native_code_ends_its_process_and_shows_where(tmp_path: Path) -> None:
    tests = tmp_path / "test_hangs.py"
    tests.write_text(HANGS_IN_NATIVE_CODE)
    ran = run(tests, "-n1", "-p", "tests.conftest")
    assert ran.returncode == 1, ran.stdout
    assert "1 failed, 1 passed" in ran.stdout
    assert "Timeout (" in ran.stderr
    assert re.search(r'File ".*test_hangs\.py", line \d+ in test_never_returns', ran.stderr)

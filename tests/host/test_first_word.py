"""A process's end is told by a mutex that it held: to all who wait, with how it ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from shmcast._host.first_word import FirstWord
from shmcast._host.process import how_it_ends
from tests.support.subprocess_programs import ROOT, WARNINGS, wait_until

# It says what it offers, then ends as it is told to, and is a zombie until the test reaps it.
PROGRAM = """
import os, sys
from shmcast._host import first_word
fd = first_word.offer()
assert first_word.offer() == fd
if "fork" in sys.argv:
    parents = os.stat(fd).st_ino
    if os.fork():
        os._exit(0)
    fd = first_word.offer()
    assert os.stat(fd).st_ino != parents
print(os.getpid(), fd, flush=True)
exec(sys.stdin.readline())
"""


@contextlib.contextmanager
def offering(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """Run the program; give it, its pid and its descriptor."""
    command = [sys.executable, *WARNINGS, "-c", PROGRAM, *arguments]
    with subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid, fd = map(int, process.stdout.readline().split())
        try:
            yield process, pid, fd
        finally:
            process.kill()


def end(process: subprocess.Popen[str], how: str) -> None:
    assert process.stdin is not None
    process.stdin.write(how + "\n")
    process.stdin.flush()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("os._exit(3)", "exit code 3"),
        ("pass", "exit code 0"),
    ],
)
def test_all_who_wait_are_told_and_how(how: str, told: str) -> None:
    with offering() as (process, pid, fd):
        waiters = [threading.Thread(target=FirstWord(pid, fd).wait) for _ in range(3)]
        for waiter in waiters:
            waiter.start()
        assert how_it_ends(pid) == ""
        assert all(waiter.is_alive() for waiter in waiters)
        end(process, how)
        for waiter in waiters:
            waiter.join()
        wait_until(lambda: how_it_ends(pid) == told)


def test_a_forks_child_offers_its_own() -> None:
    with offering("fork") as (parent, pid, fd):
        assert parent.wait() == 0
        waiter = threading.Thread(target=FirstWord(pid, fd).wait)
        waiter.start()
        end(parent, "os._exit(3)")
        waiter.join()


def test_who_offers_nothing_can_not_be_waited_for() -> None:
    with offering() as (process, pid, fd):
        with pytest.raises(FileNotFoundError, match="it offers no word of its end"):
            FirstWord(pid, 0)
        with pytest.raises(FileNotFoundError):
            FirstWord(pid, 9999)
        process.kill()
        process.wait()
        with pytest.raises(FileNotFoundError):
            FirstWord(pid, fd)
        assert how_it_ends(pid) == ""

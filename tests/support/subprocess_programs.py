"""Python programs for tests to look at from outside, and to stop and kill."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
"""Of the checkout."""

DEADLINE_SECONDS = 30.0

BLOCKS = "input()"
SPINS = "while True: pass"


@contextlib.contextmanager
def running(program: str) -> Iterator[subprocess.Popen[str]]:
    """Run `program` in a process, with pipes to it; kill it at the end."""
    command = [sys.executable, "-I", "-S", "-c", program]
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run_to_its_end(program: str) -> subprocess.CompletedProcess[str]:
    """Run `program`, with warnings as errors, and keep what it prints."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def tell(process: subprocess.Popen[str], line: str = "") -> None:
    """Send the program a line."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")


def end_input(process: subprocess.Popen[str]) -> None:
    """Send the program the end of its input."""
    assert process.stdin is not None
    process.stdin.close()


def hear(process: subprocess.Popen[str]) -> str:
    """Return the next line that the program prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def wait_until(
    condition: Callable[[], bool], what: Callable[[], str] = lambda: "it never came to be"
) -> None:
    """Look again and again until `condition` holds; `what` says what is wrong if it never does."""
    give_up = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < give_up, what()
        time.sleep(0.001)

"""Python programs for tests to look at from outside, and to stop and kill."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
"""Of the checkout."""

DEADLINE_SECONDS = 30.0

TORCH_SECONDS = 170.0
"""For a program whose processes each import torch, which takes a minute on a busy machine."""

imports_torch = pytest.mark.timeout(TORCH_SECONDS + 10)
"""Marks a test of such a program."""

WARNINGS = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")
"""Of a Python that runs a program: errors, but those of forks beside threads, as in the tests."""

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
    """Run `program`, with warnings as errors but those of forks, and keep what it prints."""
    return subprocess.run(  # noqa: S603
        [sys.executable, *WARNINGS, "-c", program],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def without_gloo(printed: str) -> str:
    """Return what a program has printed, without the lines that gloo prints in torch 2.9."""
    return re.sub(r"^\[Gloo\] .*\n", "", printed, flags=re.MULTILINE)


_FORKS = """
import os, sys
import numpy, torch
for line in sys.stdin:
    source, output = line.split()
    pid = os.fork()
    if pid == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for name, fd in (("out", 1), ("err", 2)):
    os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
with open(source) as file:
    program = compile(file.read(), source, "exec")
exec(program, {"__name__": "__main__"})
"""


class TorchPrograms:
    """Runs programs that use torch: in forks of an interpreter that has imported it.

    Each runs to its interpreter's own end, as any program does.

    Args:
        folder: for what they print.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None

    def run_to_its_end(self, program: str) -> subprocess.CompletedProcess[str]:
        """Run `program`, with warnings as errors but those of forks, and keep what it prints."""
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, *WARNINGS, "-c", _FORKS],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        source, output = self._folder / "program.py", self._folder / "printed"
        source.write_text(program)
        try:
            tell(self._process, f"{source} {output}")
            code = int(hear(self._process))
        except BaseException:  # it hangs, or the interpreter has died
            self.close()
            raise
        out, err = (output.with_suffix(f".{name}").read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(program, code, out, err)

    def close(self) -> None:
        """End the interpreter."""
        process, self._process = self._process, None
        if process is not None:
            with process:
                process.kill()


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

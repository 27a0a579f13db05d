"""Worker processes for tests: spawned once, then told which functions to run.

Starting a Python process costs more than most tests do, so the fixtures of conftest.py keep a crew
of them for the whole session.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

ANSWER_SECONDS = 45.0  # below the pytest time-out, so that the crew's error is what one sees

_context = multiprocessing.get_context("spawn")


class WorkerFailed(AssertionError):
    """A function raised in a worker; carries the traceback."""


@dataclass
class Job:
    """One function at work in one worker."""

    worker: Worker

    def result(self) -> Any:
        """What the function returned; raises what went wrong with it."""
        worker = self.worker
        if not worker.connection.poll(ANSWER_SECONDS):
            worker.restart()
            raise WorkerFailed(f"{worker.name}: no answer in {ANSWER_SECONDS} s")
        try:
            done, value = worker.connection.recv()
        except EOFError:
            worker.process.join(ANSWER_SECONDS)  # its pipe ends a little before it does
            code = worker.process.exitcode
            worker.restart()
            raise WorkerFailed(f"{worker.name}: ended with exit code {code}") from None
        worker.idle = True
        if not done:
            raise WorkerFailed(f"{worker.name}:\n{value}")
        return value


class Worker:
    """One spawned process that runs one function at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.idle = True
        self._start()

    def _start(self) -> None:
        self.connection, theirs = _context.Pipe()
        self.process = _context.Process(target=_serve, args=(theirs,), name=self.name, daemon=True)
        self.process.start()
        theirs.close()

    def start(self, function: Callable[..., Any], *args: Any) -> Job:
        """Runs `function(*args)` in the worker; both travel by pickle."""
        if not self.idle:
            self.restart()
        self.idle = False
        self.connection.send((function, args))
        return Job(self)

    def restart(self) -> None:
        """Ends the process, which may hang, and starts a new one."""
        self.end()
        self._start()
        self.idle = True

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


class Crew:
    """Workers, numbered from 0."""

    def __init__(self, size: int) -> None:
        self.workers = [Worker(f"worker {i}") for i in range(size)]

    def start(self, count: int, function: Callable[..., Any], *args: Any) -> list[Job]:
        """Runs `function(i, *args)` in workers 0 to `count` - 1."""
        return [self.workers[i].start(function, i, *args) for i in range(count)]

    def run(self, count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Runs `function(i, *args)` in workers 0 to `count` - 1 and returns their results."""
        return results(self.start(count, function, *args))

    def end(self) -> None:
        """Ends all processes."""
        for worker in self.workers:
            worker.end()


def results(jobs: Sequence[Job]) -> list[Any]:
    """The results of all jobs. All are collected before the first error is raised."""
    values, errors = [], []
    for job in jobs:
        try:
            values.append(job.result())
        except WorkerFailed as error:
            errors.append(str(error))
    if errors:
        raise WorkerFailed("\n".join(errors))
    return values


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            function, args = connection.recv()
            try:
                answer = (True, function(*args))
            except BaseException:
                answer = (False, traceback.format_exc())
            connection.send(answer)
    os._exit(0)

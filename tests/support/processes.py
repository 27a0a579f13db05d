"""Worker processes for tests: started once, then told which functions to run.

A server imports what tests need and forks workers in milliseconds: `multiprocessing`'s forkserver.
The fixtures of conftest.py keep a crew of workers for the whole session.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext, ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from tests.support.permissions import NotPermitted, refusal

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

ANSWER_SECONDS = 45.0
"""Below the time-out of pytest, so that the crew's error is what one sees."""

LATE_SECONDS = 5.0
"""For those who may wait for ever for a worker that has failed."""

PRELOADED = [
    *("torch", "torch.distributed", "numpy", "shmcast", "msgspec", "pytest", "hypothesis"),
    "tests.support.engine_imports",
]


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""An environment without pools of threads: they spin for each other, for ever on a busy machine."""


@functools.cache
def forking() -> ForkServerContext:
    """Return the context whose processes are forked from the preloaded server of one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, ONE_THREAD):
        forkserver.ensure_running()
    return context


@functools.cache
def wait_for_an_engine() -> None:
    """Wait until the server has imported vLLM, where one is installed: it takes longer than tests.

    To be called before a test's time begins.
    """
    if find_spec("vllm") is not None:
        worker = Worker("the first worker")
        assert worker.pid
        worker.end()


def spawning() -> BaseContext:
    """Return the context whose processes are children of this one, each a new interpreter.

    Before Linux 6.15, only a child's end is told to this process in detail.
    """
    return multiprocessing.get_context("spawn")


class WorkerFailed(AssertionError):
    """A function raised in a worker; carries the traceback."""


@dataclass
class Job:
    """One function at work in one worker."""

    worker: Worker

    def result(self, seconds: float = ANSWER_SECONDS) -> Any:
        """Return what the function returned within so long; raise what went wrong with it."""
        return self.worker.answer(seconds)

    def kill(self) -> int:
        """Kill the worker in the middle of the job; return the pid that it had."""
        pid = self.worker.pid
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match=r"exit code -9$"):
            self.result()
        return pid


class Worker:
    """A process that runs one function at a time; started when it is first needed.

    Args:
        name: how errors name it.
        context: how it is started; the default is `forking`.
    """

    def __init__(self, name: str, context: BaseContext | None = None) -> None:
        self.name = name
        self._context = context
        self._connection: Connection | None = None
        self._process: BaseProcess | None = None
        self._told: Path  # where the process writes its stacks
        self._is_idle = True

    @property
    def pid(self) -> int:
        """Return the process's pid; start a process if there is none."""
        self._running()
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Return whether the process that has run functions before can run another one."""
        return self._is_idle and self._process is not None and self._process.is_alive()

    def start(self, function: Callable[..., Any], *args: Any) -> Job:
        """Run `function(*args)` in the worker; both travel by pickle.

        A worker that is still at work, which may hang, gets a new process.
        """
        if not self._is_idle:
            self.end()
        self._running().send((function, args))
        self._is_idle = False
        return Job(self)

    def answer(self, seconds: float = ANSWER_SECONDS) -> Any:
        """Return what the function under way returned; raise what went wrong with it.

        A worker that does not answer within so long is ended; the error has its stacks.
        """
        connection, process = self._connection, self._process
        assert connection is not None
        assert process is not None
        if not connection.poll(seconds):
            stacks = self._stacks()
            self.end()
            raise WorkerFailed(f"{self.name}: no answer in {seconds} s\n{stacks}")
        try:
            done, value = connection.recv()
        except (EOFError, ConnectionResetError):
            process.join(ANSWER_SECONDS)  # its pipe ends a little before it does
            code = process.exitcode
            self.end()
            raise WorkerFailed(f"{self.name}: ended with exit code {code}") from None
        self._is_idle = True
        if isinstance(value, NotPermitted):
            raise value
        if not done:
            raise WorkerFailed(f"{self.name}:\n{value}")
        return value

    def _stacks(self) -> str:
        """Return where the threads of the process are, as it tells within a second."""
        os.kill(self.pid, signal.SIGUSR1)
        told, before = "", None
        give_up = time.monotonic() + 1
        while (not told or told != before) and time.monotonic() < give_up:
            time.sleep(0.05)  # it writes line by line
            told, before = self._told.read_text(), told
        return told

    def end(self) -> None:
        """End the process, if there is one; the next use starts another."""
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._told.unlink(missing_ok=True)
        self._process, self._connection = None, None
        self._is_idle = True

    def _running(self) -> Connection:
        if self._connection is None:
            context: Any = self._context or forking()
            self._connection, theirs = context.Pipe()
            fd, name = tempfile.mkstemp(prefix="shmcast-worker-")
            os.close(fd)
            self._told = Path(name)
            self._process = context.Process(
                target=_serve, args=(theirs, self._told), name=self.name, daemon=True
            )
            self._process.start()
            theirs.close()
        assert self._connection is not None
        return self._connection


class Crew:
    """Workers, numbered from 0. Ends with the `with` block.

    Args:
        size: how many.
        context: how they are started; the default is `forking`.
    """

    def __init__(self, size: int, context: BaseContext | None = None) -> None:
        self.workers = [Worker(f"worker {i}", context) for i in range(size)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.end()

    def start(self, count: int, function: Callable[..., Any], *args: Any) -> list[Job]:
        """Run `function(i, *args)` in workers 0 to `count` - 1."""
        return [self.workers[i].start(function, i, *args) for i in range(count)]

    def run(self, count: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Run `function(i, *args)` in workers 0 to `count` - 1 and return their results."""
        return results(self.start(count, function, *args))

    def pids(self) -> set[int]:
        """Return those of the processes that there are."""
        return {worker.pid for worker in self.workers if worker._process is not None}

    def end(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.end()


def results(jobs: Sequence[Job]) -> list[Any]:
    """Return the results of all jobs. All are collected before the first error is raised."""
    values: list[Any] = []
    errors: list[str] = []
    for job in jobs:
        try:
            values.append(job.result(LATE_SECONDS if errors else ANSWER_SECONDS))
        except WorkerFailed as error:
            errors.append(str(error))
    if errors:
        raise WorkerFailed("\n".join(errors))
    return values


def _serve(connection: Connection, told: Path) -> None:
    stacks = told.open("w")
    faulthandler.register(signal.SIGUSR1, stacks)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            function, args = connection.recv()
            try:
                answer = (True, function(*args))
            except BaseException as error:
                answer = (False, refusal(error) or traceback.format_exc())
            connection.send(answer)
    os._exit(0)

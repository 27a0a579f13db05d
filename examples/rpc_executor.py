"""An executor with worker processes that answer a `collective_rpc`, as inference engines have one.

    python examples/rpc_executor.py

The driver makes the hub before any worker exists and passes its handle to each. A call is one
message to all workers; each answers with its result or its error.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

import shmcast


@dataclass(frozen=True)
class Call:
    """A method to be called on every worker."""

    method: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    replies_of: int | None = None
    """The rank whose result is wanted; None: that of all."""


@dataclass(frozen=True)
class Failure:
    """What a method has raised, as text: not every error can be sent."""

    text: str


class Worker:
    """What runs in each worker process."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._steps = 0

    def execute_model(self, tokens: list[int]) -> dict[str, Any]:
        """Pretend to run a step."""
        self._steps += 1
        return {"rank": self._rank, "step": self._steps, "sum": sum(tokens)}

    def check_health(self) -> int:
        """Return this process's pid."""
        return os.getpid()


def run_worker(handle: shmcast.HubHandle, rank: int) -> None:
    """Answer calls until the executor shuts down."""
    worker = Worker(rank)
    with shmcast.Member(handle, rank) as member:
        while True:
            try:
                call = member.recv()
            except shmcast.Closed:
                return
            method: Callable[..., Any] = getattr(worker, call.method)
            try:
                result = method(*call.args, **call.kwargs)
            except Exception as error:
                result = Failure(f"{type(error).__name__}: {error}")
            if call.replies_of in (None, rank):
                member.reply(result)


class Executor:
    """Calls methods on all workers."""

    def __init__(self, workers: int) -> None:
        self.hub = shmcast.Hub(workers)
        spawning = multiprocessing.get_context("spawn")
        self._processes = [
            spawning.Process(target=run_worker, args=(self.hub.handle, rank))
            for rank in range(workers)
        ]
        for process in self._processes:
            process.start()
        self.hub.wait_ready(timeout=60)

    def collective_rpc(
        self,
        method: str,
        *args: Any,
        replies_of: int | None = None,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Call a method on every worker; return the results, of all or of one rank.

        Raises:
            RuntimeError: a worker has raised.
            shmcast.PeerDied: a worker has died, whichever it is that answers.
            shmcast.Timeout: somebody has not answered in time; the error says who.
        """
        self.hub.send(Call(method, args, kwargs, replies_of), timeout)
        if replies_of is None:
            results = self.hub.recv_all(timeout)
        else:
            results = [self.hub.recv(replies_of, timeout)]
        for result in results:
            if isinstance(result, Failure):
                raise RuntimeError(f"{method} failed in a worker: {result.text}")
        return results

    def shutdown(self) -> None:
        """Let the workers end."""
        self.hub.close()
        for process in self._processes:
            process.join()


def show(text: str) -> None:
    """Print a line."""
    Console().print(text, markup=False, soft_wrap=True)


def main() -> None:
    """Run some calls, and tell how long they take."""
    executor = Executor(workers=4)
    try:
        show(f"pids: {executor.collective_rpc('check_health', timeout=10)}")
        durations = []
        for step in range(1000):
            begin = time.perf_counter()
            [result] = executor.collective_rpc("execute_model", [step, 1], replies_of=0, timeout=10)
            durations.append(time.perf_counter() - begin)
        show(f"last step: {result}")
        show(f"median of 1000 calls: {sorted(durations)[500] * 1e6:.0f} µs")
        try:
            executor.collective_rpc("execute_model", None, timeout=10)
        except RuntimeError as error:
            show(f"an error travels back: {error}")
    finally:
        executor.shutdown()


if __name__ == "__main__":
    main()

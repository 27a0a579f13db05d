"""The processes of one transport: started, told whose turn it is, ended, whatever happens."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence

from shmcast._operators.bench.member import Turn, serve
from shmcast._operators.bench.transports import MEET_SECONDS

_START_SECONDS = 2 * MEET_SECONDS
_TURN_SECONDS = 60.0
_LEAVE_SECONDS = 5.0


class CrewFailed(Exception):
    """A process raised, ended, or gave no answer; says why."""


class Crew:
    """A source and its readers, each a new process.

    Args:
        transport: of `TRANSPORTS`.
        readers: how many.
    """

    def __init__(self, transport: str, readers: int) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe(duplex=False) for _ in range(readers)]
        theirs = [[sending for _, sending in pipes], *([receiving] for receiving, _ in pipes)]
        self._controls, self._processes = [], []
        with _without_interrupts():
            for rank, inherited in enumerate(theirs):
                mine, its = context.Pipe()
                process = context.Process(
                    target=serve, args=(its, transport, rank, inherited), daemon=True
                )
                process.start()
                its.close()
                mine.send(readers + 1)
                self._controls.append(mine)
                self._processes.append(process)
        for pipe in pipes:
            for connection in pipe:
                connection.close()

    def meet(self) -> None:
        """Wait until everybody is there.

        Raises:
            CrewFailed: somebody is not.
        """
        self._answers(_START_SECONDS)

    def take(self, turn: Turn) -> list[Sequence[int]]:
        """Return the times that each process has taken down; the source's come first.

        Raises:
            CrewFailed: something went wrong. The crew is of no use any more.
        """
        for control in self._controls:
            with contextlib.suppress(OSError):  # its answer tells
                control.send(turn)
        return self._answers(_TURN_SECONDS)

    def _answers(self, seconds: float) -> list[Sequence[int]]:
        until = time.monotonic() + seconds
        answers = []
        for rank, control in enumerate(self._controls):
            who = "the source" if rank == 0 else f"reader {rank - 1}"
            if not control.poll(max(0.0, until - time.monotonic())):
                raise CrewFailed(f"{who} gave no answer in {seconds:g} s")
            try:
                kind, value = control.recv()
            except (EOFError, OSError):
                raise CrewFailed(f"{who} has ended") from None
            if kind == "failed":
                raise CrewFailed(f"{who}: {value}")
            answers.append(value)
        return answers

    def end(self, in_order: bool) -> None:
        """End all processes.

        Args:
            in_order: let them leave first; False: they may be in the middle of something.
        """
        for control in self._controls:
            if in_order:
                with contextlib.suppress(OSError):
                    control.send(None)
        for process in self._processes:
            if in_order:
                process.join(_LEAVE_SECONDS)
            process.kill()
        for process in self._processes:
            process.join()
        for control in self._controls:
            control.close()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let what is started here ignore Ctrl-C, which is for who ends it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

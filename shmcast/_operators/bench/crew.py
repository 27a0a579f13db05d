"""The processes of one transport: started, told whose turn it is, ended, whatever happens."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

from shmcast._operators.bench.member import Turn, serve
from shmcast._operators.bench.transports import MEET_SECONDS

_START_SECONDS = 2 * MEET_SECONDS
_TURN_SECONDS = 60.0
_LEAVE_SECONDS = 5.0
_CAUSE_SECONDS = 5.0

_ENDED = "ended", ""  # in place of an answer
_FAILURES = ("failed", "ended")


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
        """Return what each process answers, as soon as all have, or one has failed."""
        until = time.monotonic() + seconds
        answers: dict[int, Sequence[int]] = {}
        while len(answers) < len(self._controls):
            awaited = [rank for rank in range(len(self._controls)) if rank not in answers]
            left = max(0.0, until - time.monotonic())
            ready = wait([self._controls[rank] for rank in awaited], left)
            if not ready:
                raise CrewFailed(f"{_name(awaited[0])} gave no answer in {seconds:g} s")
            for rank in awaited:
                if self._controls[rank] in ready:
                    kind, value = self._received(rank)
                    if kind in _FAILURES:
                        raise self._failure(rank, kind, value, is_source_awaited=0 not in answers)
                    answers[rank] = value
        return [answers[rank] for rank in range(len(self._controls))]

    def _received(self, rank: int) -> tuple[str, Any]:
        try:
            answer: tuple[str, Any] = self._controls[rank].recv()
        except (EOFError, OSError):
            return _ENDED
        return answer

    def _failure(self, rank: int, kind: str, value: str, is_source_awaited: bool) -> CrewFailed:
        # What fails everywhere is told of the source, who may also know why a reader has ended.
        if is_source_awaited and rank and self._controls[0].poll(_CAUSE_SECONDS):
            answer = self._received(0)
            if answer[0] == "failed":
                rank, (kind, value) = 0, answer
        return CrewFailed(
            f"{_name(rank)}: {value}" if kind == "failed" else f"{_name(rank)} has ended"
        )

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


def _name(rank: int) -> str:
    return "the source" if rank == 0 else f"reader {rank - 1}"


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Let what is started here ignore Ctrl-C, which is for who ends it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

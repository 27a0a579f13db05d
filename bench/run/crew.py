"""The processes that take turns: meet them, tell them what to do, and hear what came of it.

Every crew has its own processes, so that what a transport costs in memory and CPU time is its own,
and what goes wrong with it concerns no other.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.run import launchers, member
from bench.transports.base import Launcher, Skipped

START_SECONDS = 90.0
ANSWER_SECONDS = 90.0


class CrewFailed(Exception):
    """A member raised, ended, or gave no answer; says which, and what is known of why."""


class _Interrupted(Exception):
    """Ends the members' context without waiting long for them."""


class Crew:
    """Processes that make up one source and its readers.

    Args:
        launcher: how they are started.
        size: how many, the source included.
        settings: environment variables for them.

    Raises:
        Skipped: they can't be started on this machine.
        CrewFailed: they did not come up.
    """

    def __init__(self, launcher: Launcher, size: int, settings: dict[str, str]) -> None:
        self.size = size
        with contextlib.ExitStack() as undo:
            # Only this user can enter it, so that nobody else can connect.
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            (Path(folder) / member.TAKEN).write_bytes(bytes(8 * member.APART * size))
            listener = undo.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(Path(folder) / member.CONTROL))
            listener.listen(size)
            listener.settimeout(START_SECONDS)
            self._counters = undo.enter_context(launchers.launch(launcher, size, folder, settings))
            self._controls = self._meet(listener)
            for control in self._controls:
                undo.enter_context(control)
            self._undo = undo.pop_all()

    def _meet(self, listener: socket.socket) -> list[Connection]:
        by_rank: dict[int, Connection] = {}
        while len(by_rank) < self.size:
            try:
                accepted, _ = listener.accept()
            except TimeoutError:
                raise CrewFailed(
                    f"{self.size - len(by_rank)} of {self.size} processes did not come up in "
                    f"{START_SECONDS:g} s"
                ) from None
            control = Connection(accepted.detach())
            by_rank[control.recv()] = control
        return [by_rank[rank] for rank in range(self.size)]

    def ask(self, method: str, *args: Any) -> list[Any]:
        """Return what each member's `method(*args)` returns, by rank; see `member.Member`.

        Raises:
            Skipped: a member says that its transport can't.
            CrewFailed: something went wrong. The crew is of no use any more.
        """
        for rank, control in enumerate(self._controls):
            try:
                control.send((method, args))
            except OSError:
                raise CrewFailed(f"{method}: rank {rank} has ended") from None
        answers: dict[int, Any] = {}
        shared: dict[int, Any] = {}
        skipped = ""
        while len(answers) < self.size:
            silent = [rank for rank in range(self.size) if rank not in answers]
            ready = wait([self._controls[rank] for rank in silent], ANSWER_SECONDS)
            if not ready:
                missing = ", ".join(map(str, silent))
                raise CrewFailed(f"{method}: no answer of rank {missing} in {ANSWER_SECONDS:g} s")
            for rank in silent:
                if self._controls[rank] not in ready:
                    continue
                kind, value = self._hear(rank, method)
                if kind == "share":
                    shared[rank] = value
                else:
                    answers[rank] = value
                    skipped = value if kind == "skipped" else skipped
            if len(shared) == self.size:
                for control in self._controls:
                    control.send(shared[0])
                shared.clear()
            elif shared and skipped and len(shared) + len(answers) == self.size:
                raise CrewFailed(f"{method}: some ranks can't: {skipped}")
        if skipped:
            raise Skipped(skipped)
        return [answers[rank] for rank in range(self.size)]

    def _hear(self, rank: int, method: str) -> tuple[str, Any]:
        try:
            kind, value = self._controls[rank].recv()
        except (EOFError, OSError):
            raise CrewFailed(f"{method}: rank {rank} has ended") from None
        if kind == "raised":
            raise CrewFailed(f"{method}: rank {rank}: {value}")
        return kind, value

    def counters(self) -> dict[str, int]:
        """Return what is counted around the members, such as bytes on a link between hosts."""
        return self._counters()

    def close(self, are_idle: bool = True) -> None:
        """Tell all members to leave, and end those that don't.

        Args:
            are_idle: False if they may be in the middle of something that nobody waits for.
        """
        for control in self._controls:
            with contextlib.suppress(OSError):
                control.send(None)
        if are_idle:
            self._undo.close()
            return
        with contextlib.suppress(_Interrupted), self._undo:
            raise _Interrupted

"""Both sides of the connection between a hub's host and another: a thread for each way.

What waits here waits in C++ or in the kernel, so neither a program that computes nor one that has
closed its end starves the others.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from shmcast._nodes.deadline import Deadline
from shmcast._nodes.failure import Failure
from shmcast._nodes.parcel import Parcel, Part
from shmcast._nodes.stream import Stream
from shmcast._nodes.topology import Node
from shmcast.errors import Closed, ShmcastError

MESSAGE, REPLIES, LEFT, FAILED = range(4)
"""What a parcel has: a message to all; replies, by member; who has closed; why the sender ends."""

EXIT_SECONDS = 10.0
"""What is on its way at the end gets so much time."""

_FOREVER = Deadline.after(None)
_ACTION = "relay"
_MOMENT = 0.1
_HOW = "its connection has ended"


@dataclass(frozen=True)
class FarEnd:
    """Who is at the other end, for errors."""

    name: str
    pid: int
    node: Node
    company: str
    """Who is reached through it, itself included."""
    leads: bool = False
    """It is not alone there."""

    def lost(self, error: Exception) -> Failure:
        """Say what it means that the connection has ended with an error of `Stream`."""
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, ConnectionError):
            text = f"{self.node}, with {self.company}, can't be reached any more: {cause}"
            return Failure("NodeLost", text, node=self.node.index)
        through = f", through which {self.company} are reached," if self.leads else ""
        text = f"{self.name} (pid {self.pid}){through} has died: {_HOW}"
        return Failure("PeerDied", text, self.name, self.pid, _HOW)


class _ConnectionLost(Exception):
    """What was to be sent can't be."""


class Relay:
    """Passes on in both directions between a hub, or its like on another host, and a connection.

    Args:
        connection: to the other side; belongs to this from now on.
        label: how errors name this side.
        far: who is on the other one.
    """

    def __init__(self, connection: socket.socket, label: str, far: FarEnd) -> None:
        self._label = label
        self.far: FarEnd = far
        """Who is on the other side."""
        self._stream = Stream(connection, label, far.name, self._check, cause_seconds=0.0)
        self._is_sending = False
        self._lost: ShmcastError | None = None
        self._is_over = False
        self._ending = threading.Lock()
        self._has_ended = False
        self.is_closing: bool = False
        """The end of this side is closed in order."""
        self._out, self._in = (
            threading.Thread(target=run, name="shmcast-relay", daemon=True)
            for run in (self._run_out, self._run_in)
        )

    def start(self) -> None:
        """Begin to relay."""
        self._out.start()
        self._in.start()

    def join(self, deadline: Deadline) -> bool:
        """Wait until all is passed on; return False if it is not by then."""
        threads = [thread for thread in (self._out, self._in) if thread.ident is not None]
        for thread in threads:
            thread.join(deadline.left())
        return not any(thread.is_alive() for thread in threads)

    def _check(self) -> None:
        if self._is_over:
            raise Closed(f"{self._label}: the connection has ended")

    def _run_out(self) -> None:
        try:
            self._pass_on()
        except (Closed, _ConnectionLost):  # (the other thread sees to the second)
            pass
        except SystemExit:  # the program is at its end, and this end, or not: then its death tells
            if not self.is_closing:
                raise
        except Exception as error:
            self._end(self._failure_of(error), must_tell=True)
        with contextlib.suppress(ShmcastError):
            self._stream.leave(Deadline.after(EXIT_SECONDS), _ACTION)

    def _run_in(self) -> None:
        try:
            while True:
                parcel = Parcel.of(self._stream.receive(_FOREVER, _ACTION))
                if parcel.purpose == FAILED:
                    (part,) = parcel.parts.values()
                    assert not isinstance(part, Exception)  # noqa: S101 (it is a failure's)
                    self._end(Failure.of_frames([memoryview(frame) for frame in part]))
                else:
                    self._take(parcel)
        except Closed:
            self._end(None)
        except ShmcastError as error:
            if self._is_sending and error.__cause__ is None:
                self._out.join(_MOMENT)  # the kernel tells one of the two what has happened
            self._end(self.far.lost(self._lost or error))
        except Exception as error:
            self._end(self._failure_of(error))
        finally:
            self._is_over = True
            self._out.join()
            self._stream.close(in_order=False)

    def _failure_of(self, error: Exception) -> Failure:
        if isinstance(error, ShmcastError):
            return Failure.of(error, self._label)
        return Failure("Closed", f"{self._label} can't relay any more: {error!r}")

    def _send(self, purpose: int, parts: Mapping[int, Part]) -> None:
        self._is_sending = True
        try:
            self._stream.send(Parcel(purpose, parts).frames(), _FOREVER, _ACTION)
        except ShmcastError as error:
            self._lost = error
            raise _ConnectionLost from error
        self._is_sending = False

    def _end(self, failure: Failure | None, must_tell: bool = False) -> None:
        """End the end of this side, in order or because of a failure; the first one counts.

        The other side is told before this one, whose program may end at once.
        """
        with self._ending:
            is_first, self._has_ended = not self._has_ended, True
        if failure is not None and must_tell:
            with contextlib.suppress(_ConnectionLost):
                self._send(FAILED, {0: failure.frames()})
        if is_first:
            self._end_here(failure)

    # What the two sides have apart.

    def _pass_on(self) -> None:
        """Send on what comes from the end of this side, until it ends.

        Raises:
            Closed: it has ended in order.
            ShmcastError: it has not.
        """
        raise NotImplementedError

    def _take(self, parcel: Parcel) -> None:
        """Give the end of this side what has come; where it has ended, do nothing."""
        raise NotImplementedError

    def _end_here(self, failure: Failure | None) -> None:
        """End the end of this side; see `_end`."""
        raise NotImplementedError

"""Messages of frames over one TCP connection: between the leaders of nodes, or two of their ranks.

One thread at a time sends, one receives. Waits look up often: whoever waits can be told of a death
that the connection does not tell, or be interrupted.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import operator
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from shmcast._codecs.base import Frame, Received
from shmcast._host.signals import pass_on
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.silence import Silence
from shmcast._nodes.views import flat_views
from shmcast.errors import Closed, PeerDied, ShmcastError, Timeout

_HEADER = struct.Struct("<Q")  # the number of frames; then follow their lengths, and they
_LENGTH = struct.Struct("<Q")
_GOODBYE = 2**64 - 1  # in place of that number: closed in order
_LOOK_SECONDS = 0.05
_JOINED_BYTES = 64 * 1024  # so much is sent in one piece
_CHUNK = 256 * 1024
_CAUSE_SECONDS = 1.0  # within which whoever knows better tells why a connection has ended


class Turn:
    """What messages are for, one in each direction: who calls again for the same gives it again."""

    def __init__(self) -> None:
        self.received: list[Received] | None = None
        """What has come for it. (Kept here, so that no stream holds it for longer.)"""
        self.frames: list[Received] = []
        """The same, before the stream is rid of it."""


class _Message:
    """What is to be sent, and how much of it was.

    Args:
        frames: of the message.
        turn: see `Stream.send`.
    """

    def __init__(self, frames: Sequence[Frame], turn: Turn | None) -> None:
        self.turn = turn
        views = flat_views(frames)
        head = _HEADER.pack(len(views)) + b"".join(_LENGTH.pack(view.nbytes) for view in views)
        if sum(view.nbytes for view in views) <= _JOINED_BYTES:
            self._pieces = [memoryview(b"".join([head, *views]))]
        else:
            self._pieces = [memoryview(head), *views]
        self._ends = [*itertools.accumulate(piece.nbytes for piece in self._pieces)]
        self._nbytes = self._ends[-1]
        self._sent = deque([0], maxlen=1)  # so many bytes of it

    @classmethod
    def goodbye(cls) -> _Message:
        """Make the message that says that no other one follows."""
        message = cls([], None)
        message._pieces = [memoryview(_HEADER.pack(_GOODBYE))]
        return message

    @property
    def has_begun(self) -> bool:
        return self._sent[0] > 0

    @property
    def is_sent(self) -> bool:
        return self._sent[0] == self._nbytes

    def send_some(self, connection: socket.socket) -> None:
        """Send what there is room for.

        Raises:
            OSError: as `socket.send`; for one, BlockingIOError where there is none.
        """
        sent = self._sent[0]
        index = bisect.bisect_right(self._ends, sent)
        piece = self._pieces[index]
        rest = piece[piece.nbytes - (self._ends[index] - sent) :]
        # No signal's handler runs between these calls in C: how much was sent is known, always.
        counts = map(connection.send, (rest,), (socket.MSG_NOSIGNAL,))
        self._sent.extend(map(operator.add, (sent,), counts))

    def release(self) -> None:
        """Hold the frames no more: nothing of them, or all was sent."""
        self._pieces = []


class Stream:
    """One end of a connection.

    Args:
        connection: connected; belongs to the stream from now on.
        label: how errors name this rank.
        peer: how they name the other one.
        check: called again and again while this waits; what it raises ends the wait.
        cause_seconds: so long `check` may take to tell why the connection has ended.
    """

    def __init__(
        self,
        connection: socket.socket,
        label: str,
        peer: str,
        check: Callable[[], object],
        cause_seconds: float = _CAUSE_SECONDS,
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._label = label
        self._peer = peer
        self._check = check
        self._cause_seconds = cause_seconds
        self._silence = Silence(connection)
        self._message = _Message([], None)  # the last one that was sent, at least in part
        self._received: deque[memoryview] = deque()
        self._joined: deque[memoryview] = deque()  # all of it in one piece, before it replaces it
        self._taking = threading.Lock()  # guards the last: whoever sends may look for a goodbye
        self.is_broken = False
        """A message was abandoned in its middle."""
        self._has_left = False  # the other end, in order

    def send(
        self, frames: Sequence[Frame], deadline: Deadline, action: str, turn: Turn | None = None
    ) -> None:
        """Send a message, after the rest of an earlier one, if there is any.

        Args:
            frames: they may not change until all is sent; or, if that fails, until the rest is.
            deadline: of this call.
            action: how errors name it.
            turn: what the message is for. With that of the last one, a call goes on with it, or
                does nothing if it was sent: also one that a signal's handler has ended.

        Raises:
            Timeout: it was not sent in time. If a part was (`is_partial`), the rest comes first in
                the next call.
            Closed: the other end has closed, or an earlier message was abandoned.
            PeerDied: the other process has died.
        """
        if self.is_broken:
            raise Closed(
                f"{self._label}: {action}: an earlier message to {self._peer} was not ended"
            )
        if turn is None or self._message.turn is not turn or not self._message.has_begun:
            if self.is_partial:
                self._send_rest(self._message, deadline, action)
            self._message = _Message(frames, turn)
        try:
            self._send_rest(self._message, deadline, action)
        finally:
            if not self.is_partial:
                self._message.release()

    @property
    def is_partial(self) -> bool:
        """Whether a part of the last message was sent, and not all."""
        return self._message.has_begun and not self._message.is_sent

    def abandon(self) -> None:
        """Send nothing more, not even the rest of a message: the other end is to wait for none."""
        self.is_broken = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def is_open(self, action: str) -> bool:
        """Return whether the other end, from which nothing is ever received, is still there.

        Raises:
            Closed: it has closed in order.
        """
        try:
            is_there = self._take(_HEADER.size)
        except BlockingIOError:
            return True
        except OSError as error:
            pass_on(error)
            is_there = False
        with self._taking:
            begin = self._whole()[: _HEADER.size]
        if begin == _HEADER.pack(_GOODBYE):
            self._has_left = True
            raise self._left(action)
        return is_there

    def _send_rest(self, message: _Message, deadline: Deadline, action: str) -> None:
        while not message.is_sent:
            try:
                message.send_some(self._socket)
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline, action)
            except OSError as error:
                pass_on(error)
                raise self._end(error, action) from error

    def receive(self, deadline: Deadline, action: str, turn: Turn | None = None) -> list[Received]:
        """Receive the next message. What a call that fails has received of it, the next one keeps.

        Args:
            deadline: of this call.
            action: how errors name it.
            turn: what the message is for. If it has come for that, it is returned once more: a
                signal's handler may have ended the call that had it.

        Raises:
            Timeout: it has not come in time.
            Closed: the other end has closed.
            PeerDied: the other process has died.
        """
        turn = turn or Turn()
        if turn.received is not None:
            return turn.received
        whole = self._need(_HEADER.size, deadline, action)
        (count,) = _HEADER.unpack_from(whole)
        if count == _GOODBYE:
            self._has_left = True
            raise self._left(action)
        at = _HEADER.size + count * _LENGTH.size
        whole = self._need(at, deadline, action)
        lengths = struct.unpack_from(f"<{count}Q", whole, _HEADER.size)
        whole = self._need(at + sum(lengths), deadline, action)
        bounds = itertools.pairwise(itertools.accumulate(lengths, initial=at))
        views = [whole[begin:end] for begin, end in bounds]
        if len(turn.frames) < count:
            turn.frames.clear()
            # (A copy that takes longer than signals let it must be there when it is made.)
            turn.frames.extend(map(bytearray, views))
        with self._taking:
            rest = self._whole()[at + sum(lengths) :]
            pieces = deque([rest] if rest else [])
            # (One statement, so that no signal's handler leaves half of it done.)
            turn.received, self._received = turn.frames, pieces
        return turn.frames

    def _need(self, nbytes: int, deadline: Deadline, action: str) -> memoryview:
        """Return what has come, once it is so much."""
        while nbytes > self._count():
            try:
                is_open = self._take(nbytes)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline, action)
                continue
            except OSError as error:
                pass_on(error)
                raise self._end(error, action) from error
            if not is_open:
                raise self._end(None, action)
        with self._taking:
            return self._whole()

    def _take(self, nbytes: int) -> bool:
        """Take what has come, up to about `nbytes` in all; return False at the connection's end."""
        with self._taking:
            missing = nbytes - self._count()
            if missing <= 0:
                return True
            most = max(missing, _CHUNK) if missing < 2**30 else 2**30
            # (No signal's handler runs between the two calls in C, and loses what has come.)
            self._received.extend(map(memoryview, map(self._socket.recv, (most,))))
            return self._received[-1].nbytes > 0

    def _count(self) -> int:
        return sum(map(len, self._received))

    def _whole(self) -> memoryview:
        """Return all that has come, in one piece; the caller holds the lock."""
        if len(self._received) != 1:
            if not self._joined or self._joined[0].nbytes < self._count():
                self._joined.clear()
                # (As with what comes: however long it takes, no signal's handler loses it.)
                self._joined.extend(map(memoryview, map(b"".join, ((*self._received,),))))
            self._received, self._joined = self._joined, deque()
        return self._received[0]

    def _wait(self, events: int, deadline: Deadline, action: str) -> None:
        poll = select.poll()
        poll.register(self._socket, events)
        while True:
            self._check()
            left = deadline.left()
            seconds = _LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS)
            if poll.poll(1000 * seconds):
                return
            try:
                self._silence.check()
            except OSError as error:
                pass_on(error)
                raise self._end(error, action) from error
            if left == 0:
                raise Timeout(
                    f"{self._label}: {action} timed out after {deadline.timeout} s: it waits for "
                    f"{self._peer}"
                )

    def _end(self, error: OSError | None, action: str) -> ShmcastError:
        """Say why the connection has ended; or raise what those say who know better."""
        if self._has_left or self._has_said_goodbye():
            return self._left(action)
        wait_for_cause(self._check, self._cause_seconds)
        why = "its connection has ended" if error is None else str(error)
        return PeerDied(f"{self._label}: {self._peer} has died: {why}", self._peer, 0, why)

    def _has_said_goodbye(self) -> bool:
        """Return whether the other end has closed in order, as the last of what has come tells.

        Whoever sends to it is told by the kernel first that the connection has ended.
        """
        try:
            while self._take(self._count() + _CHUNK):
                pass
        except OSError as error:  # (what has come before it ended is still there)
            pass_on(error)
        with self._taking:
            received = self._whole()
        at = 0
        while len(received) >= at + _HEADER.size:
            (count,) = _HEADER.unpack_from(received, at)
            if count == _GOODBYE:
                return True
            at += _HEADER.size
            if len(received) < at + count * _LENGTH.size:
                return False
            at += count * _LENGTH.size + sum(struct.unpack_from(f"<{count}Q", received, at))
        return False

    def _left(self, action: str) -> Closed:
        return Closed(f"{self._label}: {action}: {self._peer} has closed")

    def leave(self, deadline: Deadline, action: str) -> None:
        """Send nothing more, and say so. What the other end sends can still be received.

        (If the connection were closed, what is on its way here would make the kernel discard what
        is on its way there.)

        Raises:
            ShmcastError: what `send` raises; then the other end takes it for a death.
        """
        try:
            if not (self.is_broken or self.is_partial):
                self._send_rest(_Message.goodbye(), deadline, action)
        finally:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def close(self, in_order: bool = True) -> None:
        """End this end; idempotent. What was sent is received all the same."""
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            if in_order and not (self.is_broken or self.is_partial):
                self._socket.send(_HEADER.pack(_GOODBYE), socket.MSG_NOSIGNAL)
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()


def wait_for_cause(check: Callable[[], object], seconds: float = _CAUSE_SECONDS) -> None:
    """Give whoever knows better a moment to tell why a connection has ended: `check` raises it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        check()
        time.sleep(0.02)

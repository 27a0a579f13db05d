"""Messages of frames over one TCP connection: between the leaders of nodes, or two of their ranks.

One thread at a time sends, one receives. Waits look up often: whoever waits can be told of a death
that the connection does not tell, or be interrupted.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence

from shmcast._codecs.base import Frame
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.views import flat_views
from shmcast.errors import Closed, PeerDied, ShmcastError, Timeout

_HEADER = struct.Struct("<Q")  # the number of frames; then follow their lengths, and they
_LENGTH = struct.Struct("<Q")
_GOODBYE = 2**64 - 1  # in place of that number: closed in order
_LOOK_SECONDS = 0.05
_JOINED_BYTES = 64 * 1024  # so much is sent in one piece
_CHUNK = 256 * 1024
_GRACE_SECONDS = 10.0
"""For the rest of a message that has begun, beyond its time-out."""
_CAUSE_SECONDS = 1.0  # within which whoever knows better tells why a connection has ended


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
        self._received = bytearray()
        self._taking = threading.Lock()  # guards the last: whoever sends may look for a goodbye
        self.is_broken = False
        """It has ended in the middle of a message."""
        self._has_left = False  # the other end, in order

    def send(self, frames: Sequence[Frame], deadline: Deadline, action: str) -> None:
        """Send a message.

        Raises:
            Timeout: it could not be begun in time, or not be ended some time later: that ends the
                connection.
            Closed: the other end has closed, or an earlier message was not ended.
            PeerDied: the other process has died.
        """
        views = flat_views(frames)
        lengths = b"".join(_LENGTH.pack(view.nbytes) for view in views)
        head = _HEADER.pack(len(views)) + lengths
        if sum(view.nbytes for view in views) <= _JOINED_BYTES:
            pieces = [memoryview(b"".join([head, *views]))]
        else:
            pieces = [memoryview(head), *views]
        if self.is_broken:
            raise Closed(
                f"{self._label}: {action}: an earlier message to {self._peer} was not ended"
            )
        is_begun = False
        try:
            for piece in pieces:
                rest = piece
                while rest.nbytes:
                    sent = self._send_some(rest, action)
                    if sent and not is_begun:
                        is_begun = True
                        left = deadline.left()
                        deadline = Deadline.after(None if left is None else left + _GRACE_SECONDS)
                    rest = rest[sent:]
                    if not sent:
                        self._wait(select.POLLOUT, deadline, action)
        except BaseException:
            if is_begun:
                self.is_broken = True
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)  # the other end waits for the rest
            raise

    def is_open(self, action: str) -> bool:
        """Return whether the other end, from which nothing is ever received, is still there.

        Raises:
            Closed: it has closed in order.
        """
        try:
            is_there = self._take(_HEADER.size)
        except BlockingIOError:
            return True
        except OSError:
            is_there = False
        if self._received.startswith(_HEADER.pack(_GOODBYE)):
            self._has_left = True
            raise self._left(action)
        return is_there

    def _send_some(self, piece: memoryview, action: str) -> int:
        try:
            return self._socket.send(piece, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._end(error, action) from error

    def receive(self, deadline: Deadline, action: str) -> list[bytearray]:
        """Receive the next message. What a call that fails has received of it, the next one keeps.

        Raises:
            Timeout: it has not come in time.
            Closed: the other end has closed.
            PeerDied: the other process has died.
        """
        self._need(_HEADER.size, deadline, action)
        (count,) = _HEADER.unpack_from(self._received)
        if count == _GOODBYE:
            self._has_left = True
            raise self._left(action)
        at = _HEADER.size + count * _LENGTH.size
        self._need(at, deadline, action)
        lengths = struct.unpack_from(f"<{count}Q", self._received, _HEADER.size)
        self._need(at + sum(lengths), deadline, action)
        frames = []
        with self._taking:
            with memoryview(self._received) as whole:
                for length in lengths:
                    frames.append(bytearray(whole[at : at + length]))
                    at += length
            del self._received[:at]
        return frames

    def _need(self, nbytes: int, deadline: Deadline, action: str) -> None:
        while nbytes > len(self._received):
            try:
                is_open = self._take(nbytes)
            except BlockingIOError:
                self._wait(select.POLLIN, deadline, action)
                continue
            except OSError as error:
                raise self._end(error, action) from error
            if not is_open:
                raise self._end(None, action)

    def _take(self, nbytes: int) -> bool:
        """Take what has come, up to about `nbytes` in all; return False at the connection's end."""
        with self._taking:
            missing = nbytes - len(self._received)
            if missing <= 0:
                return True
            chunk = self._socket.recv(max(missing, _CHUNK) if missing < 2**30 else 2**30)
            self._received += chunk
            return bool(chunk)

    def _wait(self, events: int, deadline: Deadline, action: str) -> None:
        poll = select.poll()
        poll.register(self._socket, events)
        while True:
            self._check()
            left = deadline.left()
            seconds = _LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS)
            if poll.poll(1000 * seconds):
                return
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
        with contextlib.suppress(OSError):  # (what has come before it ended is still there)
            while self._take(len(self._received) + _CHUNK):
                pass
        with self._taking:
            received = bytes(self._received)
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
            rest = memoryview(b"" if self.is_broken else _HEADER.pack(_GOODBYE))
            while rest.nbytes:
                sent = self._send_some(rest, action)
                rest = rest[sent:]
                if not sent:
                    self._wait(select.POLLOUT, deadline, action)
        finally:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def close(self, in_order: bool = True) -> None:
        """End this end; idempotent. What was sent is received all the same."""
        if self._socket.fileno() < 0:
            return
        with contextlib.suppress(OSError):
            if in_order and not self.is_broken:
                self._socket.send(_HEADER.pack(_GOODBYE), socket.MSG_NOSIGNAL)
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()


def wait_for_cause(check: Callable[[], object], seconds: float = _CAUSE_SECONDS) -> None:
    """Give whoever knows better a moment to tell why a connection has ended: `check` raises it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        check()
        time.sleep(0.02)

"""Sends and receives between two ranks: in order from each to each, whatever else they do."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from shmcast._codecs.base import Codec, Frame, Received
from shmcast._devices.work import Work
from shmcast._endpoints import tracing
from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.objects import refused, unsendable
from shmcast._group.channel_ends import Sink, Source, open_sink, open_source
from shmcast._group.company import Company
from shmcast._host.signals import is_interruption
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.views import flat_views
from shmcast.errors import (
    Closed,
    DecodeError,
    EncodeError,
    Interrupted,
    InvalidArgument,
    ShmcastError,
    Timeout,
)

_LOOK_SECONDS = 0.25  # a send that waits looks so often whether it still can
_LINGER_SECONDS = 1.0  # a thread that has nothing to send ends after that


class PointToPoint:
    """What a rank sends to others, and receives from them.

    Args:
        company: the group's.
        make_codec: makes a codec of its own for each direction.
    """

    def __init__(self, company: Company, make_codec: Callable[[], Codec]) -> None:
        self._company = company
        self._make_codec = make_codec
        self._outgoing: dict[int, _Outgoing] = {}
        self._incoming: dict[int, _Incoming] = {}
        self._lock = threading.Lock()

    def isend(self, obj: Any, dst: int, timeout: float | None, action: str) -> Work:
        """See `ShmBroadcaster.isend_object`."""
        dst = self._checked(dst, "dst", action)
        deadline = Deadline.after(check_timeout(timeout, self._company.label, action))
        with self._lock:
            channel = self._outgoing.get(dst)
            if channel is None:
                sink = open_sink(self._company, dst)
                channel = _Outgoing(self._company, dst, sink, self._make_codec())
                self._outgoing[dst] = channel
        return channel.begin(obj, deadline, action)

    def irecv(
        self, src: int, timeout: float | None, action: str, finish: Callable[[Any], Any]
    ) -> Work:
        """See `ShmBroadcaster.irecv_object`; `finish` makes the result of the object."""
        src = self._checked(src, "src", action)
        deadline = Deadline.after(check_timeout(timeout, self._company.label, action))
        with self._lock:
            channel = self._incoming.get(src)
            if channel is None:
                channel = self._incoming[src] = _Incoming(self._company, src, self._make_codec())
        return channel.begin(deadline, action, finish)

    def _checked(self, rank: int, name: str, action: str) -> int:
        """Return another rank of the group, as its number there is known."""
        company = self._company
        company.check_open()
        others = [r for r in company.ranks if r != company.me]
        if rank in others and not isinstance(rank, bool):
            return rank
        what = "is this rank itself" if rank == company.me else "is no rank of the group"
        raise InvalidArgument(
            f"{company.label}: {action}({name}={rank!r}): {what}; the others are {others}"
        )

    def interrupt(self) -> bool:
        """End the calls that wait in other threads; return whether there were any."""
        return bool([end for end in self._ends() if end.interrupt()])

    def close(self, in_order: bool) -> None:
        """End all ends; idempotent. What could not be sent yet never is."""
        for end in self._ends():
            end.close(in_order)

    def _ends(self) -> list[_Outgoing | _Incoming]:
        return [*self._outgoing.values(), *self._incoming.values()]


class _Sending:
    """A message on its way to the ring or the stream."""

    def __init__(self, frames: Sequence[Frame], action: str, deadline: Deadline) -> None:
        self.frames = frames
        self.action = action
        self.deadline = deadline
        self.is_over = False
        self.error: ShmcastError | None = None


class _Outgoing:
    """The messages to one rank. What finds no room at once is sent by a thread, in order."""

    def __init__(self, company: Company, dst: int, sink: Sink, codec: Codec) -> None:
        self._company = company
        self._dst = dst
        self._sink = sink
        self._codec = codec
        tracer = tracing.chosen()
        self._encode = tracing.call(tracer, tracing.ENCODE, codec.encode)
        self._publish = tracing.call(tracer, tracing.PUBLISH, sink.publish)
        self._queue: deque[_Sending] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._waiting = 0  # calls that wait for a message to be sent
        self._interrupts = 0  # of them, that are to end

    def begin(self, obj: Any, deadline: Deadline, action: str) -> Work:
        """Send an object, now or later."""
        try:
            frames = self._encode(obj)
        except Exception as error:
            if is_interruption(error):
                raise
            raise refused(obj, error, self._codec, self._company.label) from error
        with self._changed:
            # (A stream may take a part of a message, and then it has to take the rest.)
            if not self._queue and isinstance(self._sink, FrameWriter) and self._is_sent(frames):
                return Work.done(None)
            # Whoever has given the object may change it from now on, and the codec its buffers.
            sending = _Sending([bytes(view) for view in flat_views(frames)], action, deadline)
            self._queue.append(sending)
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="shmcast-isend", daemon=True)
                self._thread.start()
        return Work(lambda: self._wait(sending))

    def _is_sent(self, frames: Sequence[Frame]) -> bool:
        """Send frames if there is room."""
        try:
            self._publish(frames, 0)
        except Timeout:
            return False
        except (TypeError, BufferError) as error:
            raise self._unsendable(error) from error
        return True

    def _unsendable(self, error: Exception) -> EncodeError:
        told = unsendable(error, self._codec, self._company.label)
        assert told is not None  # noqa: S101 (it knows these errors)
        return told

    def _wait(self, sending: _Sending) -> None:
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: sending.is_over or self._interrupts > 0)
                if not sending.is_over:
                    self._interrupts -= 1
                    raise Interrupted(
                        f"{self._company.label}: {sending.action} was ended by interrupt(); the "
                        "message is sent all the same when there is room"
                    )
            finally:
                self._waiting -= 1
        if sending.error is not None:
            raise sending.error

    # In the thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._queue, _LINGER_SECONDS):
                    self._thread = None
                    return
                sending = self._queue[0]
            error = self._send(sending)
            with self._changed:
                self._queue.popleft()
                sending.error, sending.is_over = error, True
                sending.frames = ()
                self._changed.notify_all()

    def _send(self, sending: _Sending) -> ShmcastError | None:
        deadline = sending.deadline
        while True:
            left = deadline.left()
            try:
                self._company.look([self._dst])
                self._publish(
                    sending.frames, _LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS)
                )
            except Timeout:
                if deadline.left() == 0:
                    return Timeout(
                        f"{self._company.label}: {sending.action} timed out after "
                        f"{deadline.timeout} s: {self._company.name(self._dst)} does not receive; "
                        "it gets nothing of this message"
                    )
            except ShmcastError as error:
                return error
            except (TypeError, BufferError) as error:
                return self._unsendable(error)
            except SystemExit:  # the program ends
                return Closed(f"{self._company.label}: the program has ended")
            else:
                return None

    def interrupt(self) -> bool:
        with self._changed:
            self._interrupts = self._waiting
            self._changed.notify_all()
            return self._waiting > 0

    def close(self, in_order: bool) -> None:
        self._sink.close() if in_order else self._sink.give_up()


class _Receipt:
    """An object that is to be received."""

    def __init__(self) -> None:
        self.obj: Any = None
        self.is_over = False
        self.error: ShmcastError | None = None


class _Incoming:
    """The messages of one rank, each for the call that was the next one to begin."""

    def __init__(self, company: Company, src: int, codec: Codec) -> None:
        self._company = company
        self._src = src
        tracer = tracing.chosen()
        self._receive = tracing.call(tracer, tracing.WAIT, self._take_message)
        self._decode = tracing.call(tracer, tracing.DECODE, codec.decode)
        self._source: Source | None = None
        self._frames: Sequence[Received] | None = None  # of a message that nobody has got yet
        self._pending: deque[_Receipt] = deque()
        self._turn = threading.Lock()

    def begin(self, deadline: Deadline, action: str, finish: Callable[[Any], Any]) -> Work:
        """Receive the next object, when the work is waited for."""
        receipt = _Receipt()
        self._pending.append(receipt)

        def wait() -> Any:
            with self._turn, self._company.telling_causes():
                try:
                    self._receive_until(receipt, deadline, action)
                except BaseException:
                    if not receipt.is_over:  # the message is for the next call
                        self._pending.remove(receipt)
                    raise
            if receipt.error is not None:
                raise receipt.error
            return finish(receipt.obj)

        return Work(wait)

    def _receive_until(self, receipt: _Receipt, deadline: Deadline, action: str) -> None:
        while not receipt.is_over:
            self._company.check_open()
            if self._source is None:
                self._source = open_source(self._company, self._src, action, deadline)
            try:
                self._receive(self._source, deadline)
            except Timeout:
                raise Timeout(
                    f"{self._company.label}: {action} timed out after {deadline.timeout} s: "
                    f"nothing came from {self._company.name(self._src)}; it is for the next call"
                ) from None
            self._give(self._pending[0])

    def _take_message(self, source: Source, deadline: Deadline) -> None:
        """Receive a message, unless there is one: a signal's handler may have raised since."""
        if self._frames is None:
            self._frames = source.consume(deadline.left())

    def _give(self, receipt: _Receipt) -> None:
        """Make an object of the message, for the call whose turn it is."""
        frames = [*(self._frames or ())]
        try:
            receipt.obj = self._decode(frames)
        except Exception as error:
            if is_interruption(error):
                raise
            receipt.error = DecodeError(
                f"{self._company.label}: can't decode an object of "
                f"{self._company.name(self._src)}: {type(error).__name__}: {error}; it is consumed"
            )
            receipt.error.__cause__ = error
        # (No signal is handled between these, but after the last: it is a call.)
        receipt.is_over = True
        self._frames = None
        self._pending.popleft()

    def interrupt(self) -> bool:
        if not self._turn.locked():
            return False
        if self._source is None:
            self._company.is_interrupted = True
        else:
            self._source.interrupt()
        return True

    def close(self, in_order: bool) -> None:
        if self._source is not None:
            self._source.close() if in_order else self._source.give_up()

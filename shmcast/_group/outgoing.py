"""What a rank sends to one other: at once, or by a thread, in order."""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from shmcast._codecs.base import Codec
from shmcast._devices.work import Work, finished
from shmcast._endpoints import tracing
from shmcast._endpoints.objects import refused, unsendable
from shmcast._group.channel_ends import open_sink, warn_of_losses
from shmcast._group.company import Company
from shmcast._host.signals import pass_on, wait_for
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.views import flat_views
from shmcast.errors import (
    Closed,
    EncodeError,
    Interrupted,
    MessageTooLarge,
    ShmcastError,
    Timeout,
)

_LINGER_SECONDS = 1.0  # a thread that has nothing to send ends after that
_PATIENCE = 0.01  # a message that takes longer is held up by the other rank
_OVERHEAD = 512  # bytes that a message takes beside its own
_MOMENT = 1.0  # for a thread to hear that it is to end


class _Sending:
    """A message on its way to the ring or the stream."""

    def __init__(self, frames: Sequence[bytes], action: str, deadline: Deadline) -> None:
        self.frames = frames
        self.nbytes = _OVERHEAD + sum(map(len, frames))
        self.action = action
        self.deadline = deadline
        self.is_kept = False  # it counts as sent, and will be
        self.is_over = False
        self.error: ShmcastError | None = None


class Outgoing:
    """The messages to one rank. What can't go at once is sent by a thread, in order.

    Args:
        company: the group's.
        dst: the rank.
        codec: makes frames of objects.

    Raises:
        ShmcastError: see `open_sink`.
    """

    def __init__(self, company: Company, dst: int, codec: Codec) -> None:
        self._company = company
        self._dst = dst
        self._codec = codec
        tracer = tracing.chosen()
        self._encode = tracing.call(tracer, tracing.ENCODE, codec.encode)
        self._until: Deadline | None = None  # of what is kept, once this is closed
        self._sink = open_sink(company, dst, self._check)
        self._offer = tracing.call(tracer, tracing.PUBLISH, self._sink.offer)
        self._publish = tracing.call(tracer, tracing.PUBLISH, self._sink.publish)
        self._queue: deque[_Sending] = deque()
        self._kept = 0  # so many at the front of the queue count as sent
        self._kept_bytes = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._has_thread = False
        self._is_running = False  # the thread has begun
        self._began = 0.0  # when the thread has begun with a message, on time.monotonic's clock
        self._is_held_up = False  # the other rank lets it wait
        self._waiting = 0  # calls that wait for a message to be sent
        self._interrupts = 0  # of them, that are to end
        self._error: ShmcastError | None = None  # why nothing can be sent any more
        self._lost = 0  # messages that were kept, and could not be sent

    def begin(self, obj: Any, deadline: Deadline, action: str) -> Work:
        """Send an object, now or later."""
        try:
            frames = self._encode(obj)
        except Exception as error:
            pass_on(error)
            raise refused(obj, error, self._codec, self._company.label) from error
        with self._lock:
            if self._error is not None:
                with self._company.telling_causes():
                    raise self._error.with_traceback(None)
            try:
                if not self._queue and self._offer(frames):
                    return finished(None)
            except (TypeError, BufferError) as error:
                raise self._unsendable(error) from error
            # Whoever has given the object may change it from now on, and the codec its buffers.
            sending = _Sending([bytes(view) for view in flat_views(frames)], action, deadline)
            self._queue.append(sending)
            self._keep()
            self._changed.notify_all()
            if not self._has_thread:
                # (One call of C: of a handler that raises in Thread.start, the thread may die. If
                # it raises before this is noted, the next call starts one that ends at once.)
                _thread.start_new_thread(self._run, ())
                self._has_thread = True
        return Work(lambda: self._wait(sending))

    def _unsendable(self, error: Exception) -> EncodeError:
        told = unsendable(error, self._codec, self._company.label)
        assert told is not None  # noqa: S101 (it knows these errors)
        return told

    def _keep(self) -> None:
        """Count as sent what there is room for: the other rank may have to send this one first."""
        while self._kept < len(self._queue):
            sending = self._queue[self._kept]
            if self._kept_bytes + sending.nbytes > self._sink.backlog_bytes:
                return
            sending.is_kept = True
            self._kept += 1
            self._kept_bytes += sending.nbytes

    def _wait(self, sending: _Sending) -> None:
        with self._lock:
            self._waiting += 1
            try:
                self._wait_until_sent(sending)
            finally:
                self._waiting -= 1
                self._interrupts = min(self._interrupts, self._waiting)
        if sending.error is not None:
            with self._company.telling_causes():
                raise sending.error

    def _wait_until_sent(self, sending: _Sending) -> None:
        def is_to_end() -> bool:
            # (As long as the other rank takes something, this does not run ahead of it.)
            is_left_alone = sending.is_kept and self._is_held_up
            return sending.is_over or is_left_alone or self._interrupts > 0

        if not wait_for(self._changed, is_to_end, sending.deadline.left()):
            if sending.is_kept:
                return
            if not self._queue or sending is not self._queue[0]:  # which the thread has taken
                with contextlib.suppress(ValueError):  # (a signal may have come after that)
                    self._queue.remove(sending)
                raise self._timed_out(sending)
            wait_for(self._changed, is_to_end)
        if not (sending.is_over or sending.is_kept):
            raise Interrupted(
                f"{self._company.label}: {sending.action} was ended by interrupt(); the message is "
                "sent all the same when there is room"
            )

    def _timed_out(self, sending: _Sending) -> Timeout:
        return Timeout(
            f"{self._company.label}: {sending.action} timed out after {sending.deadline.timeout} "
            f"s: {self._company.name(self._dst)} does not receive; it gets nothing of this message"
        )

    # In the thread.

    def _run(self) -> None:
        with self._lock:
            if self._is_running:
                return
            self._has_thread = self._is_running = True
        while (sending := self._next()) is not None:
            self._end(sending, self._send(sending))

    def _next(self) -> _Sending | None:
        """Wait for the next message; None: the thread is to end."""
        with self._lock:
            self._changed.wait_for(lambda: self._queue or self._until is not None, _LINGER_SECONDS)
            self._began, self._is_held_up = time.monotonic(), False
            if self._queue:
                return self._queue[0]
            self._has_thread = self._is_running = False
            self._changed.notify_all()
            return None

    def _send(self, sending: _Sending) -> ShmcastError | None:
        deadline = Deadline.after(None) if sending.is_kept else sending.deadline
        try:
            self._publish(sending.frames, deadline)
        except Timeout:
            return self._timed_out(sending)
        except ShmcastError as error:
            return error
        except (TypeError, BufferError) as error:
            return self._unsendable(error)
        except SystemExit:  # the program ends
            return Closed(f"{self._company.label}: the program has ended")
        return None

    def _end(self, sending: _Sending, error: ShmcastError | None) -> None:
        """Note how a message was sent, or not; if none can be any more, that of all."""
        with self._lock:
            self._take_off(sending, error)
            final = self._final(error)
            if final is not None:
                self._error = self._error or final
                for other in [*self._queue]:
                    self._take_off(other, final)
            self._keep()
            self._changed.notify_all()

    def _final(self, error: ShmcastError | None) -> ShmcastError | None:
        """Return why nothing can be sent any more after an error; None: more can be sent."""
        if not isinstance(error, Timeout | EncodeError | MessageTooLarge):
            return error
        if not self._sink.is_broken:
            return None
        name = self._company.name(self._dst)
        return Closed(f"{self._company.label}: an earlier message to {name} was not ended")

    def _take_off(self, sending: _Sending, error: ShmcastError | None) -> None:
        """Take the first message off the queue."""
        self._queue.popleft()
        if sending.is_kept:
            self._kept -= 1
            self._kept_bytes -= sending.nbytes
            self._lost += error is not None
        sending.error, sending.is_over, sending.frames = error, True, ()

    def _check(self) -> None:
        """Raise why nothing can be sent to that rank, if so; called while something waits."""
        if time.monotonic() > self._began + _PATIENCE:
            with self._lock:
                self._is_held_up = True
                self._changed.notify_all()
        if self._until is not None and self._until.left() == 0:
            raise Closed(f"{self._company.label}: this broadcaster was closed")
        self._company.look_at_others([self._dst])

    # In any thread.

    def interrupt(self) -> bool:
        """End the calls that wait in other threads; return whether there were any."""
        with self._lock:
            self._interrupts = self._waiting
            self._changed.notify_all()
            return self._waiting > 0

    def begin_to_close(self, in_order: bool, until: Deadline) -> None:
        """Send nothing more but what counts as sent, or is under way on a stream, until then."""
        with self._lock:
            if self._until is not None:
                return
            error = Closed(f"{self._company.label}: used after close(); make a new broadcaster")
            self._error = error
            lingers = in_order and (self._kept or self._sink.sends_parts)
            self._until = until if lingers else Deadline.after(0.0)
            for sending in [*self._queue][1:]:  # (of the first one, the thread will hear it)
                if not sending.is_kept:
                    self._queue.remove(sending)
                    sending.error, sending.is_over = error, True
            self._changed.notify_all()

    def close(self, in_order: bool, until: Deadline) -> None:
        """Wait for what is kept, and end the sink; idempotent, after `begin_to_close`."""
        with self._lock:
            left = until.left() if in_order else 0.0
            wait_for(self._changed, lambda: not self._has_thread, (left or 0.0) + _MOMENT)
        try:
            if in_order and self._lost and until.left() == 0:
                warn_of_losses(self._company, self._dst, self._lost, until)
        finally:
            self._sink.close(in_order, until)

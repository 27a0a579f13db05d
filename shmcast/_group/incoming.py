"""What a rank receives from one other: each message for the call that was the next to begin."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from shmcast._codecs.base import Codec, Received
from shmcast._devices.work import Work
from shmcast._endpoints import tracing
from shmcast._group.channel_ends import Source, open_source
from shmcast._group.company import Company
from shmcast._host.signals import is_interruption, pass_on, wait_for
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.stream import Turn
from shmcast.errors import Closed, DecodeError, Interrupted, PeerDied, ShmcastError, Timeout


class _Receipt:
    """An object that is to be received.

    Args:
        is_of_work: it can be waited for again, until it is received or its end is known.
    """

    def __init__(self, is_of_work: bool) -> None:
        self.is_of_work = is_of_work
        self.obj: Any = None
        self.error: ShmcastError | None = None
        self.is_over = False
        self.is_withdrawn = False  # its wait has ended without an object


class Incoming:
    """The messages of one rank.

    Args:
        company: the group's.
        src: the rank.
        codec: makes objects of frames.
    """

    def __init__(self, company: Company, src: int, codec: Codec) -> None:
        self._company = company
        self._src = src
        tracer = tracing.chosen()
        self._receive = tracing.call(tracer, tracing.WAIT, self._take_message)
        self._decode = tracing.call(tracer, tracing.DECODE, codec.decode)
        self._source: Source | None = None
        self._death: PeerDied | None = None
        self._turn = Turn()  # of the message that is next
        self._pending: deque[_Receipt] = deque()
        self._returned: deque[_Receipt] = deque()  # of calls that had ended when a signal came
        self._receiver: _Receipt | None = None  # whose thread receives, for all before it, too
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0  # threads that wait for their turn
        self._interrupts = 0  # of them, that are to end

    def begin(self, deadline: Deadline, action: str, finish: Callable[[Any], Any]) -> Work:
        """Receive the next object, when the work is waited for."""
        receipt = _Receipt(is_of_work=True)
        work = Work(lambda: finish(self._object_for(receipt, deadline, action)))
        try:
            self._pending.append(receipt)
        except BaseException:  # a signal's handler, after that
            self._withdraw(receipt)
            raise
        return work  # (between calls of C no signal is handled)

    def receive(self, deadline: Deadline, action: str, finish: Callable[[Any], Any]) -> Any:
        """Receive the next object, which nobody gets otherwise: also if a signal ends this."""
        receipt = _Receipt(is_of_work=False)
        try:
            self._pending.append(receipt)
            return finish(self._object_for(receipt, deadline, action))
        except BaseException as error:
            if receipt.is_over and is_interruption(error):
                self._returned.append(receipt)
            self._withdraw(receipt)
            raise

    def _object_for(self, receipt: _Receipt, deadline: Deadline, action: str) -> Any:
        try:
            self._wait(receipt, deadline, action)
        except Interrupted:
            if not receipt.is_of_work:
                self._withdraw(receipt)
            again = "wait() again, for the same object" if receipt.is_of_work else "call again"
            raise Interrupted(
                f"{self._company.label}: {action} was ended by interrupt(); {again}"
            ) from None
        except BaseException as error:
            if not receipt.is_of_work or isinstance(error, ShmcastError):
                self._withdraw(receipt)
            with self._company.telling_causes():
                raise
        if receipt.error is not None:
            raise receipt.error
        return receipt.obj

    def _withdraw(self, receipt: _Receipt) -> None:
        """Leave the message to the next call."""
        with self._lock:
            if not receipt.is_over and receipt in self._pending:
                self._pending.remove(receipt)
                receipt.is_withdrawn = True

    def _wait(self, receipt: _Receipt, deadline: Deadline, action: str) -> None:
        if receipt.is_withdrawn:  # (a signal came after that)
            receipt.is_withdrawn = False
            self._pending.append(receipt)
        self._company.begin_to_wait(action)
        try:
            with self._lock:
                if self._receiver is None:
                    self._receiver = receipt
            if self._receiver is not receipt:
                self._wait_for_turn(receipt, deadline, action)
            self._receive_until(receipt, deadline, action)
        finally:  # (also if a signal has come just when it had taken the turn)
            if self._receiver is receipt:
                self._receiver = None
            if self._waiting:
                self._notify()

    def _wait_for_turn(self, receipt: _Receipt, deadline: Deadline, action: str) -> None:
        """Take the turn, or return once another thread has received this."""

        def is_to_end() -> bool:
            if self._receiver is None and not (receipt.is_over or self._interrupts):
                self._receiver = receipt
            return receipt.is_over or self._interrupts > 0 or self._receiver is receipt

        with self._lock:
            self._waiting += 1
            try:
                if not wait_for(self._changed, is_to_end, deadline.left()):
                    self._withdraw(receipt)  # (before another thread can give it anything)
                    raise self._timed_out(deadline, action)
                if self._interrupts and not receipt.is_over:
                    if not receipt.is_of_work:
                        self._withdraw(receipt)
                    raise Interrupted
            finally:
                self._waiting -= 1
                self._interrupts = min(self._interrupts, self._waiting)

    def _notify(self) -> None:
        """Wake the threads that wait for their turn."""
        with self._lock:
            self._changed.notify_all()

    def _timed_out(self, deadline: Deadline, action: str) -> Timeout:
        return Timeout(
            f"{self._company.label}: {action} timed out after {deadline.timeout} s: nothing came "
            f"from {self._company.name(self._src)}; it is for the next call"
        )

    def _receive_until(self, receipt: _Receipt, deadline: Deadline, action: str) -> None:
        while not receipt.is_over:
            self._company.check_open()
            if self._returned:
                self._pass_on()
                continue
            if self._death is not None:  # (to find it out anew would take a while)
                raise self._death.with_traceback(None)
            if self._source is None:
                self._source = open_source(self._company, self._src, action, deadline)
            try:
                frames = self._receive(self._source, deadline)
            except Timeout:
                raise self._timed_out(deadline, action) from None
            except PeerDied as died:
                self._death = died
                raise
            except Closed:
                self._company.check_open()
                raise Closed(
                    f"{self._company.label}: {action}: {self._company.name(self._src)} has closed, "
                    "and all that it has sent was received"
                ) from None
            try:
                obj, error = self._decode([*frames]), None
            except Exception as caught:
                pass_on(caught)
                obj, error = None, self._undecodable(caught)
            self._give(obj, error)

    def _take_message(self, source: Source, deadline: Deadline) -> Sequence[Received]:
        """Receive a message, unless there is one: a signal's handler may have raised since."""
        turn = self._turn
        source.receive(turn, deadline.left())
        assert turn.received is not None  # noqa: S101 (it has raised, or received)
        return turn.received

    def _give(self, obj: Any, error: DecodeError | None) -> None:
        """Give what was received to the first call that is left."""
        with self._lock:
            first, turn = self._first_left(), Turn()
            # (One statement, so that no signal's handler leaves half of it done.)
            first.obj, first.error, first.is_over, self._turn = obj, error, True, turn
            self._pending.popleft()
        if self._waiting:
            self._notify()

    def _pass_on(self) -> None:
        """Give what a call had been given that a signal has ended to the first one that is left."""
        with self._lock:
            first, kept = self._first_left(), self._returned[0]
            first.obj, first.error, first.is_over = kept.obj, kept.error, True
            self._returned.popleft()  # (no signal is handled before)
        if self._waiting:
            self._notify()

    def _first_left(self) -> _Receipt:
        while self._pending[0].is_over:
            self._pending.popleft()
        return self._pending[0]

    def _undecodable(self, error: Exception) -> DecodeError:
        told = DecodeError(
            f"{self._company.label}: can't decode an object of {self._company.name(self._src)}: "
            f"{type(error).__name__}: {error}; it is consumed"
        )
        told.__cause__ = error
        return told

    def interrupt(self) -> bool:
        """End the calls that wait in other threads; return whether there were any."""
        with self._lock:
            if self._receiver is None:
                return False
            self._interrupts = self._waiting
            self._changed.notify_all()
        if self._source is None:
            self._company.interrupt()
        else:
            self._source.interrupt()
        return True

    def close(self, in_order: bool) -> None:
        """End this; idempotent."""
        if self._source is not None:
            self._source.close() if in_order else self._source.give_up()

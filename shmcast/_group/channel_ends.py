"""The two ends of what one rank sends another: a ring on one node, a stream between two."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

from shmcast._codecs.base import Frame
from shmcast._endpoints.description import Description
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._group.company import Company
from shmcast._nodes.acceptor import Acceptor, stream_to
from shmcast._nodes.addresses import Address
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.stream import Stream, Turn, wait_for_cause
from shmcast.errors import (
    Closed,
    PeerDied,
    SegmentError,
    SegmentNotFound,
    ShmcastError,
    ShmcastWarning,
    Timeout,
)

_SLOTS = 16
_SLOT_BYTES = 64 * 1024
_SHORTEST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02
_FIRST_LOOK_SECONDS = 0.02  # after that, a send that waits for room looks whether it still can
_LOOK_SECONDS = 0.25  # and so often later
_GRACE_SECONDS = 10.0  # for the rest of a message on a stream, beyond its time-out


class Sink(Protocol):
    """Where frames go to one rank. One thread at a time sends."""

    sends_parts: bool
    """A message may have been sent in part, and then has to be ended."""

    @property
    def is_broken(self) -> bool:
        """Return whether it was not, so that no other one can be sent."""

    backlog_bytes: int
    """So many bytes of messages may wait here and count as sent."""

    def offer(self, frames: Sequence[Frame]) -> bool:
        """Send one message if nothing has to be waited for; return whether it was.

        Raises:
            TypeError, BufferError: `frames` is no sequence of contiguous buffers.
            ShmcastError: the other rank does not receive any more.
        """

    def publish(self, frames: Sequence[Frame], deadline: Deadline) -> None:
        """Send one message.

        Raises:
            Timeout: there was no room in time.
            Exception: what `offer` raises, and the check.
        """

    def close(self, in_order: bool, deadline: Deadline) -> None:
        """End it; idempotent.

        Args:
            in_order: the other rank is to know of no failure.
            deadline: until then it waits for a rank that has yet to begin to receive.
        """


class Source(Protocol):
    """Where the frames of one rank come from."""

    def receive(self, turn: Turn, timeout: float | None) -> None:
        """Receive one message for `turn`, if it has none; else as `FrameReader.consume`."""

    def interrupt(self) -> None:
        """End a call that waits in another thread."""

    def close(self) -> None:
        """End it in order; idempotent."""

    def give_up(self) -> None:
        """End it otherwise; idempotent."""


def open_sink(company: Company, dst: int, check: Callable[[], object]) -> Sink:
    """Make the end to send to a rank. Does not wait for it.

    Args:
        company: the group's.
        dst: the rank.
        check: called again and again while a message waits to be sent; what it raises ends that.

    Raises:
        ShmcastError: what `Writer` raises, `Notices.post`, and `Company.look`.
    """
    company.look([dst])
    subject = _subject(company.me, dst)
    make = _RingSink if dst in company.here.ranks else _StreamSink
    sink: _RingSink | _StreamSink = make(company, dst, check)
    try:
        company.notices.post(subject, sink.place, lambda: company.look([dst]))
    except BaseException:  # nobody will find it
        sink.close(False, Deadline.after(0.0))
        raise
    return sink


def open_source(company: Company, src: int, action: str, deadline: Deadline) -> Source:
    """Make the end to receive from a rank, once that has begun to send.

    Raises:
        Timeout: it has not begun in time.
        ShmcastError: what `Reader` raises, and `Company.check`.
    """
    subject, name = _subject(src, company.me), company.name(src)
    try:
        found = company.notices.find(subject, name, action, deadline, lambda: company.check([src]))
    except (Closed, PeerDied) as gone:
        company.check()
        try:
            found = company.notices.look(subject)
        except SegmentError:  # the store has ended with that rank
            raise gone from None
        if found is None:  # and not: it has begun meanwhile, and ended
            raise
    if src not in company.here.ranks:
        return _StreamSource(company, src, found)
    options = company.options
    try:
        ring = _RingSource(
            found,
            0,
            wait=options.wait,
            warn_after=options.warn_after,
            label=company.label,
            peer_label=lambda index: company.name(src if index else company.me),
        )
    except SegmentNotFound as error:
        wait_for_cause(lambda: company.check([src]))  # (it ends what it sends by before the rest)
        raise PeerDied(
            f"{company.label}: {action}: {name} has ended before this rank had begun to receive "
            "from it",
            name,
            0,
            "",
        ) from error
    ring.ends_also_by(company.end.check_peers)  # (who lives may have given up because of another)
    return ring


def _subject(src: int, dst: int) -> str:
    return f"from rank {src} to rank {dst}"


class _RingSink:
    """Sends by a ring of one reader, which keeps what that has not received."""

    sends_parts = False
    is_broken = False

    def __init__(self, company: Company, dst: int, check: Callable[[], object]) -> None:
        options = company.options
        self._company = company
        self._dst = dst
        self._check = check
        self._has_receiver = False
        self._writer = FrameWriter(
            1,
            slots=_SLOTS,
            slot_bytes=_SLOT_BYTES,
            spill_bytes=options.spill_bytes,
            wait=options.wait,
            warn_after=options.warn_after,
            label=company.label,
            reader_label=lambda _index: company.name(dst),
            description=Description.between(
                company.name(company.me), company.name(dst), company.title
            ),
        )
        # (The ring holds few messages, and spills nothing for a reader that has yet to attach.)
        self.backlog_bytes = options.spill_bytes
        self.place = self._writer.handle
        """Where the other rank finds the ring."""

    def offer(self, frames: Sequence[Frame]) -> bool:
        if not self._has_receiver:
            self._has_receiver = self._is_attached(0)
            if not self._has_receiver:  # then the ring does not watch it yet
                self._check()
        try:
            self._writer.publish(frames, 0)
        except Timeout:
            return False
        except Closed:
            raise self._closed() from None
        return True

    def publish(self, frames: Sequence[Frame], deadline: Deadline) -> None:
        seconds = _FIRST_LOOK_SECONDS
        while True:
            left = deadline.left()
            try:
                self._writer.publish(frames, seconds if left is None else min(left, seconds))
            except Timeout:
                if deadline.left() == 0:
                    raise
            except Closed:
                raise self._closed() from None
            else:
                return
            self._check()
            seconds = _LOOK_SECONDS

    def _closed(self) -> Closed:
        """Make the error for a ring whose reader has gone, or raise why it has."""
        self._company.look_at_others([self._dst])
        return self._company.left(self._dst)

    def _is_attached(self, seconds: float) -> bool:
        """Wait until the other rank has begun to receive; return whether it has."""
        try:
            self._writer.wait_ready(seconds)
        except Timeout:
            return False
        return True

    def close(self, in_order: bool, deadline: Deadline) -> None:
        if not in_order:
            self._writer.give_up()
        try:
            if not self._writer.closed:
                self._wait_for_receiver(deadline)
        finally:
            self._writer.close()

    def _wait_for_receiver(self, deadline: Deadline) -> None:
        """Wait until it has the ring: it would not find it any more."""
        company, sent = self._company, self._writer.statistics().messages
        try:
            while sent and not self._is_attached(_LONGEST_PAUSE):
                company.look_at_others([self._dst])
                if deadline.left() == 0:
                    warn_of_losses(company, self._dst, sent, deadline)
                    return
        except ShmcastError:
            pass  # it will not come any more


class _StreamSink:
    """Sends over a stream, once the other rank has connected."""

    sends_parts = True

    def __init__(self, company: Company, dst: int, check: Callable[[], object]) -> None:
        self._company = company
        self._dst = dst
        self._check = check
        self._acceptor = Acceptor(company.notices.key)
        self._stream: Stream | None = None
        self.place = self._acceptor.addresses
        """Where the other rank may reach this one."""
        self.backlog_bytes = _SLOTS * _SLOT_BYTES + company.options.spill_bytes  # as of a ring

    @property
    def is_broken(self) -> bool:
        return self._stream is not None and self._stream.is_broken

    def offer(self, _frames: Sequence[Frame]) -> bool:
        if self._stream is None or not self._stream.is_open("send"):
            self._check()  # now: later nobody might be told
        return False  # a stream may take a part of a message, and then has to take the rest

    def publish(self, frames: Sequence[Frame], deadline: Deadline) -> None:
        if self._stream is None:
            self._stream = self._accept(deadline)
        stream = self._stream
        try:
            self._send(stream, frames, deadline)
        finally:
            if stream.is_partial:
                stream.abandon()

    def _send(self, stream: Stream, frames: Sequence[Frame], deadline: Deadline) -> None:
        turn = Turn()
        try:
            stream.send(frames, deadline, "send", turn)
        except Timeout:
            if not stream.is_partial:
                raise
            stream.send(frames, Deadline.after(_GRACE_SECONDS), "send", turn)

    def _accept(self, deadline: Deadline) -> Stream:
        company, pause = self._company, _SHORTEST_PAUSE
        while self._acceptor.missing([self._dst]):
            self._check()
            if deadline.left() == 0:
                raise Timeout(f"{company.label}: {company.name(self._dst)} has not connected")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        connection = self._acceptor.connection(self._dst)
        self._acceptor.hand_over()
        self._acceptor.close()
        return Stream(connection, company.label, company.name(self._dst), self._look)

    def _look(self) -> None:
        if self._stream is not None:
            self._stream.is_open("send")
        self._check()

    def close(self, in_order: bool, deadline: Deadline) -> None:
        self._acceptor.close()
        if self._stream is None:
            return
        if in_order:
            with contextlib.suppress(ShmcastError):  # (then it is too late)
                self._stream.leave(deadline, "close")
        self._stream.close(in_order)
        self._stream = None


class _RingSource(FrameReader):
    """Receives from a ring."""

    def receive(self, turn: Turn, timeout: float | None) -> None:
        if turn.received is None:
            turn.received = self.consume(timeout)


class _StreamSource:
    """Receives from a stream."""

    def __init__(self, company: Company, src: int, addresses: Sequence[Address]) -> None:
        self._company = company
        self._awaited = [src]
        self._stream = stream_to(
            addresses,
            company.notices.key,
            company.me,
            company.label,
            company.name(src),
            lambda: company.check(self._awaited),
        )
        self._awaited = []  # from now on the stream tells: who closes still sends what there is

    def receive(self, turn: Turn, timeout: float | None) -> None:
        self._stream.receive(Deadline.after(timeout), "recv", turn)

    def interrupt(self) -> None:
        self._company.interrupt()

    def close(self) -> None:
        self._stream.close()

    def give_up(self) -> None:
        self._stream.close(in_order=False)


def warn_of_losses(company: Company, dst: int, messages: int, deadline: Deadline) -> None:
    """Say at the end how many messages a rank has not come for."""
    warnings.warn(
        f"{company.label}: closed although {company.name(dst)} has not received what was sent to "
        f"it, in {deadline.timeout} s: {messages} messages are lost to it",
        ShmcastWarning,
        stacklevel=2,
    )

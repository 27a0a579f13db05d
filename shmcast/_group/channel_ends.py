"""The two ends of what one rank sends another: a ring on one node, a stream between two."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from shmcast._codecs.base import Frame, Received
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._group.company import Company
from shmcast._nodes.acceptor import Acceptor, stream_to
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.stream import Stream
from shmcast.errors import PeerDied, SegmentNotFound, Timeout

_SLOTS = 16
_SLOT_BYTES = 64 * 1024
_PAUSE = 0.002
_LINGER_SECONDS = 10.0  # a close waits so long for a receiver that has yet to begin


class Sink(Protocol):
    """Where frames go to one rank."""

    def publish(self, frames: Sequence[Frame], timeout: float | None) -> None:
        """Send one message; as `FrameWriter.publish`."""

    def close(self) -> None:
        """End it in order; idempotent."""

    def give_up(self) -> None:
        """End it otherwise; idempotent."""


class Source(Protocol):
    """Where the frames of one rank come from."""

    def consume(self, timeout: float | None) -> Sequence[Received]:
        """Receive one message; as `FrameReader.consume`."""

    def interrupt(self) -> None:
        """End a call that waits in another thread."""

    def close(self) -> None:
        """End it in order; idempotent."""

    def give_up(self) -> None:
        """End it otherwise; idempotent."""


def open_sink(company: Company, dst: int) -> Sink:
    """Make the end to send to a rank. Does not wait for it.

    Raises:
        ShmcastError: what `Writer` raises, and `Notices.post`.
    """
    subject = _subject(company.me, dst)
    if dst not in company.here.ranks:
        sink = _StreamSink(company, dst)
        company.notices.post(subject, sink.addresses)
        return sink
    options = company.options
    writer = FrameWriter(
        1,
        slots=_SLOTS,
        slot_bytes=_SLOT_BYTES,
        spill_bytes=options.spill_bytes,
        linger=_LINGER_SECONDS,
        wait=options.wait,
        warn_after=options.warn_after,
        label=company.label,
        reader_label=lambda _index: company.name(dst),
    )
    company.notices.post(subject, writer.handle)
    return writer


def open_source(company: Company, src: int, action: str, deadline: Deadline) -> Source:
    """Make the end to receive from a rank, once that has begun to send.

    Raises:
        Timeout: it has not begun in time.
        ShmcastError: what `Reader` raises, and `Company.check`.
    """
    found = company.notices.find(
        _subject(src, company.me), company.name(src), action, deadline, lambda: company.check([src])
    )
    if src not in company.here.ranks:
        stream = stream_to(
            found, company.notices.key, company.me, company.label, company.name(src), company.check
        )
        return _StreamSource(company, stream)
    options = company.options
    try:
        return FrameReader(
            found,
            0,
            wait=options.wait,
            warn_after=options.warn_after,
            label=company.label,
            peer_label=lambda index: company.name(src if index else company.me),
        )
    except SegmentNotFound as error:
        company.check([src])
        raise PeerDied(
            f"{company.label}: {action}: {company.name(src)} has ended before this rank had begun "
            "to receive from it",
            company.name(src),
            0,
            "",
        ) from error


def _subject(src: int, dst: int) -> str:
    return f"from rank {src} to rank {dst}"


class _StreamSink:
    """Sends over a stream, once the other rank has connected."""

    def __init__(self, company: Company, dst: int) -> None:
        self._company = company
        self._dst = dst
        self._acceptor = Acceptor(company.notices.key)
        self._stream: Stream | None = None
        self.addresses = self._acceptor.addresses
        """Where the other rank may reach this one."""

    def publish(self, frames: Sequence[Frame], timeout: float | None) -> None:
        deadline = Deadline.after(timeout)
        if self._stream is None:
            self._stream = self._accept(deadline)
        self._stream.send(frames, deadline, "send")

    def _accept(self, deadline: Deadline) -> Stream:
        company = self._company
        while self._acceptor.missing([self._dst]):
            company.look([self._dst])
            if deadline.left() == 0:
                raise Timeout(
                    f"{company.label}: send timed out after {deadline.timeout} s: "
                    f"{company.name(self._dst)} has not begun to receive"
                )
            time.sleep(_PAUSE)
        connection = self._acceptor.connection(self._dst)
        self._acceptor.close()
        return Stream(connection, company.label, company.name(self._dst), company.look)

    def close(self) -> None:
        self._acceptor.close()
        if self._stream is not None:
            self._stream.close()

    def give_up(self) -> None:
        self._acceptor.close()
        if self._stream is not None:
            self._stream.close(in_order=False)


class _StreamSource:
    """Receives from a stream."""

    def __init__(self, company: Company, stream: Stream) -> None:
        self._company = company
        self._stream = stream

    def consume(self, timeout: float | None) -> Sequence[Received]:
        return self._stream.receive(Deadline.after(timeout), "recv")

    def interrupt(self) -> None:
        self._company.is_interrupted = True

    def close(self) -> None:
        self._stream.close()

    def give_up(self) -> None:
        self._stream.close(in_order=False)

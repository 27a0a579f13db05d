"""What the nodes' leaders tell the source beside its broadcasts, and it them: streams."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence

from shmcast._codecs.base import Frame, Received
from shmcast._group.company import Company
from shmcast._nodes.acceptor import Acceptor, stream_to
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.stream import Stream, Turn
from shmcast.errors import Closed, PeerDied, Timeout

_SUBJECT = "trunk"
_PAUSE = 0.002


class Trunk:
    """The streams of a rank, made when they are first needed: the source's to all, a leader's one.

    Args:
        company: the group's.
    """

    def __init__(self, company: Company) -> None:
        self._company = company
        self._acceptor: Acceptor | None = None
        self._streams: dict[int, Stream] = {}
        nodes = company.topology.nodes
        self.leaders: list[int] = [n.leader for n in nodes if company.src not in n.ranks]
        """Of the other nodes than the source's."""
        self._has_accepted = not self.leaders  # on the source: whoever can still come has

    def begin(self, action: str, deadline: Deadline) -> None:
        """Make sure that there are the streams; only the source and the leaders have any.

        Raises:
            Timeout: a leader, or the source, has not come in time; the next call goes on.
            ShmcastError: what `Company.check` raises.
        """
        company = self._company
        if company.me == company.src:
            self._accept(action, deadline)
        elif company.me in self.leaders and not self._streams:
            source = company.name(company.src)

            def check() -> None:
                # (Once there is a stream, who has closed may have sent what this one waits for.)
                company.check([] if self._streams else [company.src])

            addresses = company.notices.find(_SUBJECT, source, action, deadline, check)
            self._streams[company.src] = stream_to(
                addresses, company.notices.key, company.me, company.label, source, check
            )

    def _accept(self, action: str, deadline: Deadline) -> None:
        company = self._company
        if self._has_accepted:
            return
        if self._acceptor is None:
            self._acceptor = Acceptor(company.notices.key)
            company.notices.post(_SUBJECT, self._acceptor.addresses)
        while missing := self._missing(self._acceptor):
            self._check(self._acceptor, missing)
            if deadline.left() == 0:
                raise Timeout(
                    f"{company.label}: {action} timed out after {deadline.timeout} s: "
                    f"{company.names(missing)} {'has' if len(missing) == 1 else 'have'} not come "
                    "to the first one yet; call it again to go on waiting"
                )
            time.sleep(_PAUSE)
        never_came = self._acceptor.missing(self.leaders)
        for leader in self.leaders:
            if leader not in never_came:
                self._streams[leader] = Stream(
                    self._acceptor.connection(leader),
                    company.label,
                    company.name(leader),
                    functools.partial(company.check_dropped, leader),
                )
        self._acceptor.hand_over()  # (now that all are noted: a signal may have come before)
        self._acceptor.close()
        self._has_accepted = True

    def _check(self, acceptor: Acceptor, missing: list[int]) -> None:
        """Look whether the missing can still come."""
        unseen = acceptor.unseen(missing)
        try:
            self._company.check(unseen)
        except (Closed, PeerDied):
            # (Who comes, sends all that it has to and closes may do so between the two looks.)
            if acceptor.unseen(missing) == unseen:
                raise

    def _missing(self, acceptor: Acceptor) -> list[int]:
        """Return the leaders that have yet to come, without those that were dropped."""
        missing = acceptor.missing(self.leaders)
        dropped = self._company.departed() if missing and self._company.drops else {}
        return [leader for leader in missing if leader not in dropped]

    def _stream(self, rank: int) -> Stream:
        if rank not in self._streams:
            raise self._company.dropped(rank)
        return self._streams[rank]

    def send(
        self, rank: int, frames: Sequence[Frame], deadline: Deadline, action: str, turn: Turn
    ) -> None:
        """Send a message to the source, or to a leader; see `Stream.send`.

        Raises:
            PeerDied: that leader has died before it came, or since.
            ShmcastError: what else `Stream.send` raises.
        """
        self._stream(rank).send(frames, deadline, action, turn)

    def receive(self, rank: int, deadline: Deadline, action: str, turn: Turn) -> list[Received]:
        """Receive a message of the source, or of a leader; see `Stream.receive`."""
        return self._stream(rank).receive(deadline, action, turn)

    def close(self, in_order: bool) -> None:
        """End all streams; idempotent."""
        if self._acceptor is not None:
            self._acceptor.close()
        for stream in self._streams.values():
            stream.close(in_order and self._company.failure is None)

"""A member's part of the set-up, which may be that of its host's leader."""

from __future__ import annotations

import os
import socket
from typing import Any

from shmcast._endpoints.waiting import WaitPolicy
from shmcast._hub.hosts.ends import HostHubEnd, HostMemberEnd
from shmcast._hub.hosts.leader import HostLeader
from shmcast._hub.hosts.meeting import HubOffer, LeaderOffer, Meeting
from shmcast._hub.hosts.relay import FarEnd
from shmcast._hub.member_end import MemberEnd
from shmcast._nodes import control
from shmcast._nodes.exchange import AllGather
from shmcast._nodes.failure import FailurePage
from shmcast.errors import SegmentError


class MemberMeeting(Meeting):
    """The set-up of a rank that is a member; see `Meeting`."""

    def __init__(self, rank: int, size: int, exchange: AllGather, label: str) -> None:
        super().__init__(rank, size, exchange, False, label)

    @property
    def index(self) -> int:
        """Which member this rank is."""
        return self.seating.member(self._rank)

    def make_end(self, **options: Any) -> MemberEnd:
        """Make this member's end, and on a leader what relays to its host.

        Args:
            options: of `MemberEnd`.
        """
        seating = self.seating
        node = seating.topology.node_of(self._rank)
        is_home = node == seating.home
        offer: HubOffer = self.share(None)[seating.hub]
        part, page, mine = None, None, None
        if self._rank == node.leader and not is_home:
            page = FailurePage()
            self.undo.callback(page.unlink)
            self.begin.callback(page.unlink)
            part = self._make_part(offer)
            mine = LeaderOffer(part.handle, os.getpid(), page.name)
        offers = self.share(mine)
        at = offer if is_home else offers[node.leader]
        seat = seating.members_on(node).index(self.index)
        options["peer_label"] = seating.names_at(node).__getitem__
        options["pin"] = options["pin"] and is_home
        if at.page:
            end: MemberEnd = HostMemberEnd(
                at.handle,
                seat,
                page=FailurePage(at.page),
                members=len(seating.names()),
                **options,
            )
        else:
            end = MemberEnd(at.handle, seat, **options)
        self.undo.callback(end.give_up)
        if part is not None and page is not None:
            far = FarEnd(seating.hub_name(), offer.pid, seating.home, "the hub")
            leader = HostLeader(part, self._connect(offer), far, seating.members_on(node), page)
            self.begin.callback(leader.begin, end)
        self.share(None)
        return end

    def _make_part(self, offer: HubOffer) -> HostHubEnd:
        assert offer.options is not None  # noqa: S101 (there are several hosts)
        node = self.seating.topology.node_of(self._rank)
        names = self.seating.names_at(node)
        part = HostHubEnd(
            len(self.seating.members_on(node)),
            **offer.options,
            arena_bytes=0,
            pin=False,
            wait=WaitPolicy.semaphore(),
            on_death=None,
            label=f"{offer.label} on {node}",
            member_label=names.__getitem__,
            warmup=None,
        )
        self.undo.callback(part.give_up)
        part.populate()
        return part

    def _connect(self, offer: HubOffer) -> socket.socket:
        try:
            connection = control.connect_to_source(offer.addresses, offer.secret, self._rank)
        except ConnectionError as error:
            raise SegmentError(f"{self._label}: the hub is not to be reached: {error}") from error
        self.undo.callback(connection.close)
        return connection

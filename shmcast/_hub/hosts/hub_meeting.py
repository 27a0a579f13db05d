"""The hub's part of the set-up."""

from __future__ import annotations

import os
import secrets
from typing import Any

from shmcast._endpoints.waiting import WaitPolicy
from shmcast._hub.hosts.branch import Branch
from shmcast._hub.hosts.ends import HostMemberEnd, HostsHubEnd
from shmcast._hub.hosts.meeting import HubOffer, LeaderOffer, Meeting
from shmcast._hub.hosts.relay import FarEnd
from shmcast._hub.hosts.seating import named
from shmcast._hub.hub_end import HubEnd
from shmcast._nodes.acceptor import Acceptor
from shmcast._nodes.exchange import AllGather
from shmcast._nodes.failure import FailurePage
from shmcast._nodes.topology import Node

_SHARED_OPTIONS = (
    "slots", "slot_bytes", "spill_bytes", "reply_slots", "reply_slot_bytes", "on_member_death",
    "warn_after",
)  # fmt: skip
"""What the parts of a hub have in common."""


class HubMeeting(Meeting):
    """The set-up of the rank that is the hub; see `Meeting`."""

    def __init__(self, rank: int, size: int, exchange: AllGather, label: str) -> None:
        super().__init__(rank, size, exchange, True, label)

    def make_end(self, members: int, **options: Any) -> HubEnd:
        """Make the hub's end, and bring the members to it.

        Args:
            members: how many there are.
            options: of `HubEnd`.
        """
        return self._make_near(members, options) if self.is_on_one_host else self._make(options)

    def _make_near(self, members: int, options: dict[str, Any]) -> HubEnd:
        end = HubEnd(members, **options)
        self.undo.callback(end.give_up)
        self.share(HubOffer(end.handle, os.getpid(), self._label))
        self.share(None)
        self.share(None)
        return end

    def _make(self, options: dict[str, Any]) -> HostsHubEnd:
        seating = self.seating
        page = FailurePage()
        self.undo.callback(page.unlink)
        end = HostsHubEnd(0, seating=seating, page=page, **options)
        self.undo.callback(end.give_up)
        secret = secrets.token_hex(16)
        acceptor = Acceptor(secret)
        self.undo.callback(acceptor.close)
        self.begin.callback(acceptor.close)
        self.begin.callback(page.unlink)
        shared = {name: options[name] for name in _SHARED_OPTIONS}
        self.share(
            HubOffer(
                end.handle,
                os.getpid(),
                self._label,
                page.name,
                secret,
                tuple(acceptor.addresses),
                shared,
            )
        )
        offers = self.share(None)
        self.share(None)
        drops = options["on_member_death"] == "drop"
        for place, node in enumerate(seating.others):
            offer = offers[node.leader]
            branch = self._branch(end, place, node, offer, acceptor, page, drops)
            end.relay_by(branch)
            self.begin.callback(branch.start)
        acceptor.hand_over()
        return end

    def _branch(
        self,
        end: HostsHubEnd,
        place: int,
        node: Node,
        offer: LeaderOffer,
        acceptor: Acceptor,
        page: FailurePage,
        drops: bool,
    ) -> Branch:
        """Take the seat of another host."""
        seating = self.seating
        members = seating.members_on(node)
        leader = seating.names()[seating.member(node.leader)]
        seat = HostMemberEnd(
            end.handle,
            len(seating.members_on(seating.home)) + place,
            page=page,
            members=end.members,
            wait=WaitPolicy.semaphore(),
            warn_after=None,
            label=self._label,
            peer_label=seating.names_at(seating.home).__getitem__,
        )
        self.undo.callback(seat.give_up)
        far = FarEnd(leader, offer.pid, node, named(members), leads=len(members) > 1)
        return Branch(seat, acceptor.connection(node.leader), far, members, page, drops)

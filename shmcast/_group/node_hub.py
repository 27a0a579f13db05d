"""The hub of one node's ranks, by which they answer its leader: made when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence

from shmcast._codecs.base import Frame
from shmcast._group.company import Company
from shmcast._group.node_ends import NodeHubEnd, NodeMemberEnd
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.stream import wait_for_cause
from shmcast.errors import Closed, PeerDied, SegmentNotFound, Timeout

_SLOTS = 16
_SLOT_BYTES = 16 * 1024
_LOOK_SECONDS = 0.05


class NodeHub:
    """What a rank has of its node's hub.

    Args:
        company: the group's.
    """

    def __init__(self, company: Company) -> None:
        self._company = company
        self._subject = f"hub of node {company.here.index}"
        self._members: list[int] = []
        self.is_complete: bool = False
        """All ranks of the node have their ends."""
        self.end: NodeHubEnd | NodeMemberEnd | None = None
        """This rank's; None: there is none yet, or this rank is alone on its node."""

    def begin(self, action: str, deadline: Deadline) -> None:
        """Make sure that all ranks of the node have their ends.

        Args:
            action: what needs them, as errors name that.
            deadline: of the wait for the others. After a time-out, the next call goes on.

        Raises:
            Timeout: some rank has not come in time.
            ShmcastError: what `Hub` and `Member` raise, and `Company.check`.
        """
        if self.is_complete:
            self._name(action)
            return
        company = self._company
        if self.end is None and company.here.ranks != (company.me,):
            if company.me == company.here.leader:
                self._make()
            else:
                self._attach(action, deadline)
        self._name(action)
        if self.end is not None:
            if len(company.topology.nodes) > 1:  # (else its own segment tells of all)
                self.end.ends_also_by(company.end.check_peers)
            self._wait(self.end, action, deadline)
        self.is_complete = True

    def _name(self, action: str) -> None:
        if self.end is not None:
            self.end.call(action)

    def _make(self) -> None:
        company = self._company
        company.look()  # (where the dead are not dropped, that ends this)
        departed = company.departed() if company.drops else {}
        gone = [rank for rank, state in departed.items() if state == "dropped"]
        others = [rank for rank in company.here.ranks if rank != company.me]
        self._members = [rank for rank in others if rank not in gone]
        if not self._members:
            return
        options = company.options
        self.end = NodeHubEnd(
            len(self._members),
            slots=_SLOTS,
            slot_bytes=_SLOT_BYTES,
            arena_bytes=0,
            spill_bytes=options.spill_bytes,
            pin=False,
            reply_slots=_SLOTS,
            reply_slot_bytes=_SLOT_BYTES,
            wait=options.wait,
            on_member_death=options.on_reader_death,
            on_death=company.note_death if company.drops else None,
            warn_after=options.warn_after,
            label=company.label,
            member_label=self._names().__getitem__,
            warmup=None,
        )
        self.end.populate()
        notice = (self.end.handle, self._members)
        company.notices.post(self._subject, notice, lambda: company.look([company.src]))

    def _attach(self, action: str, deadline: Deadline) -> None:
        company, leader = self._company, self._company.here.leader
        handle, self._members = company.notices.find(
            self._subject,
            company.name(leader),
            action,
            deadline,
            lambda: company.check([leader]),
        )
        if company.me not in self._members:
            raise company.dropped(company.me)
        try:
            self.end = NodeMemberEnd(
                handle,
                self._members.index(company.me),
                wait=company.options.wait,
                warn_after=company.options.warn_after,
                label=company.label,
                peer_label=self._names().__getitem__,
            )
        except SegmentNotFound as error:
            wait_for_cause(self._check_all)
            raise company.left(leader) from error
        self.end.populate()

    def _check_all(self) -> None:
        """Raise why the leader has ended its hub: it may have been told of somebody's end."""
        company = self._company
        others = [index for index, rank in enumerate(self._members) if rank != company.me]
        dropped = self._dropped(others)
        self._check([index for index in others if index not in dropped])
        company.check([company.here.leader])

    def _names(self) -> list[str]:
        # (No method of this: the end has them, and this has the end.)
        return [self._company.name(rank) for rank in [*self._members, self._company.here.leader]]

    def _wait(self, end: NodeHubEnd | NodeMemberEnd, action: str, deadline: Deadline) -> None:
        """Wait until all are there. Whoever is not is not yet watched by its end here.

        It is looked after them first of all: signals or interrupts may end each wait too early.
        """
        self._look_after(end)
        while True:
            left = deadline.left()
            try:
                end.wait_ready(_LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS))
            except Timeout:
                missing = self._look_after(end)
                if deadline.left() == 0:
                    who = self._company.names([self._members[index] for index in missing])
                    raise Timeout(
                        f"{self._company.label}: {action} timed out after {deadline.timeout} s: "
                        f"{who} {'has' if len(missing) == 1 else 'have'} not come to the first one "
                        "yet; call it again to go on waiting"
                    ) from None
            else:
                return

    def _look_after(self, end: NodeHubEnd | NodeMemberEnd) -> Sequence[int]:
        """Return who has not come yet; raise why this can't go on waiting for them.

        Only what two looks have found in the same state: between its parts, whoever is found to
        have gone may have come, sent what it had to, and closed.
        """
        before = None
        while True:
            missing = end.vacant()
            dropped = self._dropped(missing)
            try:
                self._check([index for index in missing if index not in dropped])
            except (Closed, PeerDied):
                if (missing, dropped) == before:
                    raise
                before = missing, dropped
            else:
                return missing

    def _dropped(self, missing: Sequence[int]) -> list[int]:
        """Return who is dropped, without whom the leader goes on."""
        company = self._company
        departed = company.departed() if company.drops else {}
        dropped = [index for index in missing if departed.get(self._members[index]) == "dropped"]
        if isinstance(self.end, NodeHubEnd):
            for index in dropped:
                self.end.excuse(index, company.dropped(self._members[index]))
        return dropped

    def _check(self, awaited: Sequence[int]) -> None:
        self._company.check([self._members[index] for index in awaited])

    # On the leader.

    def collect(self, deadline: Deadline) -> Sequence[Sequence[Frame] | None]:
        """Receive a message of each other rank of the node, for `by_rank`; None: it has died."""
        if self.end is None:
            return []
        assert isinstance(self.end, NodeHubEnd)  # noqa: S101 (this is the leader)
        return self.end.collect(deadline.left())

    def by_rank(
        self, collected: Sequence[Sequence[Frame] | None]
    ) -> dict[int, Sequence[Frame] | PeerDied]:
        """Return what was collected by rank, with how those that are dead have died."""
        company = self._company
        told: dict[int, Sequence[Frame] | PeerDied] = {
            rank: company.dropped(rank)
            for rank in company.here.ranks
            if rank not in self._members and rank != company.me
        }
        if self.end is None:
            return told
        assert isinstance(self.end, NodeHubEnd)  # noqa: S101 (this is the leader)
        for index, frames in enumerate(collected):
            told[self._members[index]] = self.end.death_of(index) if frames is None else frames
        return told

    def missing(self) -> list[int]:
        """Return the ranks that the last `collect` has waited for in vain."""
        if self.end is None:
            return []
        assert isinstance(self.end, NodeHubEnd)  # noqa: S101 (this is the leader)
        return [self._members[index] for index in self.end.replies.awaited()]

    def publish(self, frames: Sequence[Frame], deadline: Deadline) -> None:
        """Send a message to all other ranks of the node that are left.

        Raises:
            Closed: all of them have closed.
            ShmcastError: what else `Hub.send` raises.
        """
        if self.end is None:
            return
        try:
            self.end.publish(frames, deadline.left())
        except PeerDied:
            if not self._company.drops:  # (else it says that nobody is left)
                raise

    # On the others.

    def reply(self, frames: Sequence[Frame], deadline: Deadline) -> None:
        """Send a message to the leader."""
        assert isinstance(self.end, NodeMemberEnd)  # noqa: S101 (this is no leader)
        self.end.publish(frames, deadline.left())

    def consume(self, deadline: Deadline) -> list[bytearray | memoryview]:
        """Receive the next message of the leader."""
        assert isinstance(self.end, NodeMemberEnd)  # noqa: S101 (this is no leader)
        return self.end.consume(deadline.left())

    # On all of them.

    def begin_to_send(self) -> None:
        """Forget what was sent before, for `was_sent`."""
        if self.end is not None:
            self.end.not_encoded()

    @property
    def was_sent(self) -> bool:
        """Whether a message was sent since then, whatever was raised of it."""
        return self.end is not None and self.end.was_sent

    @property
    def barriers_passed(self) -> int:
        """How many barriers this rank has passed, whatever was raised of it."""
        return 0 if self.end is None else self.end.replies.barriers_passed()

    def barrier(self, timeout: float | None) -> None:
        """Wait until all ranks of the node have come."""
        if self.end is not None:
            self.end.barrier(timeout)

    def absent(self) -> list[int]:
        """Return the ranks that have not come to the last barrier."""
        if self.end is None:
            return []
        members = [*self._members, self._company.here.leader]
        return [members[index] for index in self.end.replies.absent()]

    def interrupt(self) -> None:
        """End the call that waits in another thread."""
        if self.end is not None:
            self.end.interrupt()

    def close(self, in_order: bool) -> None:
        """End this rank's end; idempotent."""
        if self.end is not None:
            self.end.close() if in_order else self.end.give_up()

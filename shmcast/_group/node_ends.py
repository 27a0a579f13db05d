"""The ends of a node's hub, as a broadcaster's errors tell of them: by ranks and collectives."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shmcast import _core
from shmcast._hub.hub_end import HubEnd
from shmcast._hub.member_end import MemberEnd
from shmcast._hub.two_way_end import TwoWayEnd, has_or_have
from shmcast.errors import Closed, ConcurrentUse, PeerDied, ShmcastError

if TYPE_CHECKING:
    from shmcast._endpoints.slow_peers import Wait


class _NodeEnd(TwoWayEnd):
    """What the two ends share. To be named before the class of the end."""

    reader_noun = "rank"
    _collective = ""

    @property
    def attaching(self) -> str:
        """How a process takes part."""
        return "ShmBroadcaster"

    def call(self, collective: str) -> None:
        """Name the collective that calls this end from now on; `barrier` names itself."""
        self._collective = collective
        self._watch.calls = collective

    def _meaning(
        self, error: Exception, action: str, timeout: float | None
    ) -> ShmcastError | SystemExit | None:
        name = action if action == "barrier" else self._collective
        match error:
            case _core.EndpointClosed() if self._closed:
                return Closed(f"{self.label}: {name} after close(); make a new broadcaster")
            case _core.ConcurrentUse():
                return ConcurrentUse(
                    f"{self.label}: {name} while another thread is in a collective of this "
                    "broadcaster; give each thread a broadcaster of its own"
                )
        return super()._meaning(error, name, timeout)

    def _end_error(self, what: str) -> ShmcastError:
        """Say who has closed; or who has died, for that was the cause."""
        try:
            self.check_peers()
        except PeerDied as error:
            return error
        gone = self._gone()
        if not gone:
            return super()._end_error(what)
        return Closed(f"{what}: {self._named(gone)} {has_or_have(gone)} closed, and will not come")

    def _gone(self) -> list[int]:
        """Return who of the others has closed, by index; nobody, if the rest has died."""
        raise NotImplementedError


class NodeHubEnd(_NodeEnd, HubEnd):
    """The leader's."""

    def excuse(self, index: int, death: PeerDied) -> None:
        """Drop a rank that has died before it came to its first collective, in the next wait."""
        self._watch.excused[index] = death
        self._ring.alarm()

    def _gone(self) -> list[int]:
        return [] if self.dropped() else self.left()

    def _wait_of_replies(self, peers: Sequence[_core.Peer]) -> Wait:
        wait = super()._wait_of_replies(peers)
        return dataclasses.replace(wait, action=self._collective, goal="objects")


class NodeMemberEnd(_NodeEnd, MemberEnd):
    """Another rank's."""

    def _gone(self) -> list[int]:
        return [self.handle.readers]

    def _wait_of_replies(self, peers: Sequence[_core.Peer]) -> Wait:
        return dataclasses.replace(super()._wait_of_replies(peers), action=self._collective)

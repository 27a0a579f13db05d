"""`HubHandle`: how a member finds its hub's segment. Small and picklable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shmcast import _core
from shmcast._endpoints.handle import Handle


@dataclass(frozen=True, slots=True)
class HubHandle(Handle):
    """What a member needs to find the hub's segment. Small and picklable.

    Attributes:
        reply_slots: slots of each member's ring of replies.
        reply_slot_bytes: payload bytes of one of these.
    """

    spans_hosts: ClassVar[bool] = False
    """Its members come together at set-up, and no other can attach."""
    reply_slots: int = 0
    reply_slot_bytes: int = 0

    @property
    def tail_bytes(self) -> int:
        """Bytes of the segment behind the ring of messages: the rings of replies."""
        return _core.tail_bytes(self.readers, replies_of(self))


def replies_of(handle: HubHandle) -> _core.Geometry:
    """Return the shape of a member's ring of replies."""
    return _core.Geometry(1, handle.reply_slots, handle.reply_slot_bytes, 0)

"""What the user of a `ShmBroadcaster` chose for its endpoints, on whichever node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from shmcast._endpoints.waiting import WaitPolicy
from shmcast.errors import PeerDied


@dataclass(frozen=True)
class Options:
    """What the user chose; see `ShmBroadcaster`."""

    wait: WaitPolicy | None
    on_reader_death: Literal["raise", "drop"]
    warn_after: float | None
    slots: int
    slot_bytes: int
    arena_bytes: int
    pin: bool
    on_death: Callable[[PeerDied], object] | None = None

    def for_writer(self) -> dict[str, Any]:
        """The arguments of a `Writer` that are the user's."""
        return {
            **self.for_reader(),
            "on_reader_death": self.on_reader_death,
            "on_death": self.on_death,
            "slots": self.slots,
            "slot_bytes": self.slot_bytes,
            "arena_bytes": self.arena_bytes,
        }

    def for_reader(self) -> dict[str, Any]:
        """The arguments of a `Reader` that are the user's."""
        return {
            "wait": self.wait,
            "pin": self.pin,
            "warn_after": self.warn_after,
        }

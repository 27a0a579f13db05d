"""What the user of a `ShmBroadcaster` chose for its endpoints, on whichever node."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from shmcast._endpoints import settings
from shmcast._endpoints.frame_writer import (
    DEFAULT_SLOT_BYTES,
    DEFAULT_SLOTS,
    DEFAULT_SPILL_BYTES,
)
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
    spill_bytes: int = DEFAULT_SPILL_BYTES
    switch_interval: float | None = None
    patience: float | None = None
    """Seconds that calls without a `timeout` have: the operator's choice only."""

    @classmethod
    def of_reader(
        cls,
        wait: WaitPolicy | None,
        warn_after: float | None,
        pin: bool,
        switch_interval: float | None,
    ) -> Options:
        """Return those of a rank that makes no ring, as it rejoins."""
        shape = (DEFAULT_SLOTS, DEFAULT_SLOT_BYTES, 0)  # of no ring
        return cls(wait, "drop", warn_after, *shape, pin, switch_interval=switch_interval)

    def with_settings(self) -> Options:
        """Return these with the operator's settings in their place.

        Raises:
            InvalidArgument: one of them is of the wrong kind.
        """
        return dataclasses.replace(
            self,
            warn_after=settings.seconds(settings.WARN_AFTER, self.warn_after),
            slots=settings.count(settings.SLOTS, self.slots),
            slot_bytes=settings.count(settings.SLOT_BYTES, self.slot_bytes),
            arena_bytes=settings.count(settings.ARENA_BYTES, self.arena_bytes),
            spill_bytes=settings.count(settings.SPILL_BYTES, self.spill_bytes),
            switch_interval=settings.switch_interval(self.switch_interval),
            patience=settings.seconds(settings.TIMEOUT, None),
        )

    def for_writer(self) -> dict[str, Any]:
        """Return the arguments of a writer that are the user's."""
        return {
            **self.for_reader(),
            "on_reader_death": self.on_reader_death,
            "on_death": self.on_death,
            "slots": self.slots,
            "slot_bytes": self.slot_bytes,
            "arena_bytes": self.arena_bytes,
            "spill_bytes": self.spill_bytes,
        }

    def for_reader(self) -> dict[str, Any]:
        """Return the arguments of a reader that are the user's."""
        return {
            "wait": self.wait,
            "pin": self.pin,
            "warn_after": self.warn_after,
            "switch_interval": self.switch_interval,
        }

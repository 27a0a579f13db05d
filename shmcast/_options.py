"""What the user of a `ShmBroadcaster` chose for its endpoints, on whichever node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shmcast.codec import Codec
from shmcast.waiting import WaitPolicy


@dataclass(frozen=True)
class Options:
    """What the user chose; see `ShmBroadcaster`."""

    wait: WaitPolicy | None
    codec: Codec | None
    on_reader_death: Literal["raise", "drop"]
    warn_after: float | None
    slots: int
    slot_bytes: int
    arena_bytes: int
    pin: bool

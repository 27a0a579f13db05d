"""`Handle`: how a reader finds its writer's segments. Small and picklable."""

from __future__ import annotations

from dataclasses import dataclass

from shmcast import _core


@dataclass(frozen=True, slots=True)
class ArenaHandle:
    """Where a writer's arena is."""

    name: str
    """Name of its POSIX shared-memory segment."""
    nbytes: int
    """Its size, of which not all need have memory yet."""
    fd: int
    """The writer's descriptor of it."""


@dataclass(frozen=True, slots=True)
class Handle:
    """What a reader needs to find the writer's segment. Small and picklable."""

    name: str
    """Name of the POSIX shared-memory segment."""
    nonce: bytes
    """16 random bytes that the segment must hold, so that no other is taken for it."""
    readers: int
    """Number of readers; each attaches once, with an index below this."""
    slots: int
    slot_bytes: int
    holder: tuple[int, int]
    """The writer's pid, and its descriptor of the segment: the way in when the name is gone."""
    drops_dead: bool
    """The writer goes on without readers that have died."""
    arena: ArenaHandle | None = None
    """Where large buffers lie; None: the writer has no arena."""


def geometry_of(handle: Handle) -> _core.Geometry:
    """Return the shape of the ring that `handle` leads to."""
    extents = _core.EXTENTS if handle.arena else 0
    return _core.Geometry(handle.readers, handle.slots, handle.slot_bytes, extents)

"""`Handle`: how a reader finds its writer's segments. Small and picklable."""

from __future__ import annotations

from dataclasses import dataclass

from shmcast import _core


@dataclass(frozen=True, slots=True)
class ArenaHandle:
    """Where a writer's arena is.

    Attributes:
        name: name of its POSIX shared-memory segment.
        nbytes: its size, of which not all need have memory yet.
        fd: the writer's descriptor of it.
    """

    name: str
    nbytes: int
    fd: int


@dataclass(frozen=True, slots=True)
class Handle:
    """What a reader needs to find the writer's segment. Small and picklable.

    Attributes:
        name: name of the POSIX shared-memory segment.
        nonce: 16 random bytes that the segment must hold, so that no other is taken for it.
        readers: number of readers; each attaches once, with an index below this.
        slots: slots of the ring.
        slot_bytes: payload bytes of a slot.
        holder: the writer's pid, and its descriptor of the segment: the way in when the name is
            gone.
        drops_dead: the writer goes on without readers that have died.
        arena: where large buffers lie; None: the writer has no arena.
        spill_bytes: room behind the ring for what busy readers hold up; 0: there is none.
    """

    name: str
    nonce: bytes
    readers: int
    slots: int
    slot_bytes: int
    holder: tuple[int, int]
    drops_dead: bool
    arena: ArenaHandle | None = None
    spill_bytes: int = 0

    @property
    def tail_bytes(self) -> int:
        """Bytes of the segment behind the ring, for what stands on it."""
        return 0


def geometry_of(handle: Handle) -> _core.Geometry:
    """Return the shape of the ring that `handle` leads to."""
    extents = _core.EXTENTS if handle.arena else 0
    return _core.Geometry(
        handle.readers,
        handle.slots,
        handle.slot_bytes,
        extents,
        handle.spill_bytes,
        handle.tail_bytes,
    )

"""`Handle`: how a reader finds its writer's segments. Small and picklable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from shmcast import _core
from shmcast._version import __version__
from shmcast.errors import SegmentMismatch


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
        layout: version of the segment's layout; the reader's must be the same.
        version: of the writer's package, for errors.
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
    layout: int = _core.LAYOUT_VERSION
    version: str = __version__

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Handle], tuple[dict[str, Any]]]:
        """Pickle the fields by name: other versions of shmcast have others."""
        return self._restored, ({field.name: getattr(self, field.name) for field in fields(self)},)

    @classmethod
    def _restored(cls, state: dict[str, Any]) -> Handle:
        """Return the handle that was pickled, perhaps by another version of shmcast.

        What this version does not know is left out, and what the other did not know is None: such a
        handle is only good for the error that says so.
        """
        handle = object.__new__(cls)
        for field in fields(cls):
            object.__setattr__(handle, field.name, state.get(field.name))
        return handle

    @property
    def tail_bytes(self) -> int:
        """Bytes of the segment behind the ring, for what stands on it."""
        return 0


def check_layout(handle: Handle, label: str) -> None:
    """Find out whether the writer of a handle has this process's layout.

    Args:
        handle: the writer's.
        label: how errors name this endpoint.

    Raises:
        SegmentMismatch: it has another.
    """
    if handle.layout != _core.LAYOUT_VERSION:
        raise SegmentMismatch(
            f"{label}: {handle.name} was made by shmcast {handle.version}, with layout version "
            f"{handle.layout}; this process has shmcast {__version__}, with layout version "
            f"{_core.LAYOUT_VERSION}: let both have the same version of shmcast"
        )


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

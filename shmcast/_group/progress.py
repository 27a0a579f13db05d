"""How far a group's ranks are with device tensors, as this rank's end of frames shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class _End(Protocol):
    def begin_tensor_set(self) -> None: ...

    def tensor_sets(self) -> list[int]: ...

    def check_peers(self) -> None: ...


class RankProgress:
    """The progress that the device lane asks for, by rank instead of by member.

    Args:
        end: this rank's.
        ranks: the group's global ranks.
        here: those of this rank's node.
        readers: the global ranks of this node's readers, by index.
    """

    def __init__(
        self, end: _End, ranks: Sequence[int], here: Sequence[int], readers: Sequence[int]
    ) -> None:
        self._end = end
        writer = len(readers)
        self._members = [
            None if rank not in here else readers.index(rank) if rank in readers else writer
            for rank in ranks
        ]

    def announce_start(self) -> None:
        """Tell all ranks of this node that this one starts the next message's device tensors."""
        self._end.begin_tensor_set()

    def started(self) -> list[int | None]:
        """Return for how many messages each rank has started; None for ranks of other nodes."""
        sets = self._end.tensor_sets()
        return [None if i is None or not sets else sets[i] for i in self._members]

    def check_alive(self) -> None:
        """Raise PeerDied if a rank has died, NodeLost if a node is lost."""
        self._end.check_peers()

"""The deaths of readers which their writer goes on without: each is told once."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable

from shmcast import _core
from shmcast._host.log import tell
from shmcast.errors import PeerDied

_MOST_UNNOTED = 64
_MOST_LOGGED = 1024

_logged: dict[tuple[str, str, int, int], int] = {}
"""Who has logged a death: a rank of a broadcaster has several rings, of which one is to tell."""
_numbers = itertools.count()


class Deaths:
    """Notes who has died, and tells the program.

    Args:
        label: how the log names who goes on. Of the same death, one of the same label tells.
        on_death: called for each.
    """

    def __init__(self, label: str, on_death: Callable[[PeerDied], object] | None) -> None:
        self._label = label
        self._number = next(_numbers)
        self.last: dict[int, PeerDied] = {}
        """How the last reader has died that each seat has lost, by index."""
        self._on_death = on_death
        self._untold: list[PeerDied] = []
        self._noted: dict[int, int] = {}  # by index: of how many who had the seat the end is known

    @property
    def are_told(self) -> bool:
        """Whether `tell` has told all."""
        return not self._untold

    def unnoted(self, peer: _core.Peer) -> int:
        """Return how many died whose seat was taken over before anybody noted it.

        (The number is in shared memory, where anybody of this user may have written another.)
        """
        return min(max(0, peer.takeovers - self._noted.get(peer.index, 0)), _MOST_UNNOTED)

    def note_drop(self, peer: _core.Peer, error: PeerDied) -> None:
        """Note the death of who has a seat, unless that was done by a call that was interrupted."""
        if self._noted.get(peer.index, 0) <= peer.takeovers:
            text = "%s; it is dropped, the others go on"
            self._note(peer.index, peer.takeovers + 1, [error], text)

    def note_takeovers(self, peer: _core.Peer, errors: list[PeerDied]) -> None:
        """Note the deaths of those who had a seat before: as many as `unnoted` returns."""
        self._note(peer.index, peer.takeovers, errors, "%s")

    def _note(self, index: int, count: int, errors: list[PeerDied], text: str) -> None:
        # (One statement, so that no signal's handler leaves half of it done.)
        self.last[index], self._noted[index], self._untold = (
            errors[-1],
            count,
            [*self._untold, *errors],
        )
        for error in errors:
            if self._is_news(error, count):
                tell(logging.WARNING, text, error)

    def _is_news(self, error: PeerDied, count: int) -> bool:
        if len(_logged) >= _MOST_LOGGED:
            _logged.clear()
        who = (self._label, error.peer, error.pid, count)
        return _logged.setdefault(who, self._number) == self._number

    def tell(self) -> None:
        """Call `on_death` for each; what it raises passes, and the rest is told the next time."""
        while self._untold:
            error = self._untold.pop(0)
            if self._on_death is not None:
                self._on_death(error)

"""Who has gone of those whose rings do not tell it here, or not yet: told by notices."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Collection

from shmcast._group.notices import Notices
from shmcast._nodes.failure import Failure
from shmcast.errors import InvalidArgument, SegmentError

_LOOK_SECONDS = 0.1  # between two looks for the same rank


class Departures:
    """What ranks tell others of a departure: their own, or one that they see.

    On other nodes nobody else tells of it. On its own one, a rank's ring tells that it has closed
    only when others have what it had sent to them.

    Args:
        notices: of the broadcaster.
        has_others: whether there is anybody on other nodes.
    """

    def __init__(self, notices: Notices, has_others: bool) -> None:
        self._notices = notices
        self._has_others = has_others
        self._is_reachable = True
        self._known: dict[int, str | Failure] = {}
        self._next_looks: dict[int, float] = {}  # on the clock of time.monotonic
        self._lock = threading.Lock()

    def of(self, rank: int) -> str | Failure | None:
        """Return how a rank has gone; None: nobody has told that it has.

        It has "left", or was "dropped", or there is what it knew of the others when it left.
        """
        with self._lock:
            now = time.monotonic()
            is_to_look = self._is_reachable and now >= self._next_looks.get(rank, 0.0)
            if rank not in self._known and is_to_look:
                self._next_looks[rank] = now + _LOOK_SECONDS
                state = self._found(rank)
                if state is not None:
                    self._known[rank] = state
            return self._known.get(rank)

    def _found(self, rank: int) -> str | Failure | None:
        try:
            state: str | Failure | None = self._notices.look(_subject(rank))
        except (SegmentError, InvalidArgument):  # nobody can be told of anything any more
            self._is_reachable = False
            return None
        return state

    def tell(self, rank: int, state: str | Failure) -> None:
        """Tell other nodes of a rank that has gone, once."""
        if self._has_others:
            self._tell(rank, state)

    def tell_all_of_close(self, rank: int) -> None:
        """Tell everybody that a rank has begun to close, once."""
        self._tell(rank, "left")

    def _tell(self, rank: int, state: str | Failure) -> None:
        with self._lock:
            if not self._is_reachable or rank in self._known:
                return
            self._known[rank] = state
        with contextlib.suppress(SegmentError, InvalidArgument):
            self._notices.post(_subject(rank), state)

    def tell_dropped(self, ranks: Collection[int]) -> None:
        """Tell of ranks that were dropped, without waiting for the store."""
        ranks = [rank for rank in ranks if rank not in self._known]
        if ranks:
            name, target = "shmcast-departures", self._tell_dropped
            threading.Thread(target=target, name=name, args=(ranks,), daemon=True).start()

    def _tell_dropped(self, ranks: Collection[int]) -> None:
        for rank in ranks:
            if self.of(rank) is None:  # (it may have closed before it ended)
                self.tell(rank, "dropped")


def _subject(rank: int) -> str:
    return f"departure of rank {rank}"

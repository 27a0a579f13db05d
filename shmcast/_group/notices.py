"""What ranks tell one another after the set-up: where what one of them has made on first use is.

By the store through which the group's members have found each other, or the source's own, so that
no collective of the group is needed: whoever needs something looks for it, and whoever has made it
need not wait.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from typing import Any, Protocol

from shmcast._host.signals import pass_on
from shmcast._nodes.deadline import Deadline
from shmcast.errors import InvalidArgument, SegmentError, Timeout

_SHORTEST_PAUSE = 0.0005
_LONGEST_PAUSE = 0.02


def _nothing() -> None:
    pass


class NoticeStore(Protocol):
    """What notices are posted in: a part of torch's `Store`. Its methods raise RuntimeError."""

    def set(self, key: str, value: str, /) -> None:
        """Keep a value."""

    def check(self, keys: list[str], /) -> bool:
        """Return whether there are values for all of these."""

    def get(self, key: str, /) -> bytes:
        """Return a value that is there."""


class Notices:
    """The notices of one broadcaster.

    Args:
        store: the group's; None: it is not known.
        key: the broadcaster's, the same on all ranks and no other's.
        label: how errors name this rank.
    """

    def __init__(self, store: NoticeStore | None, key: str, label: str) -> None:
        self._store = store
        self._key = key
        self._label = label

    def post(self, subject: str, thing: object, check: Callable[[], object] = _nothing) -> None:
        """Tell all ranks something, once for each subject.

        Args:
            subject: of the notice.
            thing: what is told.
            check: raises why the store may be out of reach, if that is known: it ends with a rank.

        Raises:
            InvalidArgument: there is no store.
            SegmentError: it can't be reached.
        """
        store = self._reachable()
        try:
            store.set(self._name(subject), pickle.dumps(thing).hex())
        except RuntimeError as error:
            pass_on(error)
            check()
            raise self._failed(error) from error

    def find(
        self, subject: str, who: str, action: str, deadline: Deadline, check: Callable[[], object]
    ) -> Any:
        """Wait for what a rank tells.

        Args:
            subject: of the notice.
            who: posts it, as errors name that rank.
            action: what needs it, as errors name that.
            deadline: of the wait.
            check: called again and again; what it raises ends the wait.

        Raises:
            Timeout: the rank has told nothing in time.
            InvalidArgument: there is no store.
            SegmentError: it can't be reached.
        """
        pause = _SHORTEST_PAUSE
        while True:
            try:
                thing = self.look(subject)
            except SegmentError:
                check()  # the store may have ended with a rank that has closed
                raise
            if thing is not None:
                return thing
            check()
            left = deadline.left()
            if left == 0:
                raise Timeout(
                    f"{self._label}: {action} timed out after {deadline.timeout} s: {who} has not "
                    "come to its first one yet; call it again to go on waiting"
                )
            time.sleep(pause if left is None else min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def look(self, subject: str) -> Any:
        """Return what a rank has told, or None.

        Raises:
            InvalidArgument: there is no store.
            SegmentError: it can't be reached.
        """
        store, name = self._reachable(), self._name(subject)
        try:
            if store.check([name]):
                return pickle.loads(bytes.fromhex(store.get(name).decode()))  # noqa: S301
        except RuntimeError as error:
            pass_on(error)
            raise self._failed(error) from error
        return None

    @property
    def key(self) -> str:
        """The broadcaster's: who knows it is one of its ranks."""
        return self._key

    def _name(self, subject: str) -> str:
        return f"shmcast/{self._key}/{subject}"

    def _reachable(self) -> NoticeStore:
        if self._store is None:
            raise InvalidArgument(
                f"{self._label}: gather, scatter, barrier, send and receive between ranks need the "
                "store of the process group, which a rank that has rejoined does not know, nor one "
                "of a group that was made by hand: make it by init_process_group or new_group"
            )
        return self._store

    def _failed(self, error: RuntimeError) -> SegmentError:
        return SegmentError(
            f"{self._label}: the store can't be reached by which the ranks' first gather, barrier "
            f"or send finds the others; has its rank ended? {error}"
        )

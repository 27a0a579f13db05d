"""What the members of a hub have replied, by member: what its end receives."""

from __future__ import annotations

from types import EllipsisType
from typing import Any, Protocol, overload

from shmcast._codecs.base import Received
from shmcast._endpoints.copying import Copy

Whom = int | EllipsisType | None
"""Whose reply is to be received: a member's; None: any; ...: one of each."""

Reply = list[Received] | None
"""The frames of a reply; None: the member has died, is dropped, and all of its were received."""


class Answers(Protocol):
    """The replies of members, each to be had once.

    With a time-out, `copy` and whom in brackets; without the time-out it is a look, which may
    return Ellipsis. What it returns and raises is what `_core.Hub` does; a TypeError, if `copy` is
    no bool.
    """

    @overload
    def __getitem__(self, call: tuple[float | None, Copy, int], /) -> Reply: ...
    @overload
    def __getitem__(self, call: tuple[float | None, Copy, None], /) -> tuple[int, Reply]: ...
    @overload
    def __getitem__(self, call: tuple[bool, int], /) -> Reply | EllipsisType: ...
    @overload
    def __getitem__(self, call: tuple[bool, None], /) -> tuple[int, Reply] | EllipsisType: ...
    @overload
    def __getitem__(self, call: tuple[bool, EllipsisType], /) -> list[Reply] | EllipsisType: ...
    @overload
    def __getitem__(self, call: tuple[float | None, Copy, EllipsisType], /) -> list[Reply]: ...

    def keep(self, whom: Whom, received: Any, /) -> None:
        """Take back what was received of `whom`; the next call of these members has it again.

        In place of a reply's frames it may be `Decoded`, so that a call may find that, too.
        """

    def discard(self, member: int, /) -> Reply:
        """Forget the reply of a member that was taken back last, and return it."""

    def awaited(self) -> list[int]:
        """Return whose replies the last call has waited for, by index."""

    def asked(self) -> Whom:
        """Return whose reply that call was to return."""

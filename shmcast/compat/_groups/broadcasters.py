"""A `ShmBroadcaster` for each process group of an engine's, made when it is first needed."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING

from shmcast._group.broadcaster import ShmBroadcaster
from shmcast.errors import ShmcastError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_log = logging.getLogger("sglang.shmcast")
_LOSES_RANKS = "mooncake"
"""A backend whose groups go on without ranks, and take new ones: no broadcaster can follow."""


class Broadcasters:
    """Those of the groups that this process is in."""

    def __init__(self) -> None:
        self._made: weakref.WeakKeyDictionary[ProcessGroup, dict[int, ShmBroadcaster | None]] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, group: ProcessGroup | None, src: int) -> ShmBroadcaster | None:
        """Return a group's broadcaster; when it is first asked for, that is a collective.

        Args:
            group: the group; None: the default one.
            src: the source's global rank.

        Returns:
            It; None, on every rank, where there can't be one: the log says why. None also on a rank
            that is not in the group.
        """
        if group is None:
            group = default_group()
        if isinstance(group, int):  # torch's NON_GROUP_MEMBER
            return None
        by_source = self._made.setdefault(group, {})
        if src not in by_source:
            by_source[src] = _broadcaster(group, src)
        return by_source[src]


def default_group() -> ProcessGroup:
    """Return torch's default group."""
    from torch.distributed import GroupMember

    group = GroupMember.WORLD
    assert group is not None  # noqa: S101 (who is in no group has no rank, either)
    return group


def _broadcaster(group: ProcessGroup, src: int) -> ShmBroadcaster | None:
    backend = _backend(group)
    if backend.startswith(_LOSES_RANKS):
        why = f"{backend} goes on without ranks that are lost"
    else:
        try:
            return ShmBroadcaster(group, src)
        except ShmcastError as error:  # on every rank, or it would wait for the others
            why = str(error)
    _log.warning("SGLang's own collectives of objects are used, not shmcast's: %s", why)
    return None


def _backend(group: ProcessGroup) -> str:
    from torch.distributed import get_backend

    try:
        return get_backend(group)
    except ValueError:  # torch does not know of it: it was made by hand
        return ""

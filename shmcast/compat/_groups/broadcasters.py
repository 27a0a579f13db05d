"""A `ShmBroadcaster` for each process group of an engine's, made when it is first needed."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple

from shmcast._endpoints import settings
from shmcast._group.broadcaster import ShmBroadcaster
from shmcast.errors import ShmcastError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_log = logging.getLogger("sglang.shmcast")
_LOSES_RANKS = "mooncake"
"""A backend whose groups go on without ranks, and take new ones: no broadcaster can follow."""


class Timed(NamedTuple):
    """A broadcaster, and how long its calls wait."""

    broadcaster: ShmBroadcaster
    timeout: float | None
    """The group's, in seconds."""


class Broadcasters:
    """Those of the groups that this process is in.

    A broadcaster needs its group, and so both are kept. When another group's first one is made,
    those are closed whose groups torch has destroyed. (Those of groups that were made by hand, of
    which torch does not know, stay.)
    """

    def __init__(self) -> None:
        self._made: dict[ProcessGroup, dict[int, Timed | None]] = {}
        self._known: set[ProcessGroup] = set()  # to torch, when they came

    def of(self, group: ProcessGroup | None, src: int) -> Timed | None:
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
        by_source = self._made.get(group)
        if by_source is None:
            self._close_destroyed()
            by_source = self._made[group] = {}
            if _backend(group):
                self._known.add(group)
        if src not in by_source:
            by_source[src] = _broadcaster(group, src)
        return by_source[src]

    def _close_destroyed(self) -> None:
        for group in [*self._known]:
            if not _backend(group):
                self._known.remove(group)
                for made in self._made.pop(group).values():
                    if made is not None:
                        with contextlib.suppress(ShmcastError):
                            made.broadcaster.close()


def default_group() -> ProcessGroup:
    """Return torch's default group."""
    from torch.distributed import GroupMember

    group = GroupMember.WORLD
    assert group is not None  # noqa: S101 (who is in no group has no rank, either)
    return group


def timeout_of(group: ProcessGroup) -> float | None:
    """Return how long a group's calls wait, in seconds; None: for ever.

    As the environment says; else as the group's own do, if that is known.

    Raises:
        InvalidArgument: the environment says something else.
    """
    import torch

    try:
        timeout = group._get_backend(torch.device("cpu")).options._timeout  # noqa: SLF001
        own: float | None = timeout.total_seconds()
    except (AttributeError, RuntimeError):  # a backend without, or none for the CPU
        own = None
    return settings.seconds(settings.TIMEOUT, own)


def _broadcaster(group: ProcessGroup, src: int) -> Timed | None:
    backend = _backend(group)
    if backend.startswith(_LOSES_RANKS):
        why = f"{backend} goes on without ranks that are lost"
    else:
        try:
            return Timed(ShmBroadcaster(group, src), timeout_of(group))
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

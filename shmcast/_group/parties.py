"""Who meets to set up a broadcaster, and by what: all that a `Rendezvous` knows of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from shmcast._endpoints.arguments import integer
from shmcast._nodes.exchange import AllGather, Exchange, check_exchange
from shmcast.errors import InvalidArgument

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from shmcast._group.notices import NoticeStore


class Gatherer(Protocol):
    """Gathers objects from all ranks, step by step."""

    def gather(self, mine: Any, meanwhile: Callable[[], object]) -> list[Any]:
        """Return every rank's object, by rank.

        Args:
            mine: this rank's.
            meanwhile: called while this waits for the others; must not fail.

        Raises:
            ShmcastError: they could not be gathered.
        """

    def conclude(self) -> None:
        """Tell the others that this rank has come through all steps, and hear it of them.

        Raises:
            ShmcastError: one has not.
        """


@dataclass(frozen=True)
class Parties:
    """The ranks, as one of them sees them."""

    ranks: list[int]
    """The global ranks, in the order of the group."""
    rank: int
    """This process's rank in the group."""
    gatherer: Callable[[str, list[str], float | None], Gatherer] | None
    """Is given how errors name this rank and each of them, and the seconds that the whole set-up
    may take, None for what is the gatherer's own. None: there is one rank."""
    group: ProcessGroup | None = None
    """None: they are in no process group."""
    name: str = ""
    """What somebody has called the group; "" for nothing."""
    store: NoticeStore | None = None
    """By which the group's members found one another; None: it is not known."""


def parties_by(exchange: AllGather, rank: int, size: int) -> Parties:
    """Return the ranks that a function of the caller's connects.

    Raises:
        InvalidArgument: there is no such rank; the others have been told.
    """
    rank, size = check_exchange(exchange, rank, size)
    return Parties(
        [*range(size)], rank, lambda label, _names, _timeout: Exchange(exchange, rank, size, label)
    )


def source_rank(ranks: list[int], src: int | None, group_src: int) -> int:
    """Return the source as a rank in the group.

    Args:
        ranks: the group's global ranks.
        src: the source as a global rank; None: `group_src` says it.
        group_src: the source as a rank in the group.

    Raises:
        InvalidArgument: there is no such rank, or the two name different ones.
    """
    if src is not None:
        if integer(src) not in ranks:
            raise InvalidArgument(f"src={src!r} is not one of the group's global ranks {ranks}")
        if group_src not in (0, ranks.index(src)):
            raise InvalidArgument(
                f"src={src} is rank {ranks.index(src)} of the group but group_src={group_src}; "
                "give one of them"
            )
        return ranks.index(src)
    place = integer(group_src)
    if place is None or not 0 <= place < len(ranks):
        raise InvalidArgument(
            f"group_src={group_src!r} is not a rank of the group: it has ranks 0 to "
            f"{len(ranks) - 1} (global ranks {ranks}); a global rank is given as src"
        )
    return place

"""What the ranks of a broadcaster bring to its set-up, and whether it fits together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shmcast._endpoints.handle import Handle
from shmcast._group.codec_kind import CodecKind
from shmcast._nodes.addresses import Address
from shmcast.errors import InvalidArgument

if TYPE_CHECKING:
    from shmcast._devices.lane import Terms


@dataclass(frozen=True)
class Offer:
    """What each rank brings to the set-up."""

    rank: int
    """In the group, as the rank itself knows it."""
    ranks: tuple[int, ...]
    """The group's global ranks, as the rank knows them."""
    group_src: int | None
    """None: what it was given names no rank."""
    error: str
    terms: Terms | None
    codec: CodecKind | None
    host: str
    machine: str
    """See `Card`."""
    handle: Handle | None
    """Of a ring for all ranks, from the source; None: it could not make one."""
    ring_error: str
    """Why not."""
    key: str
    """What is to be the broadcaster's key, if this is the source."""
    board: tuple[Address, ...]
    """Where the source's `NoticeBoard` is; (): it has none."""


@dataclass(frozen=True)
class NodesOffer:
    """What others need to know of a rank if there are several nodes; of most, the process only.

    (Not beside what makes it, which needs torch: a rank without any must be able to read it.)
    """

    pid: int
    handle: Handle | None = None
    """Of its node's ring, from the leader."""
    failure_page: str = ""
    """The name of its node's page, from the leader."""
    key: str = ""
    """Of the relay's groups, from the source."""
    addresses: tuple[Address, ...] = ()
    """Where the leaders find the source, from the source."""
    store_port: int = 0
    """Where they find its store, from the source."""


def check(offers: list[Offer], ranks: list[int], label: str, error: Exception | None) -> None:
    """Find out whether the ranks fit together.

    Args:
        offers: of all ranks, in the order of the group.
        ranks: their global ranks.
        label: how errors name this rank.
        error: why this rank can't take part.

    Raises:
        InvalidArgument: they don't.
        Exception: `error`, if there is one and no disagreement explains it.
    """
    places = [offer.rank for offer in offers]
    if places != [*range(len(offers))]:
        raise InvalidArgument(
            f"{label}: the ranks' numbers in the group are not their places in its "
            f"collectives: in this order they say {places}; make the group anew, with each "
            "rank once"
        )
    if len({offer.ranks for offer in offers}) > 1:
        said = "; ".join(f"rank {offer.rank} of the group: {offer.ranks}" for offer in offers)
        raise InvalidArgument(
            f"{label}: the ranks number the group's members differently: {said}; register "
            "the group with torch.distributed alike on every rank, or on none"
        )
    by_rank = [*zip(ranks, offers, strict=True)]
    if len({offer.group_src for offer in offers} - {None}) > 1:
        said = ", ".join(f"rank {r} says {offer.group_src}" for r, offer in by_rank)
        raise InvalidArgument(
            f"{label}: the ranks name different sources by rank in the group: {said}; "
            "pass the same src or group_src on every rank"
        )
    if error is not None:
        raise error
    failed = [f"rank {r}: {offer.error}" for r, offer in by_rank if offer.error]
    if failed:
        raise InvalidArgument(f"{label}: could not set up: {'; '.join(failed)}")
    _check_codecs([(r, offer.codec) for r, offer in by_rank], label)
    # (In a process group, a codec that extends ours and knows no device tensors fits ours.)
    no_terms = set() if any(offer.board for offer in offers) else {None}
    if len({offer.terms for offer in offers} - no_terms) > 1:
        said = "; ".join(f"rank {r}: {offer.terms}" for r, offer in by_rank)
        raise InvalidArgument(
            f"{label}: the ranks differ in what carries device tensors: {said}; pass "
            "device_group and device_types alike on every rank"
        )


def _check_codecs(by_rank: Sequence[tuple[int, CodecKind | None]], label: str) -> None:
    kinds = [kind for _, kind in by_rank if kind is not None]
    if kinds and not all(kind.fits(kinds[0]) for kind in kinds):
        said = ", ".join(f"rank {r} has {kind or 'none'}" for r, kind in by_rank)
        raise InvalidArgument(
            f"{label}: the ranks have different codecs: {said}; pass the same kind of "
            "codec on every rank"
        )

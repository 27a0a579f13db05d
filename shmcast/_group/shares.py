"""What each rank gives to a collective, as objects, as frames, and as parcels on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shmcast._codecs.base import Codec, Frame
from shmcast._endpoints import tracing
from shmcast._endpoints.objects import refused
from shmcast._group.company import Company
from shmcast._host.signals import pass_on
from shmcast._nodes.parcel import Parcel, Part
from shmcast.errors import DecodeError, InvalidArgument, PeerDied

GATHER, ALL_GATHER = "gather_object", "all_gather_object"
SCATTER, BARRIER = "scatter_object", "barrier"
_PURPOSES = (GATHER, ALL_GATHER, SCATTER, BARRIER)


class Shares:
    """The shares of the collective under way, as far as this rank has them.

    Args:
        company: the group's.
        codec: makes frames of objects, and objects of frames.
    """

    def __init__(self, company: Company, codec: Codec) -> None:
        self._company = company
        self._codec = codec
        tracer = tracing.chosen()
        self._to_frames = tracing.call(tracer, tracing.ENCODE, codec.encode)
        self._to_object = tracing.call(tracer, tracing.DECODE, codec.decode)
        self.parts: dict[int, Part] = {}
        """By rank: frames, or how it has died."""

    def packed(self, name: str, parts: dict[int, Part]) -> list[Frame]:
        """Return parts of a collective as the frames of one message."""
        return Parcel(_PURPOSES.index(name), parts).frames()

    def take_in(self, frames: Sequence[Frame], name: str, rank: int) -> None:
        """Take in what a rank has sent."""
        parcel = Parcel.of(frames)
        theirs = _PURPOSES[parcel.purpose]
        if theirs != name:
            raise InvalidArgument(
                f"{self._company.label}: {name} while {self._company.name(rank)} calls {theirs}: "
                "all ranks must call the same collectives in the same order"
            )
        self.parts.update(parcel.parts)
        for one, part in parcel.parts.items():
            if isinstance(part, PeerDied):
                self._company.deaths[one] = part

    def encode(self, obj: Any) -> Sequence[Frame]:
        """Make frames of an object; EncodeError says why not."""
        try:
            return self._to_frames(obj)
        except Exception as error:
            pass_on(error)
            raise refused(obj, error, self._codec, self._company.label) from error

    def objects(self, mine: Any) -> list[Any]:
        """Make the objects of all ranks, in the order of the group."""
        ranks = self._company.ranks
        return [mine if r == self._company.me else self.object(r, r) for r in ranks]

    def object(self, rank: int, sender: int) -> Any:
        """Make the object of a rank, or for it."""
        part = self.parts.get(rank)
        if part is None:
            return self._company.dropped(rank)
        if isinstance(part, PeerDied):
            return part
        try:
            return self._to_object([*part])  # type: ignore[list-item]
        except Exception as error:
            pass_on(error)
            raise DecodeError(
                f"{self._company.label}: can't decode the object of {self._company.name(sender)}: "
                f"{type(error).__name__}: {error}; this collective is over, all have sent"
            ) from error

    def checked(self, objs: Sequence[Any] | None) -> Sequence[Any]:
        """Return what the source gives to a scatter; InvalidArgument: it is not one for each."""
        size = len(self._company.ranks)
        if not isinstance(objs, Sequence) or isinstance(objs, str | bytes) or len(objs) != size:
            what = f"{len(objs)} objects" if isinstance(objs, Sequence) else repr(objs)
            raise InvalidArgument(
                f"{self._company.label}: scatter_object({what}): the source gives a list of {size} "
                "objects, one for each rank of the group"
            )
        return objs

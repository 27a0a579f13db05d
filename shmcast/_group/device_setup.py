"""Choose what carries a broadcaster's device tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from shmcast._codecs.base import Codec
from shmcast._codecs.object_codec import ObjectCodec
from shmcast._codecs.pickle_codec import PickleCodec
from shmcast.errors import InvalidArgument

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from shmcast._devices.lane import DeviceLane
    from shmcast._group.rendezvous import Rendezvous


def choose_lane(
    device_group: ProcessGroup | None,
    device_types: Collection[str] | None,
    meeting: Rendezvous,
    codec: Codec | None,
) -> DeviceLane | None:
    """Return what carries device tensors; None: nothing.

    So it is if the codec is the user's own, or there is no process group.

    Args:
        device_group: see `ShmBroadcaster`; may be None, so for the next one.
        device_types: may be None.
        meeting: of the group.
        codec: the user's; None: `ObjectCodec`.

    Raises:
        InvalidArgument: see `ShmBroadcaster`.
    """
    label = meeting.label
    known: ObjectCodec | PickleCodec | None = None
    if isinstance(codec, ObjectCodec | PickleCodec) and type(codec) in (ObjectCodec, PickleCodec):
        known = codec
    if codec is not None and known is None:
        if device_group is not None or device_types is not None:
            raise InvalidArgument(
                f"{label}: codec={codec!r} does not know device tensors, so device_group and "
                "device_types can't be given; only ObjectCodec and PickleCodec do"
            )
        return None
    if isinstance(device_types, str) or not all(isinstance(t, str) for t in device_types or ()):
        raise InvalidArgument(
            f"{label}: device_types={device_types!r} is no set of names such as {{'cuda'}}"
        )
    carrier = meeting.group if device_group is None else device_group
    if carrier is None:
        if device_types is not None:
            raise InvalidArgument(
                f"{label}: device_types={device_types!r} needs a device_group to carry their "
                "tensors: without a process group, they travel by host memory"
            )
        return None
    from shmcast._devices.lane import DeviceLane
    from shmcast._group.process_group import members

    if device_group is not None:
        device_ranks, rank = members(device_group, "device_group")
        if rank != meeting.rank or len(device_ranks) != len(meeting.ranks):
            raise InvalidArgument(
                f"{label}: this process is rank {rank} of {len(device_ranks)} in device_group "
                f"(ranks {device_ranks}) and rank {meeting.rank} of {len(meeting.ranks)} in group "
                f"(ranks {meeting.ranks}); they must have the same ranks in the same order"
            )
    return DeviceLane(carrier, device_group is not None, device_types, label, known)

"""Choose what carries a broadcaster's device tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from shmcast._codecs.base import Codec
from shmcast._codecs.pickle_codec import PickleCodec
from shmcast.errors import InvalidArgument

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from shmcast._devices.lane import DeviceLane
    from shmcast._group.rendezvous import Rendezvous


def choose_lane(
    group: ProcessGroup | None,
    device_group: ProcessGroup | None,
    device_types: Collection[str] | None,
    meeting: Rendezvous,
    codec: Codec | None,
) -> DeviceLane | None:
    """What brings device tensors over; None: nothing, because the codec is the user's own."""
    label = meeting.label
    if codec is not None and type(codec) is not PickleCodec:
        if device_group is not None or device_types is not None:
            raise InvalidArgument(
                f"{label}: codec={codec!r} does not know device tensors, so device_group and "
                "device_types can't be given; only PickleCodec does"
            )
        return None
    if isinstance(device_types, str) or not all(isinstance(t, str) for t in device_types or ()):
        raise InvalidArgument(
            f"{label}: device_types={device_types!r} is no set of names such as {{'cuda'}}"
        )
    import torch.distributed as dist

    from shmcast._devices.lane import DeviceLane
    from shmcast._group.process_group import members

    if device_group is not None:
        device_ranks, _ = members(device_group, "device_group")
        if device_ranks != meeting.ranks:
            raise InvalidArgument(
                f"{label}: device_group has ranks {device_ranks} and group has {meeting.ranks}; "
                "they must be the same, in the same order"
            )
    carrier = group if device_group is None else device_group
    if carrier is None:
        carrier = dist.group.WORLD
    allow = None if codec is None else codec.allow
    return DeviceLane(carrier, device_group is not None, device_types, label, allow)  # type: ignore[arg-type]

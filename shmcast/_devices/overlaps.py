"""Find tensors of `out` that share memory: what arrives for one would overwrite the other.

Imported once torch is in use.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from shmcast._codecs.tensors import span_of
from shmcast.errors import InvalidArgument

_MOST_WORK = 100_000  # candidate solutions to look at: some layouts are hard to compare


class Place(NamedTuple):
    """A tensor of `out`, and the one that arrives for it."""

    out: torch.Tensor
    got: torch.Tensor
    path: str


def check_overlaps(places: list[Place]) -> None:
    """Look whether two tensors of `out`, for which different tensors arrive, share memory.

    Raises:
        InvalidArgument: they do; the error names both.
    """
    begun: list[tuple[int, int, Place]] = []  # the end of each, and itself
    in_order = sorted((place.out.data_ptr(), i) for i, place in enumerate(places))
    for begin, i in in_order:
        place = places[i]
        end = begin + span_of(place.out) * place.out.element_size()
        begun = [other for other in begun if other[0] > begin]
        for _, j, other in begun:
            if other.got is not place.got and _share_memory(other.out, place.out):
                first, second = (places[k].path for k in sorted((i, j)))
                raise InvalidArgument(
                    f"{first} and {second} share memory in out, and are two tensors in the "
                    "message: one would overwrite the other"
                )
        if end > begin:
            begun.append((end, i, place))


def _share_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one is other:
        return True
    if one.device != other.device:
        return False
    try:
        return np.shares_memory(_addresses(one), _addresses(other), max_work=_MOST_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return False


class _Addresses:
    """What numpy must know of a tensor to compare addresses; it reads no elements."""

    def __init__(self, tensor: torch.Tensor) -> None:
        size = tensor.element_size()
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": f"|V{size}",
            "strides": tuple(step * size for step in tensor.stride()),
            "data": (tensor.data_ptr(), True),
        }


def _addresses(tensor: torch.Tensor) -> Any:
    return np.asarray(_Addresses(tensor))

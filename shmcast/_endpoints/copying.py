"""What `copy` of a call says: which parts of a message are copies, and which views of the arena."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast

from shmcast._codecs.base import Received
from shmcast._core import Lease, PartialLease
from shmcast.errors import InvalidArgument

Kind: TypeAlias = Literal["arrays", "tensors"]
"""What is copied where the rest is not."""

Copy: TypeAlias = bool | Kind
"""True: all is copied; False: nothing that can be a view is; a kind: only that is."""


def copied_kind(copy: object, label: str) -> Kind:
    """Return which kind is to be copied, where `copy` is neither True nor False.

    Raises:
        InvalidArgument: there is no such kind.
    """
    if not (isinstance(copy, str) and copy in ("arrays", "tensors")):
        raise InvalidArgument(
            f'{label}: copy={copy!r} is none of True, False, "arrays" (copy these, not tensors) '
            'and "tensors" (copy these, not arrays)'
        ) from None
    return cast("Kind", copy)


def copy_of(kind: Kind, frames: list[Received]) -> None:
    """Let who decodes these frames copy what it makes of one kind."""
    for i, frame in enumerate(frames):
        if isinstance(frame, memoryview) and type(frame.obj) is Lease:
            frames[i] = memoryview(PartialLease(frame.obj, kind))

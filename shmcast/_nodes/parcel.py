"""What several ranks have said, as the frames of one message."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shmcast._codecs.base import Frame
from shmcast.errors import PeerDied

Part = Sequence[Frame] | PeerDied
"""The frames of a rank's object; or how it has died."""

_HEADER = struct.Struct("<BI")  # what it is for, and how many parts there are
_ENTRY = struct.Struct("<II")  # a rank, and how many frames it has
_DIED = 2**32 - 1  # in place of that number: one frame that says how


class Parcel(NamedTuple):
    """Parts of one collective."""

    purpose: int
    """Tells collectives apart; below 256."""
    parts: Mapping[int, Part]
    """By rank in the group."""

    def frames(self) -> list[Frame]:
        """Return it as frames; `of` is the way back."""
        entries: list[bytes] = []
        frames: list[Frame] = []
        for rank, part in self.parts.items():
            if isinstance(part, PeerDied):
                entries.append(_ENTRY.pack(rank, _DIED))
                frames.append(pickle.dumps(part))
            else:
                entries.append(_ENTRY.pack(rank, len(part)))
                frames += part
        return [_HEADER.pack(self.purpose, len(entries)) + b"".join(entries), *frames]

    @classmethod
    def of(cls, frames: Sequence[Frame]) -> Parcel:
        """Return what `frames` has packed."""
        purpose, count = _HEADER.unpack_from(frames[0])
        parts: dict[int, Part] = {}
        at = 1
        for entry in range(count):
            rank, length = _ENTRY.unpack_from(frames[0], _HEADER.size + entry * _ENTRY.size)
            if length == _DIED:
                parts[rank] = pickle.loads(frames[at])  # noqa: S301 (a leader's own, see above)
                at += 1
            else:
                parts[rank] = frames[at : at + length]
                at += length
        return cls(purpose, parts)

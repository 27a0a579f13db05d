"""Keeps the code and data that a message touches warm: the same calls, on a private ring.

At a decode loop's cadence most of a message's latency is cache misses in code: a shared core
forgets within milliseconds. So whoever has time, a spinning reader or a driver that waits for its
GPU, sends itself a sample now and then.
"""

from __future__ import annotations

import contextlib
import mmap

from shmcast import _core
from shmcast._codecs.base import Codec
from shmcast.errors import InvalidArgument

_SLOT_BYTES = 8192
_ROUNDS_PER_SAMPLE = 16
_ENTRY_BYTES = 8  # of the frame table


class Warmup:
    """A codec's sample and a ring in this process's own memory to send it through."""

    def __init__(self, codec: Codec, sample: object) -> None:
        self._codec = codec
        self._encode = codec.encode
        self._decode = codec.decode
        self._take(sample)
        self._rounds_left = _ROUNDS_PER_SAMPLE
        geometry = _core.Geometry(1, 2, _SLOT_BYTES, 0)
        memory = mmap.mmap(-1, geometry.segment_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        nonce = bytes(16)
        ring = (memory, geometry, nonce)
        park, who = _core.WaitPolicy.park(), _core.Identity(0, 0)
        self._writer = _core.RingWriter(*ring, park, _never, None, who, None)
        self._reader = _core.RingReader(*ring, 0, park, _never, None, None, who, _core.VACANT, None)

    def _take(self, sample: object) -> None:
        frames = [bytes(frame) for frame in self._encode(sample)]
        if sum(len(frame) + _ENTRY_BYTES for frame in frames) > _SLOT_BYTES:
            raise ValueError("it is too large")
        self._sample = sample
        self._frames = frames

    def _count_round(self) -> None:
        self._rounds_left -= 1
        if not self._rounds_left:
            self._rounds_left = _ROUNDS_PER_SAMPLE
            with contextlib.suppress(Exception):  # the old one will do
                self._take(self._codec.sample())  # type: ignore[attr-defined]

    @classmethod
    def with_sample_of(cls, codec: Codec, label: str) -> Warmup | None:
        """Make one for a codec; None: the codec has no `sample()`.

        Raises:
            InvalidArgument: the codec can't encode its own sample into one small message.
        """
        make = getattr(codec, "sample", None)
        if make is None:
            return None
        try:
            warmup = cls(codec, make())
            warmup.send()
        except Exception as error:
            raise InvalidArgument(
                f"{label}: codec={codec!r} can't practise on its sample(): {type(error).__name__}: "
                f"{error}; return an object that takes at most {_SLOT_BYTES} bytes, or have no "
                "method sample()"
            ) from error
        return warmup

    def send(self) -> None:
        """Do what `Writer.send` does."""
        self._writer.publish(self._encode(self._sample), 0)
        self._reader.consume(0)
        self._count_round()

    def receive(self) -> None:
        """Do what `Reader.recv` does once a message is there."""
        self._writer.publish(self._frames, 0)
        self._decode(self._reader.consume(0))
        self._count_round()


def _never(_attached: int) -> bool:
    return False

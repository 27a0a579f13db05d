"""Keeps the code and data that a message touches warm: the same calls, on a private ring.

At a decode loop's cadence most of a message's latency is cache misses: a shared core forgets within
milliseconds. So whoever has time, a spinning reader or a driver that waits for its GPU, sends
itself the last message once more, now and then; or a codec's sample, if code of others would run.
"""

from __future__ import annotations

import math
import mmap

from shmcast import _core
from shmcast._codecs.base import Codec
from shmcast._core import ObjectCoder
from shmcast.errors import InvalidArgument

_SLOT_BYTES = 64 * 1024
_SAMPLE_BYTES = 8192
_ROUNDS_PER_SAMPLE = 16
_ENTRY_BYTES = 8  # of the frame table


class Warmup:
    """A codec's sample and a ring in this process's own memory to send it through."""

    def __init__(self, codec: Codec, sample: object) -> None:
        self._codec = codec
        self._encode = codec.encode
        self._decode = codec.decode
        self._coder: ObjectCoder | None = None  # which encodes and decodes what was sent last
        if isinstance(codec, ObjectCoder):
            own = type(codec)
            if (own.encode, own.decode) == (ObjectCoder.encode, ObjectCoder.decode):
                self._coder = codec
        if not self._take(sample):
            raise ValueError("it is too large")
        self._rounds_left = _ROUNDS_PER_SAMPLE
        self._is_empty = False  # the ring; there is none yet

    def _take(self, sample: object) -> bool:
        """Warm up on this sample from now on. Return False if it is too large."""
        frames = [bytes(frame) for frame in self._encode(sample)]
        if sum(len(frame) + _ENTRY_BYTES for frame in frames) > _SAMPLE_BYTES:
            return False
        self._sample = sample
        self._frames = frames
        return True

    def _begin_round(self) -> None:
        # A signal handler may raise anywhere. A round that did not come to its end, whatever it
        # has left in the ring, costs that ring, and no later round.
        if not self._is_empty:
            self._make_ring()
        self._is_empty = False

    def _end_round(self) -> None:
        self._is_empty = True
        self._rounds_left -= 1
        if self._rounds_left <= 0 and self._coder is None:
            self._rounds_left = _ROUNDS_PER_SAMPLE
            # Errors pass: one of the codec can't be told from one of a signal handler.
            self._take(self._codec.sample())  # type: ignore[attr-defined]

    def _make_ring(self) -> None:
        geometry = _core.Geometry(1, 2, _SLOT_BYTES, 0)
        memory = mmap.mmap(-1, geometry.segment_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        nonce = bytes(16)
        ring = (memory, geometry, nonce)
        park, who = _core.WaitPolicy.park(), _core.Identity(0, 0)
        self._writer = _core.RingWriter(*ring, park, _no_quota, None, who, None)
        self._reader = _core.RingReader(
            *ring, 0, park, _no_quota, None, None, who, _core.VACANT, None
        )

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
            warmup._send(None)  # (a codec that practises would begin to keep what is sent)
        except Exception as error:
            raise InvalidArgument(
                f"{label}: codec={codec!r} can't warm up on its sample(): {type(error).__name__}: "
                f"{error}; return an object that takes at most {_SAMPLE_BYTES} bytes, or have no "
                "method sample()"
            ) from error
        return warmup

    def send(self) -> None:
        """Do what `Writer.send` does. Only for the thread whose turn it is with the endpoint."""
        self._send(self._coder)

    def _send(self, coder: ObjectCoder | None) -> None:
        self._begin_round()
        frames = None if coder is None else coder.practise_encode()
        if frames is None or sum(len(frame) + _ENTRY_BYTES for frame in frames) > _SLOT_BYTES:
            self._writer.publish(self._encode(self._sample), 0)
        else:
            self._writer.publish(frames, 0)
        self._reader.consume(0)
        self._end_round()

    def receive(self) -> None:
        """Do what `Reader.recv` does once a message is there. Only for the thread as above."""
        self._begin_round()
        frames = None if self._coder is None else self._coder.practice_frames()
        if self._coder is None or frames is None:
            self._writer.publish(self._frames, 0)
            self._decode(self._reader.consume(0))
        else:
            self._writer.publish(frames, 0)
            self._coder.practise_decode(self._reader.consume(0))
        self._end_round()


def _no_quota() -> float:
    return math.inf

"""What a codec is: how an endpoint turns an object into frames and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Frame = bytes | bytearray | memoryview
"""One contiguous piece of a message, as it is sent."""

Received = bytearray | memoryview
"""A frame as it arrives: memory of its own, or a read-only view of the writer's arena."""

OUT_OF_BAND_BYTES = 4096
"""A buffer of at least this many bytes is a frame of its own: one copy in, one copy out."""


class Codec(Protocol):
    """How an endpoint turns objects into frames; give your own to `Writer` and `Reader`.

    One codec serves one endpoint. One thread at a time calls it, unless several threads call the
    same endpoint, which is an error that is found after `encode`.

    A codec may also have a method `sample()`, which returns a small object like those that will
    travel. It is encoded and decoded again and again, to keep the code for it in the core's caches:
    about every 100 µs by a reader that spins, and by `Writer.warm`. That must have no side effects.
    Now and then `sample()` is called again, because the codec may have learned what travels. What
    these calls raise comes out of the `recv` or `warm` that made them; one larger than 8 KiB is not
    taken.
    """

    def encode(self, obj: Any, /) -> Sequence[Frame]:
        """Return the frames of `obj`, any number. Their memory is read before `send` returns."""

    def decode(self, frames: list[Received], /) -> Any:
        """Return the object of these frames, which it may keep, view and write to.

        If a signal's handler raises meanwhile, the next `recv` calls this again with the same
        frames: what is written to them before the object is made is there then.

        With `recv(copy=False)` some frames may be read-only memoryviews, to keep and view only.
        Their memory in the arena is used again when nothing refers to them any more.
        """

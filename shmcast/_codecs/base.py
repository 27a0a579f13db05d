"""What a codec is: frames, and how an endpoint asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

Frame = bytes | bytearray | memoryview
"""One contiguous piece of a message."""


Received = bytearray | memoryview
"""The same where it arrives: memory of its own, or a read-only view of the writer's arena."""


OUT_OF_BAND_BYTES = 4096
"""Buffers of at least this size are frames of their own: one copy in, one copy out."""


class Codec(Protocol):
    """How an endpoint turns an object into frames; give your own to `Writer` and `Reader`.

    One codec serves one endpoint and is called by one thread at a time, unless several threads
    call the same endpoint (which is an error, found after `encode`).

    A codec may also have a method `sample()` that returns an object like those that will travel.
    It is then encoded and decoded over and over, to keep the code for it in the core's caches: by a
    reader about every 100 µs while it spins, and by `Writer.warm`. That must have no side effects.
    It is asked again now and then, as it may have learned what travels.
    """

    def encode(self, obj: Any, /) -> Sequence[Frame]:
        """The frames of `obj`, any number. Their memory is read before `send` returns."""

    def decode(self, frames: list[Received], /) -> Any:
        """The object. The frames belong to it: they may be kept, viewed and written to.

        With `recv(copy=False)` some may be memoryviews instead, to be kept and viewed only. Their
        memory in the arena is used again when nothing refers to them any more.
        """

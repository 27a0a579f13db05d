"""The ends of one node's ring in a group of several nodes.

What they add to `Writer` and `Reader`: a node's ring may end because of another node, and then its
readers say why; and the process that writes to it is told at once when a reader has died.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from shmcast._codecs.base import Codec, Frame
from shmcast._codecs.pickle_codec import PickleCodec
from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.loans import OrdinaryMemory
from shmcast._endpoints.reader import Reader
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.writer import Writer
from shmcast._nodes.failure import LastWords
from shmcast.errors import DeviceError, EncodeError, Forked, ShmcastError


class NodeWriter(Writer):
    """A writer that tells of deaths when they happen, and publishes what others have encoded."""

    on_death: Callable[[], None] | None = None
    """Called in another thread when a reader's process has ended."""

    def republish(self, frames: Sequence[Frame]) -> None:
        """Publishes frames as they are; waits for room. Raises what `send` raises."""
        try:
            self._publish(frames, None)
        except Exception as error:
            self._raise(error, "relay", None)

    def all_have_left(self) -> bool:
        """Whether every reader has closed."""
        return all(peer.state in ("left", "dropped") for peer in self._ring.peers()[:-1])

    def still_there(self) -> list[int]:
        """The readers that have not closed."""
        return [p.index for p in self._ring.peers()[:-1] if p.state not in ("left", "dropped")]

    def _alarm(self) -> Callable[[], None]:
        alarm_ring = super()._alarm()
        me = weakref.ref(self)

        def alarm() -> None:
            alarm_ring()
            writer = me()
            on_death = None if writer is None else writer.on_death
            if on_death is not None:
                on_death()

        return alarm


class NodeReader(Reader):
    """A reader that knows what lies behind its ring's writer.

    Args:
        handle: see `Reader`; so for what is not named here.
        index: see `Reader`.
        words: why the ring is closed, if it is.
        waits_for: on whom `recv` waits, for its time-out's message.
    """

    def __init__(
        self, handle: Handle, index: int, words: LastWords, waits_for: str, **options: Any
    ) -> None:
        super().__init__(handle, index, **options)
        self._words = words
        self._waits_for = waits_for

    def _ended(self, what: str) -> ShmcastError:
        verdict = self._words.read()
        return verdict.error(what) if verdict is not None else super()._ended(what)

    def _suspects(self) -> str:
        return f": nothing came from {self._waits_for}"

    def _look_for_deaths(self) -> None:
        super()._look_for_deaths()
        verdict = self._words.read()
        if verdict is not None:
            raise verdict.error(self._label)


class Lonely(OrdinaryMemory):
    """In place of the writer of a source that is alone on its node: it only encodes."""

    handle = None

    def __init__(self, codec: Codec | None, label: str) -> None:
        self._codec: Codec = PickleCodec() if codec is None else codec
        self._label = label
        self._pid = os.getpid()
        self._messages = 0
        self._bytes = 0

    def _send(self, obj: Any, timeout: float | None) -> Sequence[Frame]:
        check_timeout(timeout, self._label)
        if os.getpid() != self._pid:
            raise Forked(
                f"{self._label}: send in a process forked from the one that made this endpoint; "
                "start processes with spawn"
            )
        try:
            frames = self._codec.encode(obj)
            size = sum(memoryview(frame).nbytes for frame in frames)
        except DeviceError:
            raise
        except Exception as error:
            raise EncodeError.of(obj, error, self._label) from error
        self._messages += 1
        self._bytes += size
        return frames

    def warm(self) -> None:
        pass

    def statistics(self) -> Statistics:
        return Statistics(messages=self._messages, payload_bytes=self._bytes)

    def close(self) -> None:
        pass

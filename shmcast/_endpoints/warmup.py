"""Keeps the code and data that a message touches warm: the same calls, on a private ring.

At a decode loop's cadence most of a message's latency is cache misses: a shared core forgets within
milliseconds. So whoever has time, a spinning reader or a driver that waits for its GPU, sends
itself the last message once more, now and then; or a codec's sample, if code of others would run.
"""

from __future__ import annotations

import functools
import math
import mmap
import operator
import weakref
from collections.abc import Callable
from types import MethodType
from typing import Any, NoReturn, TypeVar

from shmcast import _core
from shmcast._codecs.base import Codec
from shmcast._codecs.object_codec import core_coder
from shmcast.errors import InvalidArgument

SLOTS, SLOT_BYTES = 2, 64 * 1024  # of a private ring
NONCE = bytes(16)  # and what its two ends know it by
_SAMPLE_BYTES = 8192
_ROUNDS_PER_SAMPLE = 16
_ENTRY_BYTES = 8  # of the frame table

_Self = TypeVar("_Self", bound="Warmup")
_Writer = TypeVar("_Writer", bound=_core.RingWriter)


def _stand_in(real: object, **attributes: object) -> Any:
    """Return another object of the class, with these attributes alone.

    The interpreter keeps what it has learnt at each place of a method for one class only. So to
    keep that warm takes the very method, and an object of the very class.

    Returns:
        The object; None: to make one, or to drop it, would run the code of others, or nobody else
        can make one.
    """
    kind = type(real)
    if hasattr(kind, "__del__") or any(
        getattr(kind, name) is not getattr(object, name)
        for name in ("__setattr__", "__getattribute__")
    ):
        return None
    try:
        double = object.__new__(kind)
    except TypeError:  # the class is one of C's, too
        return None
    # (Who walks through all objects finds it, and that it is closed.)
    _give(double, _end=_Nowhere(), **attributes)
    return double


def _give(double: object, **attributes: object) -> None:
    for name, value in attributes.items():
        setattr(double, name, value)


class Warmup:
    """A codec's sample and a ring in this process's own memory to send it through.

    Attributes:
        sends: sends an object with a time-out, by a stand-in for the sender. None: there is none.
        receives: receives with a time-out and `copy`, by a stand-in for the receiver.
    """

    def __init__(self, codec: Codec, sample: object) -> None:
        self._codec = codec
        self._encode = codec.encode
        self._decode = codec.decode
        self._coder = core_coder(codec)  # which encodes and decodes what was sent last
        self.sends: Callable[[Any, float], object] | None = None
        self.receives: Callable[[float, bool], object] | None = None
        self._writer: _core.RingWriter
        self._sender: Any = None
        self._receiver: Any = None
        self._real: list[tuple[weakref.ref[object], Callable[[object], object]]] = []
        if not self._take(sample):
            raise ValueError("it is too large")
        self._rounds_left = _ROUNDS_PER_SAMPLE
        self._is_empty = False  # the ring; there is none yet

    def _practise(self, real: object, *names: str, **attributes: object) -> Any:
        """Return a stand-in, or None. What the names lead to is looked at in each round.

        Those attributes of the real one are what practice would leave cold.
        """
        double = _stand_in(real, **attributes)
        if double is not None:
            self._real.append((weakref.ref(real), operator.attrgetter(*names)))
        return double

    def _look_at_real_ones(self) -> None:
        for ref, look in self._real:
            real = ref()
            if real is not None:
                look(real)

    def send_as(
        self, sender: object, send: Callable[[Any, Any, Any], object], *names: str, **more: Any
    ) -> None:
        """Send by a method of a class of ours, if the codec is the core's.

        Args:
            sender: of that class or a subclass; has the attributes `_sink` and `_codec`.
            send: the class's own function, called with a stand-in, an object and a time-out.
            names: the attributes by which it encodes and sends: `_outbox`, of objects or frames,
                and with the latter `_encode`.
            more: attributes that this needs besides.
        """
        if self._coder is None:
            return
        more |= {"_codec": self._codec, "_encode": self._coder.practise_encode}
        self._sender = self._practise(sender, *names, _sink=_Nowhere(), **more)
        self._sends_objects = "_encode" not in names
        self.sends = None if self._sender is None else MethodType(send, self._sender)

    def receive_as(
        self, receiver: object, recv: Callable[[Any, Any, Any], object], *names: str
    ) -> None:
        """Receive by a method of a class of ours, if the codec is the core's.

        Args:
            receiver: of that class or a subclass; has the attributes `_source` and `_keep`.
            recv: the class's own function, called with a stand-in, a time-out and `copy`.
            names: the attributes by which it receives and decodes: `_inbox`; or `_messages` and
                `_decode`.
        """
        if self._coder is None:
            return
        decode = self._coder.practise_decode
        self._receiver = self._practise(
            receiver, *names, _source=_Nowhere(), _decode=decode, _keep=id
        )
        self.receives = None if self._receiver is None else MethodType(recv, self._receiver)

    def broadcast_as(self, broadcaster: object, broadcast: Callable[..., object]) -> None:
        """Send and receive by way of a method that calls those of a sender or receiver.

        Args:
            broadcaster: has the attribute `is_src`, and `_send` or `_recv`.
            broadcast: its class's own function, called with a stand-in, an object, a time-out and,
                where there is no object, `copy`.
        """
        if self.sends is not None:
            double = self._practise(broadcaster, "is_src", "_send", is_src=True, _send=self.sends)
            if double is not None:
                self.sends = MethodType(broadcast, double)
        if self.receives is not None:
            double = self._practise(
                broadcaster, "is_src", "_recv", is_src=False, _recv=self.receives
            )
            if double is not None:
                self.receives = functools.partial(broadcast, double, None)

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
        self._make_ends(_core.RingWriter, _core.Geometry(1, SLOTS, SLOT_BYTES, 0))
        if self._coder is None:
            return
        coder = self._coder
        if self._sender is not None:
            outbox = _core.ObjectOutbox(self._encode, self._writer, coder, is_practice=True)
            _give(self._sender, _outbox=outbox if self._sends_objects else self._writer)
        if self._receiver is not None:
            reader = self._reader
            inbox = _core.ObjectInbox(reader, reader.keep, self._decode, coder, is_practice=True)
            _give(self._receiver, _messages=reader, _inbox=inbox)

    def _make_ends(self, kind: type[_Writer], shape: _core.Geometry) -> tuple[mmap.mmap, _Writer]:
        """Make both ends of a ring in memory of its own; return this, and the writer."""
        memory = mmap.mmap(-1, shape.segment_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        ring = (memory, shape, NONCE)
        park, who = _core.WaitPolicy.park(), _core.Identity(0, 0)
        self._writer = writer = kind(*ring, park, no_quota, None, who, None)
        self._reader = _core.RingReader(
            *ring, 0, park, no_quota, None, None, who, _core.VACANT, None
        )
        return memory, writer

    @classmethod
    def with_sample_of(cls: type[_Self], codec: Codec, label: str) -> _Self | None:
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
                f"{label}: codec={codec!r} can't warm up on its sample(): {type(error).__name__}: "
                f"{error}; return an object that takes at most {_SAMPLE_BYTES} bytes, or have no "
                "method sample()"
            ) from error
        # The stand-ins come later, and to them a ring of their own.
        warmup._is_empty = False
        return warmup

    def send(self) -> None:
        """Do what `Writer.send` does. Only for the thread whose turn it is with the endpoint."""
        self._begin_round()
        if self.sends is None:
            self._writer[0] = self._encode(self._sample)
        else:
            self.sends(self._sample, 0)
        self._reader[0, True]
        self._look_at_real_ones()
        self._end_round()

    def receive(self) -> None:
        """Do what `Reader.recv` does once a message is there. Only for the thread as above."""
        self._begin_round()
        frames = None if self._coder is None else self._coder.practice_frames()
        self._writer[0] = self._frames if frames is None else frames
        if self.receives is None:
            self._decode(self._reader[0, True])
        else:
            self.receives(0, True)
        self._look_at_real_ones()
        self._end_round()


class _Nowhere:
    """Stands in for the end of a stand-in. What is raised in a round comes out of it unchanged."""

    label = "practice"
    closed = True

    def close(self) -> None:
        """Do nothing."""

    def not_published(self, error: BaseException, _timeout: float | None, /) -> NoReturn:
        try:
            raise error
        finally:
            del error  # in a cycle, it would hold what its traceback knows until it is collected

    fail = not_published

    def not_encoded(self) -> None:
        """Do nothing: nobody asks whether it was sent."""

    def forget_views(self) -> None:
        """There are none."""

    def not_decoded(self, error: BaseException, /) -> NoReturn:
        try:
            raise error
        finally:
            del error


def no_quota() -> float:
    """Return the CPUs that a group of processes may use: all there are."""
    return math.inf

"""Objects to frames and back: pickle protocol 5 with large buffers kept out of the pickle."""

from __future__ import annotations

import copyreg
import operator
import pickle
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Frame = bytes | bytearray | memoryview
"""One contiguous piece of a message."""

_MODULES = sys.modules
_REGISTERED = copyreg.dispatch_table

OUT_OF_BAND_BYTES = 4096
"""Buffers of at least this size are frames of their own: one copy in, one copy out."""


class Codec(Protocol):
    """How an endpoint turns an object into frames; give your own to `Writer` and `Reader`.

    One codec serves one endpoint and is called by one thread at a time, unless several threads
    call the same endpoint (which is an error, found after `encode`).
    """

    def encode(self, obj: Any, /) -> Sequence[Frame]:
        """The frames of `obj`, any number. Their memory is read before `send` returns."""

    def decode(self, frames: list[bytearray], /) -> Any:
        """The object. The frames belong to it: they may be kept, viewed and written to."""


class PickleCodec:
    """Pickle 5 (PEP 574): frame 0 is the pickle, the others are its out-of-band buffers.

    numpy arrays and CPU tensors of at least `OUT_OF_BAND_BYTES` travel as frames, whatever their
    dtype and layout, and arrive owned and writable. So does every type that offers its memory as a
    `pickle.PickleBuffer`. All else is in the pickle.
    """

    def __init__(self) -> None:
        self._reducers = _Reducers()
        # Picklers at rest. Making one costs more than pickling a small message does. A pickler is
        # taken out while it is used: two threads, or an object whose reduction encodes another
        # one, get two.
        self._idle: list[_Pickler] = []

    def encode(self, obj: Any, /) -> list[Frame]:
        """The pickle of `obj` and its out-of-band buffers."""
        reducers = self._reducers
        if len(_MODULES) != reducers.modules or len(_REGISTERED) != reducers.registered:
            reducers.refresh()
        try:
            pickler = self._idle.pop()
        except IndexError:
            pickler = _Pickler(reducers)
        pickler.dump(obj)  # if this raises, the pickler in mid-object is thrown away
        pickler.clear_memo()  # it would keep obj alive, and know it the next time
        written, buffers = pickler.written, pickler.buffers
        # Past 64 KiB pickle writes in several pieces, large bytes objects by themselves.
        frames: list[Frame] = [b"".join(written), *buffers]
        written.clear()
        buffers.clear()
        self._idle.append(pickler)
        return frames

    def decode(self, frames: list[bytearray], /) -> Any:
        """The object that `encode` took."""
        return pickle.loads(frames[0], buffers=frames[1:])  # noqa: S301 (the writer is trusted)


class _Pickler:
    """A C pickler that is used again and again, and the lists that it writes to."""

    __slots__ = ("buffers", "clear_memo", "dump", "written")

    def __init__(self, reducers: _Reducers) -> None:
        self.written: list[bytes] = []
        self.buffers: list[memoryview] = []
        pickler = pickle.Pickler(
            _Sink(self.written.append), pickle.HIGHEST_PROTOCOL, buffer_callback=self._in_band
        )
        pickler.dispatch_table = reducers
        self.dump = pickler.dump
        self.clear_memo = pickler.clear_memo

    def _in_band(self, buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:  # not contiguous: pickle says what it thinks of it
            return True
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True
        self.buffers.append(raw)
        return False


class _Sink:
    """The least that pickle takes for a file."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self.write = write


class _Reducers(dict[type, Callable[[Any], Any]]):
    """A pickler's private `dispatch_table`: how to reduce an object, by its type.

    Holds shmcast's own reducers for arrays and tensors, and for each other type what pickle would
    do, found at the type's first object: a miss in a dispatch table costs pickle an exception per
    object, twice the price of a small dataclass.
    """

    def __init__(self) -> None:
        super().__init__()
        # How many there were when the entries were made.
        self.modules = self.registered = -1

    def refresh(self) -> None:
        """Starts anew, after something was imported or registered with copyreg."""
        self.modules, self.registered = len(_MODULES), len(_REGISTERED)
        self.clear()
        if "numpy" in _MODULES:
            from shmcast import _arrays

            self.update(_arrays.REDUCERS)
        if "torch" in _MODULES:
            from shmcast import _tensors

            self.update(_tensors.REDUCERS)

    def __missing__(self, cls: type) -> Callable[[Any], Any]:
        registered = _REGISTERED.get(cls)
        if registered is None:
            if issubclass(cls, type):
                raise KeyError(cls)  # a class of a metaclass: pickle saves it by name
            registered = _DEFAULT_REDUCE
        self[cls] = registered
        return registered


_DEFAULT_REDUCE = operator.methodcaller("__reduce_ex__", pickle.HIGHEST_PROTOCOL)

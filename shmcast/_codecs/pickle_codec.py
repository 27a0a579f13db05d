"""Objects to frames and back: pickle protocol 5 with large buffers kept out of the pickle."""

from __future__ import annotations

import copyreg
import functools
import operator
import pickle
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from shmcast._codecs.base import OUT_OF_BAND_BYTES, Frame, Received
from shmcast._core import pickle_plain, piece_collector, unpickle_plain

_PROTOCOL = pickle.HIGHEST_PROTOCOL


class PickleCodec:
    """Pickle 5 (PEP 574): frame 0 is the pickle, the others are its out-of-band buffers.

    numpy arrays and CPU tensors of at least 4 KiB travel as frames, whatever their dtype and
    layout, and arrive owned. So do bytes objects and bytearrays of at least 64 KiB, and every type
    that offers its memory as a `pickle.PickleBuffer`. All else is in the pickle.

    Small messages of plain objects (dicts, lists, tuples, strings, bytes, numbers, None) are
    pickled and unpickled in a shorter way than pickle's own, with the same result.

    Args:
        allow: what a message may name when it is decoded, beside plain values, arrays and tensors:
            classes and functions, or their names ("package.module.Class"), or "package.*" for all
            that a package defines. A message that names anything else is a `DecodeError`. None:
            everything may be named, because the writer is trusted; a pickle can then run any code.

    Raises:
        InvalidArgument: `allow` has what is no class, function or name.
    """

    def __init__(self, *, allow: Collection[type | Callable[..., Any] | str] | None = None) -> None:
        self.allow: Collection[type | Callable[..., Any] | str] | None = allow
        """What a message may name, as it was given."""
        self.find: Callable[[str, str], Any] | None = None
        """Return what a message names, or raise `UnpicklingError`; None: everything is allowed."""
        self.loads: Callable[..., Any] = pickle.loads  # the writer is trusted
        """Unpickle a frame, whose out-of-band buffers are `buffers=`."""
        if allow is not None:
            from shmcast._codecs.allow import AllowList

            allowed = AllowList(allow)
            self.find, self.loads = allowed.find, allowed.loads
        self._reducers = Reducers()
        # Idle picklers: making one costs more than pickling a small message. One is taken out while
        # it is used, so that two threads, or an object whose reduction encodes another, get two.
        self._idle: list[_Pickler] = []
        self._registered = dict(copyreg.dispatch_table)  # as the picklers know it
        self._has_seen_large = False  # a long message, or one of several frames

    def __reduce__(self) -> tuple[Any, ...]:
        """Reduce to the arguments: a program may give its processes a codec."""
        return functools.partial(type(self), allow=self.allow), ()

    def encode(self, obj: Any, /) -> list[Frame]:
        """Return the pickle of `obj`, then its out-of-band buffers.

        Raises:
            Exception: what pickle or a reducer raises; of any class.
        """
        plain = pickle_plain(obj)  # a small dict of numbers, say: pickle's own code is cold, too
        return self.dump(obj) if plain is None else [plain]

    def dump(self, obj: Any, /) -> list[Frame]:
        """Return what `encode` does, always by pickle's own pickler.

        Raises:
            Exception: what pickle or a reducer raises; of any class.
        """
        # Few steps and few names: in a decode loop all code is cold, and each costs a cache miss.
        if self._registered != copyreg.dispatch_table:
            self._forget_reducers()
        idle = self._idle
        try:
            pickler = idle.pop()
        except IndexError:
            pickler = self._make_pickler()
        dump, clear_memo, written, buffers = pickler
        dump(obj)  # if this raises, the pickler in mid-object is thrown away
        clear_memo()  # it would keep obj alive, and take it for known the next time
        if buffers or len(written) > 1:  # (past 64 KiB pickle writes several pieces)
            self._has_seen_large = True
            frames = [b"".join(written), *buffers]
            buffers.clear()
        else:
            frames = [*written]
        written.clear()
        idle.append(pickler)
        return frames

    def encode_again(self, obj: Any, given: list[tuple[Any, Any, Any, Any]], /) -> list[Frame]:
        """Return what `encode` does for an object whose parts may have been reduced already.

        A reduction may do something else the second time: hand out an iterator, or count.

        Args:
            obj: the object.
            given: tuples of a part, its reduction, and its items and pairs as they were drawn, or
                None.

        Raises:
            Exception: what pickle or a reducer raises; of any class.
        """
        dump, _, written, buffers = self._make_pickler(
            lambda *args, **named: _Again(given, *args, **named)
        )
        dump(obj)
        return [b"".join(written), *buffers]

    def decode(self, frames: list[Received], /) -> Any:
        """Return the object that `encode` took.

        Raises:
            Exception: what unpickling raises; of any class.
        """
        try:
            if len(frames) == 1:
                return unpickle_plain(frames[0], self.loads)
            self._has_seen_large = True
            return self.loads(frames[0], buffers=frames[1:])
        except Exception:
            check_is_pickle(frames)
            raise

    def _forget_reducers(self) -> None:
        """Look again at what is registered with `copyreg`."""
        self._registered = dict(copyreg.dispatch_table)
        self._reducers = Reducers()
        self._idle = []  # (a pickler that is in use goes back to the old list)

    def _reducers_for(self, _buffers: list[Any]) -> Reducers:
        """Return the reducers of a pickler, which may add to its out-of-band buffers."""
        return self._reducers

    def sample(self) -> Any:
        """Return a small message of the kinds of objects that messages are made of.

        It has an array once a large message was encoded or decoded, if numpy is in use.
        """
        sample: dict[str, Any] = {"step": 1, "ids": [1, 2], "done": False, "scale": 0.5}
        sample["request"] = _SampleRequest("request-1", [1, 2], 0.5)
        if self._has_seen_large and "numpy" in sys.modules:
            import numpy as np

            sample["array"] = np.zeros(OUT_OF_BAND_BYTES, np.uint8)
        return sample

    def _make_pickler(self, make: Callable[..., Any] = pickle.Pickler) -> _Pickler:
        written: list[bytes] = []
        buffers: list[Any] = []

        def in_band(buffer: pickle.PickleBuffer) -> bool:
            try:
                raw = buffer.raw()
            except BufferError:  # not contiguous: pickle's own error says so
                return True
            if raw.nbytes < OUT_OF_BAND_BYTES:
                return True
            buffers.append(raw)
            return False

        sink = _Sink(piece_collector(written, buffers))
        pickler = make(sink, _PROTOCOL, buffer_callback=in_band)
        pickler.dispatch_table = self._reducers_for(buffers)
        return pickler.dump, pickler.clear_memo, written, buffers


def check_is_pickle(frames: list[Received]) -> None:
    """Raise UnpicklingError if a message is none of `PickleCodec`'s; the error says what it is."""
    first = bytes(frames[0][:2]) if frames else b""
    if len(frames) > 1 and first[:1] == b"\0":
        raise pickle.UnpicklingError(
            "the message has device tensors, which only a ShmBroadcaster receives whose codec is "
            "PickleCodec or left out; give every rank the same codec, or send tensors on the CPU"
        )
    if first[:1] != _PROTO:
        raise pickle.UnpicklingError(
            f"the message is no pickle: it begins with {first!r}; the writer has another codec: "
            "give both ends the same"
        )


_PROTO = b"\x80"
"""The first byte of every pickle of protocol 2 or later."""


@dataclass
class _SampleRequest:
    """Stands in the sample for the dataclasses that engines send."""

    req_id: str
    block_ids: list[int]
    temperature: float


_Pickler = tuple[Callable[[Any], None], Callable[[], None], "list[bytes]", "list[Any]"]
"""A C pickler that is used again and again.

Its `dump` and `clear_memo`, and the lists that `dump` appends to: pieces of the pickle, and
out-of-band buffers.
"""


class _Again(pickle.Pickler):
    """Takes the reductions that there are; each once, as `pickle` remembers the object then."""

    def __init__(self, given: list[tuple[Any, Any, Any, Any]], *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._given = {id(obj): (obj, *rest) for obj, *rest in given}

    def reducer_override(self, obj: Any) -> Any:
        given = self._given.get(id(obj))
        if given is None:
            return NotImplemented
        _, reduction, items, pairs = given
        if items is None and pairs is None:
            return reduction
        drawn = (None if part is None else iter(part) for part in (items, pairs))
        return (
            *reduction[:3],
            *(new or old for new, old in zip(drawn, reduction[3:5], strict=False)),
            *reduction[5:],
        )


class _Sink:
    """The least that pickle accepts as a file."""

    __slots__ = ("write",)

    def __init__(self, write: Callable[[Any], None]) -> None:
        self.write = write


class Reducers(dict[type, Callable[[Any], Any]]):
    """A pickler's private `dispatch_table`: how to reduce an object, by its type.

    It has an entry for every type that it was asked for, because a miss costs pickle an exception
    for each object, as much again as pickling a small dataclass. The entry is what was registered
    with `copyreg`, else shmcast's own reducer (of arrays and tensors), else what pickle would do.
    """

    def __missing__(self, cls: type) -> Callable[[Any], Any]:
        reducer = copyreg.dispatch_table.get(cls) or self.own_reducer(cls)
        if reducer is None:
            if issubclass(cls, type):
                raise KeyError(cls)  # a class of a metaclass: pickle saves it by name
            reducer = _DEFAULT_REDUCE
        self[cls] = reducer
        return reducer

    def own_reducer(self, cls: type) -> Callable[[Any], Any] | None:
        """Return shmcast's own reducer of a class; None: it has none."""
        # Whoever has an array has imported its library already.
        if issubclass(cls, getattr(sys.modules.get("numpy"), "ndarray", ())):
            from shmcast._codecs import arrays

            return arrays.reducer_of(cls)
        if issubclass(cls, getattr(sys.modules.get("torch"), "Tensor", ())):
            from shmcast._codecs import tensors

            return tensors.reducer_of(cls)
        return None


_DEFAULT_REDUCE = operator.methodcaller("__reduce_ex__", _PROTOCOL)

"""Unpickle an object without running any code of its classes, to see where its tensors are.

Imported once torch is in use.
"""

from __future__ import annotations

import datetime
import functools
import io
import pickle
from collections import OrderedDict, defaultdict, deque
from typing import Any

import torch

from shmcast._codecs.allow import FindClass
from shmcast._codecs.base import Received
from shmcast._devices.codec import unpickling


class RunsCode(Exception):
    """Unpickling the object runs code that may look at its tensors."""


def unpickle_inert(
    frames: list[Received], tensors: list[torch.Tensor], find: FindClass | None
) -> tuple[Any, bool]:
    """Return the object of a message with a manifest, made without code of its classes.

    Args:
        frames: the message's.
        tensors: what to put in the places of its stubs, in the manifest's order.
        find: the codec's `find`.

    Returns:
        The object, and whether it is what unpickling would return. Else it has its dicts, lists,
        tuples, NamedTuples and dataclasses, and serves to see where its tensors are.

    Raises:
        RunsCode: it can't be made so.
        Exception: what unpickling raises; of any class.
    """
    unpickler = _Unpickler(io.BytesIO(frames[1]), buffers=frames[2:])
    unpickler.find = find
    with unpickling(tensors):
        obj = unpickler.load()
    return obj, not unpickler.has_stand_ins


class _Unpickler(pickle.Unpickler):
    find: FindClass | None = None
    has_stand_ins = False

    def find_class(self, module: str, name: str, /) -> Any:
        found = super().find_class(module, name) if self.find is None else self.find(module, name)
        if not callable(found) or found in _VALUES:
            return found  # a dtype, say
        if isinstance(found, type):
            if not _is_plain(found):
                raise RunsCode(f"{module}.{name}")
            self.has_stand_ins = True
            return _stand_in(found)
        if (getattr(found, "__module__", None) or "").partition(".")[0] in ("shmcast", "numpy"):
            return found
        raise RunsCode(f"{module}.{name}")


_VALUES = {
    bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, range, set, slice,
    str, tuple, OrderedDict, defaultdict, deque, datetime.date, datetime.datetime, datetime.time,
    datetime.timedelta, datetime.timezone, torch.Size, torch.device,
}  # fmt: skip
"""Classes that run no code of others."""

_CODE_OF_A_CLASS = (
    "__new__", "__setstate__", "__getattr__", "__getattribute__", "__setattr__", "__setitem__",
    "__hash__", "__eq__", "__del__", "append", "extend",
)  # fmt: skip
"""What unpickling may call on an instance that is made without `__init__`."""


@functools.lru_cache(maxsize=1024)
def _is_plain(cls: type) -> bool:
    """Return whether instances can be made, and given attributes, without code of the class."""
    return not any(
        name in vars(base) and not _is_generated(vars(base)[name])
        for base in cls.__mro__
        if base not in _VALUES
        for name in _CODE_OF_A_CLASS
    )


def _is_generated(method: Any) -> bool:
    """Return whether a method is none, or was made by `dataclass` or `NamedTuple`."""
    method = getattr(method, "__func__", method)  # __new__ is a staticmethod
    code = getattr(method, "__code__", None)
    in_dataclasses = getattr(method, "__module__", None) == "dataclasses"
    return method is None or in_dataclasses or getattr(code, "co_filename", None) == "<string>"


@functools.lru_cache(maxsize=1024)
def _stand_in(cls: type) -> type:
    """Return a class whose `__new__` makes instances of `cls`, and which can't be called.

    Unpickling calls a class only if a reduction says so: its `__init__` would then run.
    """

    def make(_cls: type, *args: Any, **kwargs: Any) -> Any:
        return cls.__new__(cls, *args, **kwargs)

    return _Uncallable(cls.__name__, (), {"__new__": make})


class _Uncallable(type):
    def __call__(cls, *_args: Any, **_kwargs: Any) -> Any:
        raise RunsCode(cls.__name__)

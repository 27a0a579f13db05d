"""What an object is, in a form that is equal exactly if the objects are, identities included."""

from __future__ import annotations

import array
import collections
import enum
import struct
import types
from collections.abc import Iterator
from typing import Any

_BY_IDENTITY = (type, types.FunctionType, types.ModuleType, enum.Enum)
_REDUCTIONS = ("__reduce_ex__", "__reduce__")
_ATOMS = (int, str, bytes, bool, type(None), type(Ellipsis), type(NotImplemented))


def canonical(obj: Any) -> list[Any]:
    """Return an object and all that it holds as a flat list.

    Types are told, the order of dicts, the bits of floats, and of all but atoms whether they are
    the same object: the first is numbered, the others refer to its number. Not told is the identity
    of ints, floats, strings and bytes, which pickle does not promise either; nor the order of sets.
    """
    walk = _Walk()
    walk.add(obj)
    return walk.tokens


class _Walk:
    def __init__(self, *, is_flat: bool = False) -> None:
        self._is_flat = is_flat  # shows atoms of sets only: their objects may lead back to the set
        self.tokens: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no two objects have one id

    def add(self, obj: Any) -> None:
        cls = type(obj)
        if cls in _ATOMS:
            self.tokens += (cls, obj)
        elif cls is float:
            self.tokens += (float, struct.pack("<d", obj))
        elif isinstance(obj, _BY_IDENTITY) and cls is not types.GenericAlias:
            self.tokens += ("is", id(obj))
        elif cls is tuple and not obj:
            self.tokens.append(())
        elif id(obj) in self._numbers:
            self.tokens += ("the same as", self._numbers[id(obj)])
        else:
            self._numbers[id(obj)] = len(self._numbers)
            self._kept.append(obj)
            self.tokens.append(cls)
            self._content(obj, cls)

    def _content(self, obj: Any, cls: type) -> None:
        tokens = self.tokens
        if isinstance(obj, list | tuple | collections.deque):
            base: Any = next(b for b in (list, tuple, collections.deque) if isinstance(obj, b))
            tokens += (base.__len__(obj), getattr(obj, "maxlen", None))
            for item in base.__iter__(obj):
                self.add(item)
        elif isinstance(obj, dict):
            kind = next(b for b in (collections.OrderedDict, dict) if isinstance(obj, b))
            tokens += (dict.__len__(obj), getattr(obj, "default_factory", None))
            for key, value in kind.items(obj):
                self.add(key)
                self.add(value)
        elif isinstance(obj, set | frozenset):
            tokens.append(len(obj))
            atoms = [item for item in obj if type(item) in _ATOMS or type(item) is float]
            for item in sorted(atoms, key=repr) if self._is_flat else sorted(obj, key=_rank):
                self.add(item)
        elif isinstance(obj, int | str | bytes | bytearray | float):
            base = next(b for b in (int, str, bytes, bytearray, float) if isinstance(obj, b))
            tokens.append(base.__repr__(obj))
        elif isinstance(obj, BaseException):
            self.add(obj.args)
        elif isinstance(obj, complex):
            tokens.append(struct.pack("<dd", obj.real, obj.imag))
        elif isinstance(obj, array.array):
            tokens += (obj.typecode, obj.tobytes())
        elif cls.__module__ == "numpy":
            self._array(obj)
        elif isinstance(obj, types.MethodType | types.BuiltinMethodType):
            tokens.append(obj.__name__)
            self.add(obj.__self__)
        elif _has_own_reduction(cls):
            self._reduction(obj.__reduce_ex__(4))
        for name, value in _attributes(obj):
            tokens.append(name)
            self.add(value)

    def _array(self, obj: Any) -> None:
        writable = getattr(getattr(obj, "flags", None), "writeable", None)
        self.tokens += (str(obj.dtype), getattr(obj, "shape", None), writable)
        if obj.dtype.hasobject:
            for item in obj.ravel().tolist():
                self.add(item)
        else:
            self.tokens.append(obj.tobytes())

    def _reduction(self, reduced: Any) -> None:
        if isinstance(reduced, str):
            self.tokens.append(reduced)
            return
        for part in reduced:
            if isinstance(part, Iterator):
                items = [*part]
                self._kept.append(items)
                self.tokens.append(len(items))
                for item in items:
                    self.add(item)
            elif type(part) is tuple:  # made for the reduction
                self.tokens.append(len(part))
                for item in part:
                    self.add(item)
            else:
                self.add(part)


def _rank(item: Any) -> str:
    """Return by what an element of a set has its place."""
    walk = _Walk(is_flat=True)
    walk.add(item)
    return repr(walk.tokens)


def _has_own_reduction(cls: type) -> bool:
    """Return whether a class of the library says how it is reduced; the tests' show all."""
    ways: list[Any] = [(getattr(cls, name), getattr(object, name)) for name in _REDUCTIONS]
    is_objects = all(own is objects for own, objects in ways)
    return not is_objects and not cls.__module__.startswith(("tests.", "bench.", "__main__"))


def _attributes(obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        own = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        own = None
    if type(own) is dict:
        yield from own.items()
    for cls in type(obj).__mro__:
        for name, member in vars(cls).items():
            if type(member) is types.MemberDescriptorType and not name.startswith("__"):
                try:
                    yield name, member.__get__(obj)
                except AttributeError:
                    yield name, "unset"

"""What the object codec finds out about classes, once for each.

Here is what pickle would look up in a class; the core asks for it where it may run code of others.
"""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import enum
import io
import pickle
import sys
import types
from array import array
from collections.abc import Callable
from typing import Any

# How instances are written; the same numbers are in core/codec/classes.hpp.
_PICKLED, _REDUCED, _PLAIN, _NAMED, _CALLED, _MEMBER, _NAMED_TUPLE, ARRAY, TENSOR = range(9)

_Reducer = Callable[[Any], Any]
Name = tuple[str, str, "tuple[str, ...]", bytes]
"""A class or function: its module, its name, the parts of that, and both as they are written."""
_Description = tuple[int, "_Reducer | None", "tuple[Any, ...]", bool, "Name | None"]

_METHODS = ("__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
HIDING = frozenset([*_METHODS, "__class__"])
"""Attributes of an instance that pickle would take for the methods of its class."""


_copyreg: Any = copyreg  # with what its stubs lack
_ABSENT = object()


def _look_up(cls: type, name: str) -> Any:
    """Return what a class or a base has by a name, as it lies there; or _ABSENT."""
    for base in type.__dict__["__mro__"].__get__(cls):
        found = type.__dict__["__dict__"].__get__(base).get(name, _ABSENT)
        if found is not _ABSENT:
            return found
    return _ABSENT


def _has(cls: type, like: type, *names: str) -> bool:
    """Return whether a class has these from another: they are the same objects, or absent."""
    return all(_look_up(cls, name) is _look_up(like, name) for name in names)


_NAMING = ("__getattribute__", "__getattr__", "__module__", "__qualname__", "__hash__", "__eq__")
# The state of a frozen dataclass with slots is a list of its fields.
_FROZEN_STATE = tuple(
    getattr(dataclasses, f"_dataclass_{name}state", _ABSENT) for name in ("get", "set")
)
_HEAP_TYPE = 1 << 9
_namedtuple: Any = collections.namedtuple
_NEWARGS_CODE = _namedtuple("_Sample", "a").__getnewargs__.__code__
_pickle: Any = pickle


def describe(
    cls: type, obj: Any, is_generic: bool, own_reducer: Callable[[type], _Reducer | None]
) -> _Description:
    """Say how the instances of a class are written.

    Args:
        cls: the class.
        obj: one of its instances.
        is_generic: attributes of instances are looked up as those of most objects.
        own_reducer: returns shmcast's own reducer of a class; None: it has none.

    Returns:
        The kind; what reduces an instance, None: its own `__reduce_ex__`; the names of its slots,
        or of an array or tensor what `IN_CORE` has; whether all slots must be set; the class's
        name, None: it is not written.
    """
    reducer = copyreg.dispatch_table.get(cls) or own_reducer(cls)
    for known, kind, facts in IN_CORE:
        if known is reducer:
            return kind, reducer, facts, False, None
    is_reduced = reducer is not None or _is_reduced(cls)
    kind, slots = (_REDUCED, ()) if is_reduced else _kind(cls, obj, is_generic)
    if kind in (_PLAIN, _CALLED, _MEMBER, _NAMED_TUPLE):
        name = _name(cls.__module__, cls.__qualname__)
        if name is not None:
            return kind, None, slots, _has_frozen_state(cls), name
        kind = _REDUCED
    return kind, reducer, (), False, None


def _is_reduced(cls: type) -> bool:
    """Return whether pickle may ask code of others how to save the class itself."""
    meta = type(cls)
    return meta is not type and (type(meta) is not type or meta in copyreg.dispatch_table)


def _name(module: Any, name: Any) -> Name | None:
    """Return a name as the core takes it; None: it can't be written."""
    if not type(module) is type(name) is str or "\0" in module + name:
        return None
    try:
        written = b"".join(part.encode() + b"\0" for part in (module, name))
    except UnicodeEncodeError:  # half of a surrogate pair
        return None
    return module, name, tuple(map(sys.intern, name.split("."))), written


def _kind(cls: type, obj: Any, is_generic: bool) -> tuple[int, tuple[str, ...]]:
    if issubclass(cls, type):
        return _NAMED if _has(cls, type, *_NAMING) else _REDUCED, ()
    if cls is types.FunctionType:
        return _NAMED, ()
    if cls is array:
        return _CALLED, ()
    if not (is_generic and cls.__flags__ & _HEAP_TYPE and _has(cls, object, "__class__")):
        return _REDUCED, ()
    if type(cls) is enum.EnumMeta and _has(cls, enum.Enum, "__reduce_ex__"):
        return _MEMBER if _look_up(cls, "_value_") is _ABSENT else _REDUCED, ()
    if not _has(cls, object, "__reduce_ex__"):
        return _REDUCED, ()
    if type(cls).__module__ == "msgspec._core":
        return _kind_of_struct(cls, obj)
    if not _has(type(cls), type, *_NAMING) or not _has(
        cls, object, "__reduce__", "__getnewargs_ex__"
    ):
        return _REDUCED, ()
    newargs = _look_up(cls, "__getnewargs__")
    if newargs is not _ABSENT:
        is_standard = (
            getattr(newargs, "__code__", None) is _NEWARGS_CODE
            and _has(cls, object, "__getstate__", "__setstate__")
            and (cls.__basicsize__, cls.__dictoffset__) == (tuple.__basicsize__, 0)
        )
        return _NAMED_TUPLE if is_standard else _REDUCED, ()
    if issubclass(cls, (list, dict)) or cls.__itemsize__:
        return _REDUCED, ()
    return _kind_of_plain(cls, obj)


def _kind_of_struct(cls: Any, obj: Any) -> tuple[int, tuple[str, ...]]:
    """Return the kind of a msgspec Struct: its constructor takes its values in order."""
    if type(_look_up(cls, "__reduce__")) is types.MethodDescriptorType and not cls.__dictoffset__:
        try:
            function, values = obj.__reduce__()
        except AttributeError:  # a field is not set
            return _REDUCED, ()
        if function is cls and len(values) == len(cls.__struct_fields__):
            return _CALLED, ()
    return _REDUCED, ()


def _has_frozen_state(cls: type) -> bool:
    state = _look_up(cls, "__getstate__"), _look_up(cls, "__setstate__")
    return state == _FROZEN_STATE and _ABSENT not in state


def _kind_of_plain(cls: Any, obj: Any) -> tuple[int, tuple[str, ...]]:
    is_frozen = _has_frozen_state(cls)
    has_pickles = _has(cls, object, "__getstate__", "__setstate__")
    if not (has_pickles or (is_frozen and not cls.__dictoffset__)):
        return _REDUCED, ()
    if cls.__dictoffset__ and not HIDING.isdisjoint(obj.__dict__):
        return _REDUCED, ()
    try:
        object.__reduce_ex__(obj, 5)  # whether it can be pickled at all is the class's matter
    except (TypeError, AttributeError):
        return _REDUCED, ()
    slots = tuple(_copyreg._slotnames(cls))  # noqa: SLF001
    if is_frozen:  # in the order of its state
        fields = tuple(_fields(cls))
        return (_PLAIN, fields) if sorted(fields) == sorted(slots) else (_REDUCED, ())
    return _PLAIN, slots


def describe_shape(
    text: bytes, find: Callable[[str, str], Any]
) -> tuple[Any, Name | None, tuple[str, ...], int, bool, bool]:
    """Say what a received shape is.

    Args:
        text: its text.
        find: returns what a module has by a name.

    Returns:
        The class and its name; the names of the attributes and slots, of how many attributes;
        whether the state is a list; whether the class leaves it to pickle to set the state.

    Raises:
        ValueError: it is malformed.
        Exception: what `find` raises.
    """
    attributes, slots = int.from_bytes(text[:2], "little"), int.from_bytes(text[2:4], "little")
    is_list_state, slots = bool(slots & 0x8000), slots & 0x7FFF
    module, name, *keys, rest = text[4:].decode().split("\0")
    if rest or len(keys) != attributes + slots:
        raise ValueError("the message is malformed")
    cls = find(module, name)
    if not isinstance(cls, type):
        raise pickle.UnpicklingError(
            f"NEWOBJ class argument must be a type, not {type(cls).__name__}"
        )
    names = tuple(map(sys.intern, keys))
    if is_list_state:
        is_plain = _has_frozen_state(cls) and tuple(_fields(cls)) == names
    else:
        is_plain = _look_up(cls, "__setstate__") is _ABSENT
    return cls, _name(module, name), names, attributes, is_list_state, is_plain


def _fields(cls: Any) -> dict[str, Any]:
    fields: dict[str, Any] = cls.__dataclass_fields__
    return fields


def describe_name(text: bytes, find: Callable[[str, str], Any]) -> tuple[Any, Name | None]:
    """Return what a message names, and its name.

    Args:
        text: the name as it is written.
        find: returns what a module has by a name.

    Raises:
        ValueError: it is malformed.
        Exception: what `find` raises.
    """
    module, name, rest = text.decode().split("\0")
    if rest:
        raise ValueError("the message is malformed")
    return find(module, name), _name(module, name)


def find(module: str, name: str) -> Any:
    """Return what `pickle.loads` finds by a name.

    Raises:
        Exception: what importing the module raises; of any class.
    """
    unpickler = _pickle._Unpickler(io.BytesIO())  # noqa: SLF001
    unpickler.proto = pickle.HIGHEST_PROTOCOL
    return unpickler.find_class(module, name)


def name_of(obj: Any, name: str | None) -> Name | None:
    """Return the name by which pickle saves a class or function; None: it can't.

    Args:
        obj: the class or function.
        name: what its reduction says; None: nothing.
    """
    try:
        if name is None:
            name = getattr(obj, "__qualname__", None) or obj.__name__
        module = _pickle.whichmodule(obj, name)
    except (AttributeError, pickle.PicklingError):  # (the latter from Python 3.15 on)
        return None
    return _name(module, name)


IN_CORE: list[tuple[_Reducer, int, tuple[Any, ...]]] = []
"""Reducers that the core stands in for: each with the kind of what it reduces, and what the core
needs for that.
"""
ARRAYS: list[Any] = []
"""Once numpy is in use: what rebuilds its arrays, their class, most dtypes by their texts, the
class of memory of an arena that was received, and the shape of an empty array.
"""
TENSORS: list[Any] = []
"""Once torch is in use: what rebuilds its tensors, what makes one of DLPack's capsules, how DLPack
calls most dtypes, by their texts, and the shape of an empty tensor.
"""

CORE = (
    *("__reduce_ex__", "__class__", "__dict__", "__setstate__", "_value_"),
    *("raw", "cast", "B", "C", "toreadonly", "extend", "append", "__name__"),
    *(pickle.HIGHEST_PROTOCOL, 0, ()),
    *(describe, describe_shape, describe_name, name_of),
    *(HIDING, array("b").__reduce_ex__(5)[0], _copyreg.__newobj__, _copyreg.__newobj_ex__),
    *(copyreg.dispatch_table, pickle.UnpicklingError, ARRAYS, TENSORS),
)
"""What the core knows of Python, in the order of `Known` in core/codec/classes.hpp."""

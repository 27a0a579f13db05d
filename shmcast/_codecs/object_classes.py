"""What the object codec finds out about classes, once for each, and the rare steps of rebuilding.

Here is what pickle would look up in a class, or do with a reduction; the core asks for it where it
may run code of others.
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
from array import array as array
from collections.abc import Callable
from copyreg import dispatch_table as dispatch_table
from typing import Any

# How instances are written; the same numbers are in core/codec/classes.hpp.
_PICKLED, _REDUCED, _PLAIN, _NAMED, _CALLED, _MEMBER, _NAMED_TUPLE, _ARRAY = range(8)

_Reducer = Callable[[Any], Any]
_Description = tuple[int, "_Reducer | None", "tuple[str, ...]", bool, "str | None", "str | None"]

HIDING = frozenset(
    [
        "__reduce_ex__",
        "__reduce__",
        "__getstate__",
        "__getnewargs__",
        "__getnewargs_ex__",
        "__class__",
    ]
)
"""Attributes of an instance that pickle would take for the methods of its class."""


def _look_up(cls: type, name: str) -> Any:
    """Return what a class or a base has by a name, as it lies there; None: nothing."""
    for base in type.__dict__["__mro__"].__get__(cls):
        found = type.__dict__["__dict__"].__get__(base).get(name)
        if found is not None:
            return found
    return None


def _has(cls: type, like: type, *names: str) -> bool:
    """Return whether a class has these from another: they are the same objects, or absent."""
    return all(_look_up(cls, name) is _look_up(like, name) for name in names)


_NAMING = ("__getattribute__", "__getattr__", "__module__", "__qualname__", "__hash__", "__eq__")
_FROZEN_GETSTATE = getattr(dataclasses, "_dataclass_getstate", None)
_FROZEN_SETSTATE = getattr(dataclasses, "_dataclass_setstate", None)
_HEAP_TYPE = 1 << 9
_namedtuple: Any = collections.namedtuple
_NEWARGS_CODE = _namedtuple("_Sample", "a").__getnewargs__.__code__
_pickle: Any = pickle  # with what its stubs lack


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
        whether all of them must be set; the class's module and name, None: it is not written.
    """
    reducer = copyreg.dispatch_table.get(cls) or own_reducer(cls)
    kind, slots = (_REDUCED, ()) if reducer is not None else _kind(cls, obj, is_generic)
    if kind in (_PLAIN, _CALLED, _MEMBER, _NAMED_TUPLE):
        module, name = cls.__module__, cls.__qualname__
        if type(module) is type(name) is str:
            is_frozen = _look_up(cls, "__getstate__") is _FROZEN_GETSTATE is not None
            return kind, None, slots, kind == _CALLED or is_frozen, module, name
        kind = _REDUCED
    return kind, reducer, (), False, None, None


def _kind(cls: type, obj: Any, is_generic: bool) -> tuple[int, tuple[str, ...]]:
    if issubclass(cls, type):
        return _NAMED if _has(cls, type, *_NAMING) else _REDUCED, ()
    if cls is types.FunctionType:
        return _NAMED, ()
    if cls is array:
        return _ARRAY, ()
    if not (is_generic and cls.__flags__ & _HEAP_TYPE and _has(cls, object, "__class__")):
        return _REDUCED, ()
    if type(cls) is enum.EnumMeta and _has(cls, enum.Enum, "__reduce_ex__"):
        return _REDUCED if _look_up(cls, "_value_") else _MEMBER, ()
    if not _has(cls, object, "__reduce_ex__"):
        return _REDUCED, ()
    if type(cls).__module__ == "msgspec._core":
        return _kind_of_struct(cls, obj)
    if not _has(type(cls), type, *_NAMING) or not _has(
        cls, object, "__reduce__", "__getnewargs_ex__"
    ):
        return _REDUCED, ()
    newargs = _look_up(cls, "__getnewargs__")
    if newargs is not None:
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
            return _CALLED, cls.__struct_fields__
    return _REDUCED, ()


def _kind_of_plain(cls: Any, obj: Any) -> tuple[int, tuple[str, ...]]:
    state = _look_up(cls, "__getstate__"), _look_up(cls, "__setstate__")
    is_frozen = None not in state and state == (_FROZEN_GETSTATE, _FROZEN_SETSTATE)
    if (is_frozen and cls.__dictoffset__) or not (
        is_frozen or _has(cls, object, "__getstate__", "__setstate__")
    ):
        return _REDUCED, ()
    if cls.__dictoffset__ and not HIDING.isdisjoint(obj.__dict__):
        return _REDUCED, ()
    try:
        object.__reduce_ex__(obj, 5)  # whether it can be pickled at all is the class's matter
    except (TypeError, AttributeError):
        return _REDUCED, ()
    slots = tuple(copyreg._slotnames(cls))  # type: ignore[attr-defined] # noqa: SLF001
    if is_frozen:  # in the order of its state
        fields = tuple(cls.__dataclass_fields__)
        return (_PLAIN, fields) if sorted(fields) == sorted(slots) else (_REDUCED, ())
    return _PLAIN, slots


def has_pickles_state(cls: Any, slots: tuple[str, ...], is_list_state: bool) -> bool:
    """Return whether a class leaves it to pickle to set the state of an instance.

    Args:
        cls: the class.
        slots: those that are sent.
        is_list_state: the state is a list of their values, as of a frozen dataclass.
    """
    setstate = _look_up(cls, "__setstate__")
    if not is_list_state:
        return setstate is None
    fields = _look_up(cls, "__dataclass_fields__") or ()
    return setstate is _FROZEN_SETSTATE is not None and tuple(fields) == slots


def tuple_fields(cls: Any) -> int:
    """Return how many items a namedtuple's `__new__` makes a tuple of; -1: it does other things.

    It is made from a text, and known by what it has of its surroundings.
    """
    new = getattr(_look_up(cls, "__new__"), "__func__", None)
    if cls.__dictoffset__ or not issubclass(cls, tuple) or type(new) is not types.FunctionType:
        return -1
    known = {
        "_tuple_new": tuple.__new__,
        "__builtins__": {},
        "__name__": f"namedtuple_{cls.__name__}",
    }
    return new.__code__.co_argcount - 1 if new.__globals__ == known else -1


def find(module: str, name: str) -> Any:
    """Return what `pickle.loads` finds by a name.

    Raises:
        Exception: what importing the module raises; of any class.
    """
    unpickler = _pickle._Unpickler(io.BytesIO())  # noqa: SLF001
    unpickler.proto = pickle.HIGHEST_PROTOCOL
    return unpickler.find_class(module, name)


def name_of(obj: Any, name: str | None) -> tuple[str, str] | None:
    """Return the module and name by which pickle saves a class or function; None: it can't.

    Args:
        obj: the class or function.
        name: what its reduction says; None: nothing.
    """
    try:
        if name is None:
            name = getattr(obj, "__qualname__", None) or obj.__name__
        module = _pickle.whichmodule(obj, name)
    except AttributeError:
        return None
    return (module, name) if type(module) is type(name) is str else None


def add_items(obj: Any, items: list[Any]) -> None:
    """Give an object the items of its reduction."""
    if hasattr(obj, "extend"):
        obj.extend(items)
        return
    for item in items:
        obj.append(item)


def build(obj: Any, state: Any) -> None:
    """Give an object its state."""
    setstate = getattr(obj, "__setstate__", None)
    if setstate is not None:
        setstate(state)
        return
    slots = None
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    if state:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("state is not a dictionary")
        attributes = obj.__dict__
        for key, value in state.items():
            attributes[sys.intern(key) if type(key) is str else key] = value
    for key, value in (slots or {}).items():
        setattr(obj, key, value)


def restore(
    obj: Any, attributes: dict[str, Any], slots: dict[str, Any], is_list_state: bool
) -> None:
    """Give an instance its state, whose class has ways of its own here."""
    if is_list_state:
        build(obj, list(slots.values()))
    elif attributes or slots:
        build(obj, (attributes or None, slots) if slots else attributes)

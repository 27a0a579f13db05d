"""The engines' messages as msgspec Structs, for a typed codec, made from the dataclasses.

So fields and data are defined once. A Struct has the fields of its dataclass, in their order and
with their types, except that an `array.array` is a numpy array.
"""

from __future__ import annotations

import functools
import types
from array import array
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np


@functools.cache
def struct_type(cls: type) -> Any:
    """Return the Struct of a dataclass, the same at each call; its fields hold Structs, too.

    It is array-like, as those of the engines are, and the garbage collector leaves it alone.
    Needs msgspec.
    """
    import msgspec

    hints = get_type_hints(cls)
    members = [(member.name, _as_struct(hints[member.name])) for member in fields(cls)]
    # Unique, and where pickle looks for it: both engines have a SamplingParams.
    name = f"{cls.__module__.rpartition('.')[2]}_{cls.__name__}"
    made = msgspec.defstruct(name, members, module=__name__, array_like=True, gc=False)
    globals()[name] = made
    return made


def _as_struct(hint: Any) -> Any:
    """Replace dataclasses in a field's type by Structs, and typed arrays by plain numpy arrays."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is array or origin is np.ndarray:
        return np.ndarray
    if isinstance(hint, type) and is_dataclass(hint):
        return struct_type(hint)
    if origin is types.UnionType:
        return Union[tuple(map(_as_struct, args))]  # noqa: UP007 (of a tuple)
    if args:
        return origin[tuple(map(_as_struct, args))]
    return hint


def typed(hint: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return what a typed codec needs for messages of a type, such as `list[Request]`.

    Returns:
        The type to encode and decode, and the function that makes one of a message.
    """
    return _as_struct(hint), as_struct


def as_struct(obj: Any) -> Any:
    """Replace dataclasses in `obj` by Structs; numpy arrays are shared with it, not copied."""
    if is_dataclass(obj) and not isinstance(obj, type):
        values = [as_struct(getattr(obj, member.name)) for member in fields(obj)]
        return struct_type(type(obj))(*values)
    if isinstance(obj, array):
        return np.frombuffer(obj, obj.typecode)
    if isinstance(obj, dict):
        return {key: as_struct(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple, set)):
        return type(obj)(map(as_struct, obj))
    return obj

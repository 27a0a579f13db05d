"""Codec: which part of an object can't be encoded, as msgspec's encoder does not say.

It takes its time, for objects that can't be sent only.
"""

from __future__ import annotations

import dataclasses
import reprlib
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class _Part(NamedTuple):
    step: str
    """The way to it, as in Python."""
    value: Any
    declared: str | None = None
    """Which field of which type it is, if it is one."""


def describe_failure(obj: Any, message_type: Any, encode: Callable[[Any], object]) -> str | None:
    """The innermost part of `obj` that can't be encoded, and why.

    Args:
        obj: what could not be encoded.
        message_type: what it should have been.
        encode: called with its parts; raises for some.

    Returns:
        "$.a[3].b = value (A.b is declared as int): error". None: the object can be encoded now.
    """
    error = _error_of(encode, obj)
    if error is None:
        return None
    path, declared = "$", f"the message is declared as {type_name(message_type)}"
    passed: set[int] = set()
    while id(obj) not in passed:  # else it has no such part, or is part of itself
        passed.add(id(obj))
        for part in _parts(obj):
            its_error = _error_of(encode, part.value)
            if its_error is not None:
                path += part.step
                obj, error, declared = part.value, its_error, part.declared or declared
                break
    return f"{path} = {_brief(obj)} ({declared}): {error}"


def type_name(hint: Any) -> str:
    """A type as one would write it."""
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return hint.__qualname__
    return str(hint).replace("typing.", "")


def _error_of(encode: Callable[[Any], object], obj: Any) -> str | None:
    """What is wrong with `obj`."""
    # Not the exception: it would be part of a cycle with its frames, and keep the object.
    try:
        encode(obj)
    except Exception as error:
        return str(error) or repr(error)
    return None


def _parts(obj: Any) -> Iterator[_Part]:
    """What msgspec encodes one by one."""
    if isinstance(obj, dict):
        for key, value in obj.items():
            yield _Part(f".key({reprlib.repr(key)})", key)
            yield _Part(f"[{reprlib.repr(key)}]", value)
    elif isinstance(obj, list | tuple | set | frozenset):
        for i, value in enumerate(obj):
            yield _Part(f"[{i}]", value)
    elif not isinstance(obj, type):
        hints = _hints_of(type(obj))
        for name in _fields_of(obj):
            if hasattr(obj, name):
                hint = type_name(hints.get(name, Any))
                declared = f"{type(obj).__qualname__}.{name} is declared as {hint}"
                yield _Part(f".{name}", getattr(obj, name), declared)


def _fields_of(obj: Any) -> list[str]:
    """The fields of a Struct, a dataclass, or an object of attrs; others have none."""
    if dataclasses.is_dataclass(obj):
        return [field.name for field in dataclasses.fields(obj)]
    attributes = [attribute.name for attribute in getattr(obj, "__attrs_attrs__", ())]
    return [*getattr(obj, "__struct_fields__", attributes)]


def _hints_of(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # of a class that is no part of the codec's type
        return {}


def _brief(value: Any) -> str:
    """Without the elements of arrays, which may be on a device."""
    cls = type(value)
    if cls.__module__.partition(".")[0] in ("numpy", "torch"):
        return f"<{cls.__module__}.{cls.__qualname__}>"
    return reprlib.repr(value)

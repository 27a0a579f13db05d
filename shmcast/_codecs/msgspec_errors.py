"""Codec: find the part of an object that can't be encoded, which msgspec's encoder does not name.

This is slow, and runs only after an object could not be encoded.
"""

from __future__ import annotations

import dataclasses
import reprlib
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class _Part(NamedTuple):
    step: str
    """How to get to it, in Python's syntax."""
    value: Any
    declared: str | None = None
    """If it is a field: which one, and its type."""


def describe_failure(obj: Any, message_type: Any, encode: Callable[[Any], object]) -> str | None:
    """Name the innermost part of `obj` that can't be encoded, and say why.

    Args:
        obj: what could not be encoded.
        message_type: what it should have been.
        encode: encodes a part, or raises.

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
    """Return a type as a programmer would write it."""
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return hint.__qualname__
    return str(hint).replace("typing.", "")


def _error_of(encode: Callable[[Any], object], obj: Any) -> str | None:
    """Return the message of the error that encoding `obj` raises; None: it raises none."""
    # Not the exception: it would be in a cycle with its frames, and keep the object.
    try:
        encode(obj)
    except Exception as error:
        return str(error) or repr(error)
    return None


def _parts(obj: Any) -> Iterator[_Part]:
    """Yield the parts that msgspec encodes one by one."""
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
    """Return the names of a Struct's, a dataclass's or an attrs object's fields; else none."""
    if dataclasses.is_dataclass(obj):
        return [field.name for field in dataclasses.fields(obj)]
    attributes = [attribute.name for attribute in getattr(obj, "__attrs_attrs__", ())]
    return [*getattr(obj, "__struct_fields__", attributes)]


def _hints_of(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except Exception:  # the class is no part of the codec's type
        return {}


def _brief(value: Any) -> str:
    """Return a short repr, without the elements of arrays: they may be on a device."""
    cls = type(value)
    if cls.__module__.partition(".")[0] in ("numpy", "torch"):
        return f"<{cls.__module__}.{cls.__qualname__}>"
    return reprlib.repr(value)

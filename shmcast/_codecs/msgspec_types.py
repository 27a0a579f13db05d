"""Codec: whether all that a type is made of can travel. Imported once msgspec is in use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import inspect

from shmcast._codecs.msgspec_arrays import is_array
from shmcast._codecs.msgspec_errors import type_name


def checked_type_info(message_type: Any) -> inspect.Type:
    """What the type is made of.

    Raises:
        TypeError: something in it can't be decoded; the error names the field.
        Exception: msgspec does not understand the type; of any class.
    """
    whole = inspect.type_info(message_type)
    for place, part in _walk(whole, type_name(message_type)):
        if isinstance(part, inspect.CustomType) and not is_array(part.cls):
            raise TypeError(
                f"{place} has {part.cls.__module__}.{type_name(part.cls)}, which msgspec can't "
                "decode; make it a msgspec.Struct or a dataclass, or send what it is made of"
            )
    return whole


def _walk(whole: inspect.Type, place: str) -> Iterator[tuple[str, inspect.Type]]:
    """Every type in a type, once, and the field where it is."""
    known = set()  # a type may have itself as a part
    ahead = [(place, whole)]
    while ahead:
        place, part = ahead.pop()
        if id(part) in known:
            continue
        known.add(id(part))
        yield place, part
        for name in part.__struct_fields__:
            value = getattr(part, name)
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, inspect.Field):
                    ahead.append((f"{type_name(part.cls)}.{inner.name}", inner.type))  # type: ignore[attr-defined]
                elif isinstance(inner, inspect.Type):
                    ahead.append((place, inner))

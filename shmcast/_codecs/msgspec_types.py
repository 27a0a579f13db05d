"""Codec: check that every part of a type can travel. Imported once msgspec is in use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from msgspec import inspect

from shmcast._codecs.msgspec_arrays import is_array
from shmcast._codecs.msgspec_errors import type_name


def checked_type_info(message_type: Any) -> inspect.Type:
    """Return msgspec's description of a type, all of whose parts can be decoded.

    Raises:
        TypeError: a part can't be decoded; the error names the field.
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
    """Yield every type in a type once, and the field that it is in."""
    seen = set()  # a type may have itself as a part
    pending = [(place, whole)]
    while pending:
        place, part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield place, part
        for name in part.__struct_fields__:
            value = getattr(part, name)
            for inner in value if isinstance(value, tuple) else (value,):
                if isinstance(inner, inspect.Field):
                    pending.append((f"{type_name(part.cls)}.{inner.name}", inner.type))  # type: ignore[attr-defined]
                elif isinstance(inner, inspect.Type):
                    pending.append((place, inner))

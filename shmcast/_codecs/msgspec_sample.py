"""Codec: make up a small object of a type, for warm-ups. Imported once msgspec is in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import inspect

from shmcast._codecs.base import OUT_OF_BAND_BYTES


class NoSample(Exception):
    """There is no object of this type, or none that is easily made up."""


class SampleBuilder:
    """Makes up one object: one element of each kind in every list, and one large array in all."""

    def __init__(self) -> None:
        self._enclosing: list[object] = []  # the classes of the objects that are being built
        self._has_large_array = False

    def build(self, part: inspect.Type) -> Any:
        """Make up an object of this type.

        Raises:
            NoSample: there is none that is easily made up.
            Exception: a class of the user's refuses what was made up; of any class.
        """
        kind = type(part)
        if kind in _PLAIN:
            return _PLAIN[kind]
        match part:
            case inspect.Metadata():
                return self.build(part.type)
            case inspect.EnumType():
                return next(iter(part.cls))
            case inspect.LiteralType():
                return part.values[0]
            case inspect.UnionType():
                return next(iter(self._build_each(part)), None)
            case inspect.TupleType():
                return tuple(map(self.build, part.item_types))
            case inspect.CollectionType():
                return _COLLECTIONS[kind](self._build_each(part.item_type))
            case inspect.DictType():
                keys, values = self._build_each(part.key_type), self._build_each(part.value_type)
                return dict(zip(keys, values, strict=False))
            case inspect.CustomType():
                return self._build_array(part.cls)
            case (
                inspect.StructType()
                | inspect.DataclassType()
                | inspect.NamedTupleType()
                | inspect.TypedDictType()
            ):
                return self._build_record(part.cls, part.fields)
        raise NoSample

    def _build_each(self, part: inspect.Type) -> list[Any]:
        """Make up one object of each member of a union but None, or one of any other type.

        Members of which there is no sample are left out.
        """
        found = []
        for member in part.types if isinstance(part, inspect.UnionType) else (part,):
            if not isinstance(member, inspect.NoneType):
                try:
                    found.append(self.build(member))
                except NoSample:
                    continue
        return found

    def _build_record(self, cls: Any, fields: Sequence[inspect.Field]) -> Any:
        if cls in self._enclosing:
            raise NoSample  # it would have no end
        values = {}
        self._enclosing.append(cls)
        try:
            for field in fields:
                try:
                    values[field.name] = self.build(field.type)
                except NoSample:
                    if field.required:
                        raise
        finally:
            self._enclosing.pop()
        return cls(**values)

    def _build_array(self, cls: type) -> Any:
        nbytes = 1 if self._has_large_array else OUT_OF_BAND_BYTES
        self._has_large_array = True
        if cls.__module__ == "numpy":
            import numpy as np

            return np.zeros(nbytes, np.uint8)
        import torch

        return torch.zeros(nbytes, dtype=torch.uint8, device="cpu")


_PLAIN: dict[type[inspect.Type], Any] = {
    inspect.NoneType: None,
    inspect.AnyType: None,
    inspect.BoolType: True,
    inspect.IntType: 1,
    inspect.FloatType: 0.5,
    inspect.StrType: "a",
    inspect.BytesType: b"a",
}

_COLLECTIONS: dict[type[inspect.Type], type] = {
    inspect.ListType: list,
    inspect.SetType: set,
    inspect.FrozenSetType: frozenset,
    inspect.VarTupleType: tuple,
}

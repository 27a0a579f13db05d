"""Receiving into given tensors: an object that has arrived, laid beside the one to receive into.

Imported once torch is in use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from shmcast._devices.work import Work
from shmcast.errors import InvalidArgument

_MISSING = object()  # in the place of what only one of the two objects has

Pair = tuple[torch.Tensor, torch.Tensor]
"""A tensor to receive into, and the one of the message that it stands for."""


def match_out(
    got: Any, out: Any, arrives_on: Callable[[torch.Tensor], torch.device]
) -> tuple[Any, list[Pair]]:
    """Puts the tensors of `out` in the places of those of `got`. Nothing is copied yet.

    Dicts, lists, tuples, NamedTuples and dataclasses are looked into. What has no tensors need not
    match and is taken from `got`.

    Args:
        got: what has arrived. Its dicts, lists and dataclasses are changed in place.
        out: an object with tensors in the same places.
        arrives_on: the device that a tensor of `got` is for.

    Returns:
        The object, and its tensors with those that they stand for.

    Raises:
        InvalidArgument: a tensor has no place in the other object, or one of another shape, dtype
            or device. The message has its path, with `d` for the whole.
    """
    matcher = _Matcher(arrives_on)
    return matcher.match(got, out, "d"), matcher.pairs


def copy_pairs(pairs: list[Pair]) -> None:
    """Copies the second tensor of each pair into the first."""
    if pairs:
        into, source = zip(*pairs, strict=True)
        with torch.no_grad():
            torch._foreach_copy_(into, source)


class _Matcher:
    def __init__(self, arrives_on: Callable[[torch.Tensor], torch.device]) -> None:
        self.pairs: list[Pair] = []
        self._arrives_on = arrives_on
        # By identity: shared parts stay shared, and cycles end. The parts are kept, so that no
        # other takes their identity.
        self._matched: dict[tuple[int, int], tuple[Any, Any, Any]] = {}

    def match(self, got: Any, out: Any, path: str) -> Any:
        if isinstance(got, torch.Tensor) and isinstance(out, torch.Tensor):
            self._check(got, out, path)
            self.pairs.append((out, got))
            return out
        known = self._matched.get((id(got), id(out)))
        if known is not None:
            return known[0]
        parts, places = _parts(got), _parts(out)
        if type(got) is type(out) and parts is not None and places is not None:
            self._matched[id(got), id(out)] = (got, got, out)
            both = {
                key: self.match(
                    parts.get(key, _MISSING), places.get(key, _MISSING), path + _step(got, key)
                )
                for key in {**parts, **places}
            }
            matched = _with_parts(got, {key: both[key] for key in parts})
            self._matched[id(got), id(out)] = (matched, got, out)
            return matched
        for side, other, where in ((got, out, "the message"), (out, got, "out")):
            inner = _first_tensor(side, "", set())
            if inner is not None:
                raise InvalidArgument(
                    f"{path}{inner} is a tensor in {where} only; in "
                    f"{'out' if where != 'out' else 'the message'} {path} is {_describe(other)}"
                )
        return got

    def _check(self, got: torch.Tensor, out: torch.Tensor, path: str) -> None:
        for what, want, have in (
            ("shape", tuple(got.shape), tuple(out.shape)),
            ("dtype", got.dtype, out.dtype),
            ("device", self._arrives_on(got), out.device),
        ):
            if want != have:
                raise InvalidArgument(f"{path} has {what} {have} in out, and {want} in the message")
        if any(n > 1 and step == 0 for n, step in zip(out.shape, out.stride(), strict=True)):
            raise InvalidArgument(f"{path} is an expanded tensor in out: its elements are one")


def _parts(obj: Any) -> dict[Any, Any] | None:
    """What `obj` is made of, by key, index or name. None: it is not looked into."""
    if isinstance(obj, dict):
        return dict(obj)
    if _is_named(obj):
        return dict(zip(obj._fields, obj, strict=True))
    if isinstance(obj, (list, tuple)):
        return dict(enumerate(obj))
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        names = [field.name for field in dataclasses.fields(obj)]
        return {name: getattr(obj, name) for name in names if hasattr(obj, name)}
    return None


def _step(obj: Any, key: Any) -> str:
    """How one gets from `obj` to its part."""
    if isinstance(obj, (dict, list, tuple)) and not _is_named(obj):
        return f'["{key}"]' if isinstance(key, str) else f"[{key!r}]"
    return f".{key}"


def _is_named(obj: Any) -> bool:
    return isinstance(obj, tuple) and hasattr(obj, "_fields")


def _with_parts(obj: Any, parts: dict[Any, Any]) -> Any:
    """`obj` with other parts; the same object wherever that can be."""
    if isinstance(obj, dict):
        obj.update(parts)
    elif isinstance(obj, list):
        obj[:] = parts.values()
    elif isinstance(obj, tuple):
        if all(new is old for new, old in zip(parts.values(), obj, strict=True)):
            return obj
        return obj._make(parts.values()) if _is_named(obj) else type(obj)(parts.values())  # type: ignore[attr-defined]
    else:
        for name, part in parts.items():
            object.__setattr__(obj, name, part)  # frozen or not: nobody has seen it yet
    return obj


def _first_tensor(obj: Any, path: str, seen: set[int]) -> str | None:
    """The path from `obj` to its first tensor."""
    if isinstance(obj, torch.Tensor):
        return path
    if id(obj) in seen:
        return None
    seen.add(id(obj))
    for key, part in (_parts(obj) or {}).items():
        found = _first_tensor(part, path + _step(obj, key), seen)
        if found is not None:
            return found
    return None


def _describe(obj: Any) -> str:
    return "not there" if obj is _MISSING else f"a {type(obj).__qualname__}"


def receive_into(label: str, obj: Any, out: Any) -> Work:
    """Return the work that receives an object without device tensors into `out`; None: as it is.

    Its `wait` raises InvalidArgument if the object does not match `out`.
    """
    if out is None:
        return Work.done(obj)

    def place() -> Any:
        try:
            matched, pairs = match_out(obj, out, lambda tensor: tensor.device)
        except Exception as error:
            raise mismatch(label, error) from error
        copy_pairs(pairs)
        return matched

    return Work(place)


def mismatch(label: str, error: Exception) -> InvalidArgument:
    """What to tell when a message does not fit into `out`."""
    return InvalidArgument(
        f"{label}: the message does not match out: {error}; the message is consumed, out is as it "
        "was"
    )

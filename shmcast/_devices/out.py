"""Match an object that has arrived with `out`, the object whose tensors to receive into.

Imported once torch is in use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from shmcast._codecs.tensors import shares_elements
from shmcast._devices.overlaps import Place, check_overlaps
from shmcast.errors import InvalidArgument

_MISSING = object()  # stands for a part that only the other object has

Pair = tuple[torch.Tensor, torch.Tensor]
"""A tensor of `out` to receive into, and the tensor in its place in the message."""


def match_out(
    got: Any, out: Any, arrives_on: Callable[[torch.Tensor], torch.device]
) -> tuple[Any, list[Pair]]:
    """Put the tensors of `out` in the places of those of `got`; copy no elements yet.

    This looks into dicts, lists, tuples, NamedTuples and dataclasses. Parts without tensors need
    not match, and are taken from `got`.

    Args:
        got: what has arrived. Its dicts, lists and dataclasses are changed in place.
        out: an object with tensors in the same places.
        arrives_on: returns the device that a tensor of `got` is for.

    Returns:
        The object, and a pair for each of its tensors.

    Raises:
        InvalidArgument: a tensor has no tensor in its place in the other object, or one of another
            shape, dtype or device; or tensors of `out` share memory where those of `got` are not
            one. The error names their paths, with `d` for the whole.
    """
    matcher = _Matcher(arrives_on)
    matched = matcher.match(got, out, "d")
    check_overlaps(matcher.places)
    return matched, [(place.out, place.got) for place in matcher.places]


def copy_pairs(pairs: list[Pair]) -> None:
    """Copy the second tensor of each pair into the first.

    Raises:
        RuntimeError: torch refuses.
    """
    # Tensors that were made in inference mode can't be written to outside of it.
    inference = [pair for pair in pairs if pair[0].is_inference()]
    others = [pair for pair in pairs if not pair[0].is_inference()]
    for mode, chosen in ((torch.inference_mode, inference), (torch.no_grad, others)):
        if chosen:
            targets, sources = zip(*chosen, strict=True)
            with mode():
                torch._foreach_copy_(targets, sources)


class _Matcher:
    def __init__(self, arrives_on: Callable[[torch.Tensor], torch.device]) -> None:
        self.places: list[Place] = []
        self._arrives_on = arrives_on
        # By the identities of both parts, so that shared parts stay shared and cycles end: the
        # match, and the parts, which are kept so that no others get their identities.
        self._matched: dict[tuple[int, int], tuple[Any, Any, Any]] = {}

    def match(self, got: Any, out: Any, path: str) -> Any:
        if isinstance(got, torch.Tensor) and isinstance(out, torch.Tensor):
            self._check(got, out, path)
            self.places.append(Place(out, got, path))
            return out
        known = self._matched.get((id(got), id(out)))
        if known is not None:
            return known[0]
        got_parts, out_parts = _parts(got), _parts(out)
        if type(got) is type(out) and got_parts is not None and out_parts is not None:
            self._matched[id(got), id(out)] = (got, got, out)
            matches = {
                key: self.match(
                    got_parts.get(key, _MISSING),
                    out_parts.get(key, _MISSING),
                    path + _step(got, key),
                )
                for key in {**got_parts, **out_parts}
            }
            matched = _with_parts(got, {key: matches[key] for key in got_parts})
            self._matched[id(got), id(out)] = (matched, got, out)
            return matched
        for this, that, here, there in (
            (got, out, "the message", "out"),
            (out, got, "out", "the message"),
        ):
            inner = _first_tensor(this, "", set())
            if inner is not None:
                raise InvalidArgument(
                    f"{path}{inner} is a tensor in {here} only; in {there} {path} is "
                    f"{_describe(that)}"
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
        is_expanded = any(
            n > 1 and not step for n, step in zip(out.shape, out.stride(), strict=True)
        )
        if is_expanded or shares_elements(out):
            raise InvalidArgument(
                f"{path} is an expanded tensor in out: some of its elements are one"
            )


def _parts(obj: Any) -> dict[Any, Any] | None:
    """Return the parts of `obj` by key, index or name. None: its type is not looked into."""
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
    """Return how to get from `obj` to one of its parts, in Python's syntax."""
    if isinstance(obj, (dict, list, tuple)) and not _is_named(obj):
        return f'["{key}"]' if isinstance(key, str) else f"[{key!r}]"
    return f".{key}"


def _is_named(obj: Any) -> bool:
    return isinstance(obj, tuple) and hasattr(obj, "_fields")


def _with_parts(obj: Any, parts: dict[Any, Any]) -> Any:
    """Return `obj` with other parts; the same object wherever possible."""
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
    """Return the path from `obj` to its first tensor."""
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

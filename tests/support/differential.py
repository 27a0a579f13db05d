"""A codec held against pickle: what arrives, or what is raised."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Protocol

from tests.support.canonical import canonical


class AnyCodec(Protocol):
    """A codec, as far as this module uses it."""

    def encode(self, obj: Any, /) -> Any: ...
    def decode(self, frames: list[Any], /) -> Any: ...


def by_pickle(obj: Any) -> Any:
    """Return what arrives by pickle."""
    return pickle.loads(pickle.dumps(obj, 5))  # noqa: S301


def sent(codec: AnyCodec, obj: Any) -> list[Any]:
    """Return the frames of an object in memory of the receiver's own."""
    return [bytearray(frame) for frame in codec.encode(obj)]


def through(codec: AnyCodec, obj: Any) -> Any:
    """Return what arrives by a codec."""
    return codec.decode(sent(codec, obj))


def outcome(call: Any, obj: Any) -> tuple[str, Any]:
    """Return what a call makes of an object, in a form to compare."""
    try:
        return "value", canonical(call(obj))
    except RecursionError:  # where that is depends on the interpreter
        return "too deep", None
    except Exception as error:
        return type(error).__name__, str(error)


def check(codec: AnyCodec, obj: Any, decoder: AnyCodec | None = None) -> None:
    """Raise AssertionError if a codec makes something else of an object than pickle does."""
    expected = outcome(by_pickle, obj)
    got = outcome(lambda obj: (decoder or codec).decode(sent(codec, obj)), obj)
    if got != expected:
        raise AssertionError(difference(expected, got))


def difference(expected: tuple[str, Any], got: tuple[str, Any]) -> str:
    """Return where two outcomes differ."""
    if expected[0] == got[0] == "value":
        one, other = expected[1], got[1]
        at = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
            min(len(one), len(other)),
        )
        begin = max(0, at - 6)
        expected = (f"value at {at}", one[begin : at + 6])
        got = (f"value at {at}", other[begin : at + 6])
    return f"pickle: {str(expected)[:600]}\ncodec:  {str(got)[:600]}"


def python_calls(run: Callable[[], Any]) -> set[str]:
    """Run something and return the names of the Python functions that ran for it."""
    ran: set[CodeType] = set()

    def note(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call":
            ran.add(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(before)
    return {code.co_name for code in ran - {run.__code__}}

"""What an operator sets in the environment, before what the program chose."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from shmcast._codecs.base import Codec
from shmcast._codecs.object_codec import ObjectCodec
from shmcast._codecs.pickle_codec import PickleCodec
from shmcast._endpoints.arguments import MAX_SWITCH_INTERVAL, MIN_SWITCH_INTERVAL
from shmcast.errors import InvalidArgument

WARN_AFTER = "SHMCAST_WARN_AFTER"
SLOTS = "SHMCAST_SLOTS"
SLOT_BYTES = "SHMCAST_SLOT_BYTES"
ARENA_BYTES = "SHMCAST_ARENA_BYTES"
SPILL_BYTES = "SHMCAST_SPILL_BYTES"
CODEC = "SHMCAST_CODEC"
TIMEOUT = "SHMCAST_TIMEOUT"
SET_UP_TIMEOUT = "SHMCAST_SETUP_TIMEOUT"
SWITCH_INTERVAL = "SHMCAST_SWITCH_INTERVAL"
TRACE = "SHMCAST_TRACE"

_T = TypeVar("_T")


def seconds(variable: str, chosen: float | None) -> float | None:
    """Return the operator's number of seconds, where "none" is None, else the program's.

    Raises:
        InvalidArgument: the variable is set to something else.
    """
    return _setting(variable, chosen, _seconds, 'a number of seconds >= 0, or "none"')


def switch_interval(chosen: float | None) -> float | None:
    """Return the operator's switch interval of the GIL, where "none" is None, else the program's.

    Raises:
        InvalidArgument: the variable is set to something else.
    """
    what = f'a number of seconds from {MIN_SWITCH_INTERVAL:g} to {MAX_SWITCH_INTERVAL:g}, or "none"'
    return _setting(SWITCH_INTERVAL, chosen, _interval, what)


def count(variable: str, chosen: int) -> int:
    """Return the operator's number, else the program's.

    Raises:
        InvalidArgument: the variable is set to something else.
    """
    return _setting(variable, chosen, int, "a whole number")


def codec(chosen: Codec | None) -> Codec | None:
    """Return the operator's codec, else the program's.

    Raises:
        InvalidArgument: the variable leads to none.
    """
    what = '"object", "pickle", or module:attribute of a codec or of what makes one'
    return _setting(CODEC, chosen, _codec, what)


def choice(
    variable: str, makers: Mapping[str, Callable[[], _T]], nothing: Sequence[str] = ()
) -> _T | None:
    """Return what the operator has chosen by its name; None: nothing.

    Args:
        variable: in the environment.
        makers: what makes it, by name.
        nothing: words for nothing; the first of them is told where another is wrong.

    Raises:
        InvalidArgument: there is none of that name, or it can't be made here.
    """
    text = _text(variable)
    if not text or text in nothing:
        return None
    if text not in makers:
        names = ", ".join([*makers, *nothing[:1]])
        raise InvalidArgument(
            f"the environment variable {variable}={text!r} is none of {names}; unset it to let the "
            "program choose"
        )
    try:
        return makers[text]()
    except Exception as error:
        raise InvalidArgument(
            f"the environment variable {variable}={text!r} asks for what is not here: "
            f"{type(error).__name__}: {error}; unset it to do without"
        ) from error


def _setting(variable: str, chosen: _T, parse: Callable[[str], _T], what: str) -> _T:
    text = _text(variable)
    if not text:
        return chosen
    try:
        return parse(text)
    except Exception as error:
        raise InvalidArgument(
            f"the environment variable {variable}={text!r} is not {what} ({error}); unset it to "
            "let the program choose"
        ) from error


def _text(variable: str) -> str:
    return os.environ.get(variable, "").strip()


def _seconds(text: str) -> float | None:
    if text == "none":
        return None
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError("out of range")
    return number


def _interval(text: str) -> float | None:
    seconds = _seconds(text)
    if seconds is not None and not MIN_SWITCH_INTERVAL <= seconds <= MAX_SWITCH_INTERVAL:
        raise ValueError("out of range")
    return seconds


def _codec(text: str) -> Codec:
    if text == "object":
        return ObjectCodec()
    if text == "pickle":
        return PickleCodec()
    module, _, attribute = text.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    made: Codec = found() if isinstance(found, type) or not hasattr(found, "encode") else found
    return made

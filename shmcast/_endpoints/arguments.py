"""Checks of what callers pass: numbers in range, the shape of a ring, time-outs."""

from __future__ import annotations

import math
import operator

from shmcast.errors import InvalidArgument

MAX_READERS = 4096
"""Of one ring."""
PAGE_BYTES = 4096
MIN_SWITCH_INTERVAL = 1e-6
MAX_SWITCH_INTERVAL = 1.0

_MIN_ARENA_BYTES = 256 * 1024
_MAX_BYTES = 2**40 - PAGE_BYTES  # of the arena, and of what is spilled


def check_shape(readers: int, slots: int, slot_bytes: int, label: str) -> tuple[int, int, int]:
    """Return a ring's shape; raise InvalidArgument unless it can have it: the core relies on it."""
    return (
        check_int("readers", readers, 1, MAX_READERS, label),
        *check_slots(slots, slot_bytes, label),
    )


def check_slots(slots: int, slot_bytes: int, label: str, prefix: str = "") -> tuple[int, int]:
    """Return the slots of a ring, which callers call by a prefix.

    Raises:
        InvalidArgument: it can't have these.
    """
    slots = check_int(f"{prefix}slots", slots, 2, 2**20, label)
    slot_bytes = check_int(f"{prefix}slot_bytes", slot_bytes, 128, 2**30, label)
    if slots & (slots - 1):
        raise InvalidArgument(f"{label}: {prefix}slots={slots} is not a power of two")
    if slot_bytes % 128:
        raise InvalidArgument(f"{label}: {prefix}slot_bytes={slot_bytes} is not a multiple of 128")
    return slots, slot_bytes


def check_memory(arena_bytes: int, spill_bytes: int, label: str) -> tuple[int, int]:
    """Return the sizes of an arena and a spill.

    Raises:
        InvalidArgument: a writer can't have these.
    """
    arena_bytes = check_int("arena_bytes", arena_bytes, 0, _MAX_BYTES, label)
    if 0 < arena_bytes < _MIN_ARENA_BYTES:
        raise InvalidArgument(
            f"{label}: arena_bytes={arena_bytes} is less than the smallest buffer that would "
            f"lie there, {_MIN_ARENA_BYTES}; pass 0 for no arena"
        )
    return arena_bytes, check_int("spill_bytes", spill_bytes, 0, _MAX_BYTES, label)


def check_int(name: str, value: object, low: int, high: int, label: str) -> int:
    """Return an integer as an int.

    Raises:
        InvalidArgument: it is none, or not from `low` to `high`.
    """
    number = integer(value)
    if number is None or not low <= number <= high:
        raise InvalidArgument(f"{label}: {name}={value!r} must be an integer from {low} to {high}")
    return number


def integer(value: object) -> int | None:
    """Return an integer, numpy's for instance, as an int; None for what is none, such as a bool."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or getattr(value, "dtype", None) == "bool":
        return None  # (an old numpy takes its own bools for integers, with a warning)
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_callable(name: str, value: object, label: str) -> None:
    """Raise InvalidArgument if `value`, which the caller calls `name`, can't be called."""
    if not callable(value):
        raise InvalidArgument(f"{label}: {name}={value!r} must be callable")


def check_seconds(name: str, value: float | None, label: str) -> float | None:
    """Return a duration as a float; inf where no float is as large, None for None.

    Args:
        name: what the caller calls it.
        value: anything that is a number, as numpy's are.
        label: who is told, at the start of the error; "" for nobody.

    Raises:
        InvalidArgument: it is negative, nan, or no number.
    """
    if value is None:
        return None
    try:
        seconds = math.fabs(value)  # (float() would take strings)
        is_good = value >= 0
    except OverflowError:
        seconds, is_good = math.inf, value > 0
    except (TypeError, ValueError):
        is_good = False
    if not is_good:
        who = f"{label}: " if label else ""
        raise InvalidArgument(f"{who}{name}={value!r} must be None or a number of seconds >= 0")
    return seconds


def check_switch_interval(value: float | None, label: str) -> float | None:
    """Return a switch interval of the GIL in seconds; None for None.

    Raises:
        InvalidArgument: it is no number from 1e-6 to 1: the interpreter counts in microseconds.
    """
    seconds = check_seconds("switch_interval", value, label)
    if seconds is not None and not MIN_SWITCH_INTERVAL <= seconds <= MAX_SWITCH_INTERVAL:
        raise InvalidArgument(
            f"{label}: switch_interval={value!r} must be None or a number of seconds from "
            f"{MIN_SWITCH_INTERVAL:g} to {MAX_SWITCH_INTERVAL:g}"
        )
    return seconds


def check_timeout(timeout: float | None, label: str, action: str = "send") -> float | None:
    """Return the time-out of an action as a float or None, as `check_seconds` does."""
    return check_seconds("timeout", timeout, f"{label}: {action}")

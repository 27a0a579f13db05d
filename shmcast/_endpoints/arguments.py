"""Checks of what callers pass: numbers in range, the shape of a ring, time-outs."""

from __future__ import annotations

from shmcast.errors import InvalidArgument

_MAX_READERS = 4096


def check_shape(readers: int, slots: int, slot_bytes: int, label: str) -> None:
    """Raise InvalidArgument unless a ring can have this shape: the core relies on it."""
    check_int("readers", readers, 1, _MAX_READERS, label)
    check_int("slots", slots, 2, 2**20, label)
    check_int("slot_bytes", slot_bytes, 128, 2**30, label)
    if slots & (slots - 1):
        raise InvalidArgument(f"{label}: slots={slots} is not a power of two")
    if slot_bytes % 128:
        raise InvalidArgument(f"{label}: slot_bytes={slot_bytes} is not a multiple of 128")


def check_int(name: str, value: int, low: int, high: int, label: str) -> None:
    """Raise InvalidArgument unless `value` is an integer from `low` to `high`."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgument(f"{label}: {name}={value!r} must be an integer from {low} to {high}")


def check_timeout(timeout: float | None, label: str, action: str = "send") -> None:
    """Raise InvalidArgument unless `timeout` is None or a number of seconds."""
    good = timeout is None or (isinstance(timeout, (int, float)) and timeout >= 0)
    if not good:
        raise InvalidArgument(
            f"{label}: {action}: timeout={timeout!r} must be None or a number of seconds >= 0"
        )

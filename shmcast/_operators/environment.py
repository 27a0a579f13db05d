"""What is set for shmcast in the environment, and whether endpoints would take it."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable, Iterator

from shmcast._endpoints import settings, tracing
from shmcast._endpoints.arguments import check_memory, check_slots
from shmcast._endpoints.frame_writer import (
    DEFAULT_SLOT_BYTES,
    DEFAULT_SLOTS,
    DEFAULT_SPILL_BYTES,
)
from shmcast._endpoints.waiting import ENVIRONMENT_VARIABLE, WaitPolicy
from shmcast._host import reports, shared_memory, switches
from shmcast.errors import InvalidArgument

_PREFIX = "SHMCAST_"


def problems() -> Iterator[tuple[str, str, bool]]:
    """Yield each variable that is wrong, what is wrong with it, and whether endpoints refuse it.

    Those that there are not are ignored by endpoints. They are mostly misspelt.
    """
    for variable in sorted(os.environ):
        if not variable.startswith(_PREFIX):
            continue
        if variable not in CHECKS:
            near = difflib.get_close_matches(variable, CHECKS, 1)
            yield variable, f"there is no such setting{f'; {near[0]}?' if near else ''}", False
            continue
        try:
            CHECKS[variable]()
        except InvalidArgument as error:
            yield variable, str(error), True


def all_set() -> list[str]:
    """Return each variable that is set, with its value."""
    return [f"{k}={v}" for k, v in sorted(os.environ.items()) if k.startswith(_PREFIX)]


def _slots() -> None:
    slots = settings.count(settings.SLOTS, DEFAULT_SLOTS)
    slot_bytes = settings.count(settings.SLOT_BYTES, DEFAULT_SLOT_BYTES)
    check_slots(slots, slot_bytes, "the environment")


def _memory() -> None:
    arena_bytes = settings.count(settings.ARENA_BYTES, 0)
    spill_bytes = settings.count(settings.SPILL_BYTES, DEFAULT_SPILL_BYTES)
    check_memory(arena_bytes, spill_bytes, "the environment")


def _engine(variable: str, engine: str) -> Callable[[], object]:
    return functools.partial(switches.is_on, variable, f"to have {engine} use shmcast")


def _seconds(variable: str) -> Callable[[], object]:
    return functools.partial(settings.seconds, variable, None)


CHECKS: dict[str, Callable[[], object]] = {
    ENVIRONMENT_VARIABLE: WaitPolicy.from_environment,
    settings.TIMEOUT: _seconds(settings.TIMEOUT),
    settings.SET_UP_TIMEOUT: _seconds(settings.SET_UP_TIMEOUT),
    settings.WARN_AFTER: _seconds(settings.WARN_AFTER),
    settings.SWITCH_INTERVAL: functools.partial(settings.switch_interval, None),
    settings.SLOTS: _slots,
    settings.SLOT_BYTES: _slots,
    settings.ARENA_BYTES: _memory,
    settings.SPILL_BYTES: _memory,
    settings.CODEC: functools.partial(settings.codec, None),
    settings.TRACE: tracing.chosen,
    shared_memory.DUMP_VARIABLE: shared_memory.dumps_segments,
    reports.VARIABLE: reports.are_wanted,
    "SHMCAST_VLLM": _engine("SHMCAST_VLLM", "vLLM"),
    "SHMCAST_SGLANG": _engine("SHMCAST_SGLANG", "SGLang"),
}
"""What raises InvalidArgument unless a variable's value can be, by variable: all that there are."""

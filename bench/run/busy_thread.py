"""What may run inside a reader while it receives: a thread of Python that computes all the time."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

INTERVALS: dict[str, float | None] = {
    "a busy thread": None,
    "a busy thread, 1 ms": 1e-3,
    "a busy thread, 0.1 ms": 1e-4,
}
"""By the name of a case's `inside`: the switch interval of the GIL in s; None: the interpreter's
own, which is 5 ms."""


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Have what a case wants inside its readers; "" for nothing."""
    if not name:
        yield
        return
    before = sys.getswitchinterval()
    interval = INTERVALS[name]
    if interval is not None:
        sys.setswitchinterval(interval)
    is_over = threading.Event()
    thread = threading.Thread(target=_compute, args=(is_over,), name=name)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        sys.setswitchinterval(before)


def _compute(is_over: threading.Event) -> None:
    while not is_over.is_set():
        sorted((k * 7919) % 4093 for k in range(100))

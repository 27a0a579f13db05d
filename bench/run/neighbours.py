"""What runs beside a crew while its case is measured: other engines, idle or busy; a busy loop."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import shmcast
from bench.run.measure import schedule

_CONTEXT = multiprocessing.get_context("spawn")
_START_SECONDS = 60.0
_END_SECONDS = 10.0
_GAP_NS = 1_000_000


class NoNeighbour(Exception):
    """A process beside the crew did not come up."""


@contextlib.contextmanager
def beside(name: str) -> Iterator[None]:
    """Start what a case wants beside it, one of `NEIGHBOURS` or "" for nothing, and end it.

    Raises:
        NoNeighbour: a process did not come up.
    """
    processes: list[BaseProcess] = []
    controls: list[Connection] = []  # whoever finds the other end gone ends
    try:
        for function, args in _WHO[name]:
            mine, its = _CONTEXT.Pipe()
            # (Not a daemon: it may have a child. It ends when this process does.)
            processes.append(_CONTEXT.Process(target=function, args=(its, *args)))
            processes[-1].start()
            its.close()
            controls.append(mine)
            if not mine.poll(_START_SECONDS):
                raise NoNeighbour(f"{name}: no answer in {_START_SECONDS:g} s")
            mine.recv()
        yield
    finally:
        for control in controls:
            control.close()
        for process in processes:
            process.join(_END_SECONDS)  # (in order: a kill could leave a segment's name)
            process.kill()
            process.join()


def _pair(control: Connection, is_busy: bool) -> None:
    """Write to a reader in a process of its own: every millisecond, or never."""
    with shmcast.Writer(1) as writer:
        _CONTEXT.Process(target=_read, args=(writer.handle,)).start()
        writer.wait_ready(_START_SECONDS)
        control.send("ready")
        while not control.poll(0 if is_busy else None):
            schedule(time.monotonic_ns() + _GAP_NS, None)
            writer.send(0)


def _read(handle: shmcast.Handle) -> None:
    """Receive until the writer has ended, in whichever way."""
    with shmcast.Reader(handle, 0) as reader, contextlib.suppress(shmcast.ShmcastError):
        while True:
            reader.recv()


def _loop(control: Connection) -> None:
    """Compute for ever on one CPU of those that the crew may use."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    control.send("ready")
    while not control.poll(0):
        schedule(time.monotonic_ns() + _GAP_NS, None)


_WHO: dict[str, list[tuple[Callable[..., None], tuple[bool, ...]]]] = {
    "": [],
    "two idle pairs": [(_pair, (False,)), (_pair, (False,))],
    "a busy pair": [(_pair, (True,))],
    "a busy loop": [(_loop, ())],
}

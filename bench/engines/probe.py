"""A plugin of vLLM's that notes when messages are enqueued and dequeued, in every process.

For each end of a queue there is a file, mapped into memory: a count, then for each message the time
of the call and of its return, on CLOCK_MONOTONIC, and the CPU time that was spent in all calls so
far, also in those that raised; in ns. When a call raises, its process notes the time, and what it
was.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = "SHMCAST_BENCH_PROBE"
"""The variable that says where the files are."""

_RAISED = "raised"
_MESSAGES = 1 << 20  # of one file; what comes later is not noted
_FIELDS = 3  # of a message
_MODULE = "vllm.distributed.device_communicators.shm_broadcast"


def write_plugin(folder: Path) -> None:
    """Make a folder in PYTHONPATH one in which vLLM finds this plugin."""
    about = folder / "shmcast_bench_probe-0.dist-info"
    about.mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: shmcast-bench-probe\nVersion: 0\n"
    (about / "METADATA").write_text(metadata)
    entry = f"[vllm.general_plugins]\nshmcast_bench_probe = {__name__}:install\n"
    (about / "entry_points.txt").write_text(entry)


def install() -> None:
    """Note the messages of this process's queues; whatever their class is, it is in place then."""
    from shmcast.compat import vllm

    vllm.plugin()
    import importlib

    queue = importlib.import_module(_MODULE).MessageQueue
    if not hasattr(queue, "is_probed"):
        queue.is_probed = True
        queue.enqueue = _noted(queue.enqueue, "writer")
        queue.dequeue = _noted(queue.dequeue, "reader")


class _Notes:
    """Writes the file of one end."""

    def __init__(self, path: Path) -> None:
        with path.open("w+b") as file:
            file.truncate(8 * (1 + _FIELDS * _MESSAGES))
            self._times = memoryview(mmap.mmap(file.fileno(), 0)).cast("q")
        self._spent = 0

    def spend(self, began: int) -> None:
        """Count the CPU time of this thread since `began`."""
        self._spent += time.thread_time_ns() - began

    def add(self, called: int, returned: int) -> None:
        count = self._times[0]
        if count < _MESSAGES:
            for at, ns in enumerate((called, returned, self._spent), 1 + _FIELDS * count):
                self._times[at] = ns
            self._times[0] = count + 1


def _noted(method: Callable[..., Any], role: str) -> Callable[..., Any]:
    ends: dict[int, _Notes] = {}  # by queue

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        notes = ends.get(id(self))
        if notes is None:
            notes = ends[id(self)] = _Notes(_path(_name_of(self.handle), role))
        began = time.thread_time_ns()
        called = time.monotonic_ns()
        try:
            result = method(self, *args, **kwargs)
        except Exception as error:
            notes.spend(began)
            _note_error(error)
            raise
        returned = time.monotonic_ns()
        notes.spend(began)
        notes.add(called, returned)
        return result

    return call


def _note_error(error: Exception) -> None:
    path = Path(os.environ[FOLDER]) / f"{os.getpid()}.{_RAISED}"
    if not path.exists():
        note = json.dumps([time.monotonic(), f"{type(error).__name__}: {error}"])
        path.with_suffix(".part").write_text(note)
        path.with_suffix(".part").replace(path)


def first_error(folder: Path, pid: int) -> tuple[float, str] | None:
    """Return when, on CLOCK_MONOTONIC, a call of a process first raised, and what; None: none."""
    path = folder / f"{pid}.{_RAISED}"
    if not path.exists():
        return None
    seconds, what = json.loads(path.read_text())
    return seconds, what


def _name_of(handle: Any) -> str:
    ring = getattr(handle, "ring", None)
    name: str = handle.buffer_handle[3] if ring is None else ring.name
    return name.strip("/")


def _path(queue: str, role: str) -> Path:
    return Path(os.environ[FOLDER]) / f"{queue}.{role}.{os.getpid()}.{os.getppid()}"


@dataclass(frozen=True)
class End:
    """One end of a queue, as its file tells.

    Attributes:
        queue: its name.
        is_writer: whether it is the writer's.
        pid: of its process.
        parent: of that process.
        times: its file, as integers.
    """

    queue: str
    is_writer: bool
    pid: int
    parent: int
    times: Any

    @property
    def count(self) -> int:
        """Messages so far."""
        return int(self.times[0])

    def messages(self, begin: int, end: int) -> Any:
        """Return the times of messages `begin` to `end`, a row each: call, return, CPU so far."""
        times = self.times[1 + _FIELDS * begin : 1 + _FIELDS * end]
        return np.array(times).reshape(-1, _FIELDS)


def ends(folder: Path) -> list[End]:
    """Return the ends that the processes of an engine have noted."""
    found = []
    for path in sorted(folder.iterdir()):
        queue, role, pid, parent = path.name.rsplit(".", 3)
        times = np.memmap(path, dtype=np.int64, mode="r")
        found.append(End(queue, role == "writer", int(pid), int(parent), times))
    return found


@dataclass
class Link:
    """A queue of which the delays are wanted: its writer, and its readers.

    Attributes:
        writer: its end.
        readers: theirs.
    """

    writer: End
    readers: list[End]

    def delays_us(self, begin: int, end: int) -> Any:
        """Return for each message how long it took from the call to the last reader's return.

        Counted from when all of them were there: a reader that comes late is not the queue's fault.
        """
        sent = self.writer.messages(begin, end)
        read = np.stack([reader.messages(begin, end) for reader in self.readers])
        calls = np.maximum(sent[:, 0], read[:, :, 0].max(axis=0))
        return (read[:, :, 1].max(axis=0) - calls) / 1e3

    def enqueue_us(self, begin: int, end: int) -> Any:
        """Return for each message how long the writer's call took."""
        sent = self.writer.messages(begin, end)
        return (sent[:, 1] - sent[:, 0]) / 1e3

    def waiting_cpu(self, begin: int, end: int) -> float:
        """Return the share of a CPU that a reader spends in its calls, the mean of the readers.

        From the return of message `begin` to that of the last one before `end`, so that all calls
        are whole.
        """
        shares = []
        for reader in self.readers:
            first, *_, last = reader.messages(begin, end)
            shares.append((last[2] - first[2]) / (last[1] - first[1]))
        return float(np.mean(shares))


def links(found: list[End]) -> tuple[Link, Link]:
    """Return the queue from an engine's core to its workers, and that of the first one's replies.

    The workers are children of the core.
    """
    of_queue: dict[str, list[End]] = {}
    for end in found:
        of_queue.setdefault(end.queue, []).append(end)
    calls: list[Link] = []
    replies: list[Link] = []
    for its in of_queue.values():
        writers = [end for end in its if end.is_writer]
        readers = [end for end in its if not end.is_writer]
        if writers and readers:
            link = Link(writers[0], readers)
            if all(reader.parent == link.writer.pid for reader in readers):
                calls.append(link)
            elif readers[0].pid == link.writer.parent:
                replies.append(link)
    [call] = calls
    return call, max(replies, key=lambda link: link.writer.count)

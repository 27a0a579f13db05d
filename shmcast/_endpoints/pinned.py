"""A pinned arena: registered with CUDA, and not used again while a copy from it is in flight.

Imported once it is asked for, since it needs torch.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections import deque
from typing import Any, Protocol, cast

import torch

from shmcast import _core
from shmcast.errors import InvalidArgument, SharedMemoryFull, ShmcastError

_READ_ONLY = 8  # cudaHostRegisterReadOnly
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation


class Event(Protocol):
    """A point in a stream's work: `torch.cuda.Event`, as far as it is needed here."""

    def query(self) -> bool:
        """Return whether all work before it is done."""

    def synchronize(self) -> None:
        """Wait until all work before it is done."""


class Cuda:
    """What a pinned arena asks of CUDA; tests replace it."""

    def why_not(self) -> str | None:
        """Return why memory can't be pinned in this process; None: it can."""
        if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
            return f"this torch ({torch.__version__}) is built without CUDA"
        return None if torch.cuda.is_available() else "torch finds no CUDA device"

    def register(self, address: int, nbytes: int, read_only: bool) -> int:
        """Pin memory; return CUDA's error code, 0 for success."""
        torch.cuda.init()  # type: ignore[no-untyped-call]
        runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        return int(runtime.cudaHostRegister(address, nbytes, _READ_ONLY if read_only else 0))

    def unregister(self, address: int) -> None:
        """Unpin memory."""
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]

    def record(self, stream: Any = None) -> Event:
        """Return an event at the end of a stream's work; None: of the current stream's."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream() if stream is None else stream)
        return cast("Event", event)


cuda = Cuda()
"""The CUDA in use."""


class PinnedArena:
    """Keeps memory of an arena from being used again while the GPU may read it.

    Args:
        mapping: the arena in this process; it is registered for as long as it exists.
        nbytes: its size.
        writable: this process is the writer's.
        label: how errors name the endpoint.

    Raises:
        InvalidArgument: there is no CUDA here.
        SharedMemoryFull: shared memory has no room for all of the arena.
        ShmcastError: CUDA refuses.
    """

    def __init__(self, mapping: _core.Mapping, nbytes: int, writable: bool, label: str) -> None:
        why = cuda.why_not()
        if why is not None:
            raise InvalidArgument(f"{label}: pin=True: {why}; leave pin out here")
        if writable and not mapping.reserve(nbytes):
            raise SharedMemoryFull(
                errno.ENOSPC,
                f"{label}: pin=True reserves all of the arena at once, {nbytes} bytes, and "
                "there is not so much shared memory: enlarge it (docker run --shm-size=...), or "
                "pass a smaller arena_bytes",
            )
        address = mapping.address
        error = cuda.register(address, nbytes, not writable)
        if error:
            hint = " (the limit of locked memory? ulimit -l)" if error == _OUT_OF_MEMORY else ""
            raise ShmcastError(
                f"{label}: pin=True: cudaHostRegister of {nbytes} bytes failed with error "
                f"{error}{hint}; pass a smaller arena_bytes, or leave pin out"
            )
        self._streams: list[tuple[int, Any]] = []
        self._in_flight: deque[tuple[list[Event], _core.Claim]] = deque()
        self._lock = threading.Lock()  # views end in any thread
        mapping.keeper = self._keep
        weakref.finalize(mapping, _end, cuda, address, self._in_flight)

    def record_stream(self, address: int, stream: Any) -> None:
        """Note that work on `stream` reads the view at `address`, to wait for that, too."""
        with self._lock:
            self._streams.append((address, stream))

    def release_finished(self) -> None:
        """Give back the memory that is no longer in flight; cheap when none is."""
        while self._in_flight:
            with self._lock:
                events, _ = self._in_flight[0]
                if not all(event.query() for event in events):
                    return
                self._in_flight.popleft()

    def _keep(self, claim: _core.Claim, address: int, nbytes: int) -> None:
        """Keep `claim`, and so the memory, until the GPU has done what reads it.

        Called when the last view of that memory in this process is gone.
        """
        with self._lock:
            here = [e for e in self._streams if address <= e[0] < address + nbytes]
            self._streams = [e for e in self._streams if e not in here]
            events = [cuda.record(), *(cuda.record(stream) for _, stream in here)]
            self._in_flight.append((events, claim))


def _end(cuda: Cuda, address: int, in_flight: deque[tuple[list[Event], _core.Claim]]) -> None:
    for events, _ in in_flight:
        for event in events:
            event.synchronize()
    in_flight.clear()
    cuda.unregister(address)

"""A gloo group of one broadcaster's source and leaders, which nothing else uses.

It is made on a store of the source's own and registered nowhere. `new_group` would not do: with
`use_local_synchronization` torch names a group after how many this process knows already, which
differs between leaders. Nor would the default group's store: the ranks need not have one in common,
and it ends with the rank that serves it. Imported once torch is in use.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore

CONNECT_SECONDS = 60.0
"""How long the members of a new group wait for one another."""

_FOR_EVER = timedelta(days=3650)  # slow is not dead; who has died is known otherwise
_SLICE = timedelta(seconds=0.25)  # a leader's wait returns so often, to look whether to go on


def serve_store() -> TCPStore:
    """Make the store of a source, which its leaders reach at the store's `port`.

    Raises:
        RuntimeError: it can't listen.
    """
    return _store("127.0.0.1", 0, is_server=True)


def find_store(host: str, port: int) -> TCPStore:
    """Return the store that a source serves.

    Raises:
        RuntimeError: it is not to be reached.
    """
    return _store(host, port, is_server=False)


def _store(host: str, port: int, is_server: bool) -> TCPStore:
    patience = timedelta(seconds=CONNECT_SECONDS)
    return TCPStore(host, port, is_master=is_server, timeout=patience, wait_for_workers=False)


class RelayGroup:
    """A gloo group of its own. Making one is a collective of its members.

    Args:
        store: the source's.
        key: the same on all members, and no other group's.
        rank: this process's; 0 is the source.
        size: the number of members.

    Raises:
        RuntimeError: gloo could not connect them all.
    """

    def __init__(self, store: TCPStore, key: str, rank: int, size: int) -> None:
        self._group: Any = dist.ProcessGroupGloo(
            PrefixStore(f"shmcast/{key}", store),
            rank,
            size,
            timeout=timedelta(seconds=CONNECT_SECONDS),
        )
        self._options = dist.BroadcastOptions()
        self._options.rootRank = 0
        self._options.timeout = _FOR_EVER
        self._pending: deque[Any] = deque()

    def broadcast(self, tensor: torch.Tensor) -> Any:
        """Begin to broadcast a contiguous tensor from rank 0; return torch's `Work`."""
        pending = self._pending
        while pending and pending[0].is_completed():
            pending.popleft()
        work = self._group.broadcast([tensor], self._options)
        pending.append(work)
        return work

    def wait(self, work: Any) -> bool:
        """Wait a while; return whether the work is done.

        Raises:
            RuntimeError: it has failed.
        """
        try:
            work.wait(_SLICE)
        except RuntimeError:
            if not work.is_completed():
                return False
            work.wait()  # raises its error, unless it was completed just now
        return True

    def retire(self) -> None:
        """End the group as far as possible: gloo can't be told to stop waiting.

        While one of its collectives is not over, the group is kept, because its end would wait for
        it; also when the interpreter exits.
        """
        with _retired_lock:
            _retired.append(self)
        collect_finished()

    def is_over(self) -> bool:
        """Return whether all collectives that were begun have ended."""
        return all(work.is_completed() for work in self._pending)


_retired: list[RelayGroup] = []
_retired_lock = threading.Lock()


def collect_finished() -> None:
    """Let go of the retired groups whose collectives are all over."""
    with _retired_lock:
        over = [group for group in _retired if group.is_over()]
        _retired[:] = [group for group in _retired if group not in over]
    over.clear()  # (their threads end; not under the lock)


@atexit.register
def leak_at_exit() -> None:
    """Leak the groups that can't end, for the interpreter's exit would wait for them."""
    collect_finished()
    for group in _retired:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))

"""All-gathers of a program's own, for broadcasters without a process group."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

from torch._C._distributed_c10d import FileStore, Store

from shmcast import ShmBroadcaster
from tests.support.fake_nodes import on_host

SECONDS = timedelta(seconds=30)


def file_store(path: str) -> FileStore:
    """Return the store of a file, the same for all ranks."""
    store = FileStore(path, -1)
    store.set_timeout(SECONDS)
    return store


class StoreExchange:
    """An all-gather by a store of torch's, with a fault.

    Args:
        store: through which the ranks reach one another.
        rank: this process's.
        size: the number of ranks.
        spoil: is given the number of the call, from 1, and what was gathered, and returns what the
            call is to return; None: there is no fault.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        size: int,
        spoil: Callable[[int, list[bytes]], Any] | None = None,
    ) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._spoil = spoil
        self.calls = 0

    def __call__(self, mine: bytes) -> list[bytes]:
        """Return what every rank has passed."""
        self.calls += 1
        self._store.set(f"{self.calls}/{self._rank}", cast("str", mine))  # (bytes will do)
        gathered = [self._store.get(f"{self.calls}/{rank}") for rank in range(self._size)]
        if self._spoil is not None:
            gathered = self._spoil(self.calls, gathered)
        return gathered


def over_store(rank: int, hosts: tuple[str, ...], path: str, **options: Any) -> ShmBroadcaster:
    """Make a broadcaster of ranks that are on these hosts."""
    with on_host(hosts[rank]):
        exchange = StoreExchange(file_store(path), rank, len(hosts))
        return ShmBroadcaster.over(rank, len(hosts), exchange, **options)

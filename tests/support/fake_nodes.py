"""Ranks of one host that take themselves for ranks on several: for tests without root.

Only the test of who shares memory is replaced; the rings, the relay and its network are real.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from shmcast import ShmBroadcaster
from shmcast._nodes import topology

_obstacle_to = topology.obstacle_to


@contextlib.contextmanager
def on_host(name: str) -> Iterator[None]:
    """Take this process's /dev/shm for that of the host `name`."""
    originals = topology.obstacle_to, topology.host_name, topology.machine_id
    topology.obstacle_to = lambda card: _obstacle_to(card) if card.host == name else "elsewhere"
    topology.host_name = topology.machine_id = lambda: name
    try:
        yield
    finally:
        topology.obstacle_to, topology.host_name, topology.machine_id = originals


ONE = ("a", "a", "a", "a")
TWO = ("a", "a", "b", "b")
SPREADS = [TWO, ("a", "b", "c", "d"), ("a", "b", "b", "b"), ("a", "b", "a", "c")]


def opened(rank: int, hosts: tuple[str, ...], **options: Any) -> ShmBroadcaster:
    """Open a broadcaster of ranks that are on these hosts."""
    with on_host(hosts[rank]):
        return ShmBroadcaster(**options)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "shmcast-relay"]

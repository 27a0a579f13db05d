"""The transports that can be compared, each behind the interface of base.py.

Importing this package imports no peer's library: an adapter does that when it is made.
"""

from __future__ import annotations

import functools
import importlib

from bench.transports.base import Peer

_ADAPTERS = (
    "broadcaster",
    "endpoints",
    "collectives",
    "tensor_dicts",
    "multiproc",
    "zmq_ipc",
    "iceoryx",
    "kickmsg_region",
    "mpi",
    "ray_channel",
    "vllm_queue",
    "sglang_queue",
)


@functools.cache
def peers() -> dict[str, Peer]:
    """All of them by name, in the order of tables."""
    modules = [importlib.import_module(f"bench.transports.{name}") for name in _ADAPTERS]
    return {peer.name: peer for module in modules for peer in module.PEERS}


def peer(name: str) -> Peer:
    """The one of that name.

    Raises:
        ValueError: there is none; says which there are.
    """
    try:
        return peers()[name]
    except KeyError:
        raise ValueError(f"transport {name!r} is none of {', '.join(peers())}") from None

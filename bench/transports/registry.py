"""All transports by name.

Importing this file imports no peer's library: an adapter does that when it is made.
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
    "subetha_ring",
    "mpi",
    "ray_channel",
    "vllm_queue",
    "sglang_queue",
)


@functools.cache
def peers() -> dict[str, Peer]:
    """Return all transports by name, in the order of tables."""
    modules = [importlib.import_module(f"bench.transports.{name}") for name in _ADAPTERS]
    return {peer.name: peer for module in modules for peer in module.PEERS}


def peer(name: str) -> Peer:
    """Return the transport of a name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    try:
        return peers()[name]
    except KeyError:
        raise ValueError(f"transport {name!r} is none of {', '.join(peers())}") from None

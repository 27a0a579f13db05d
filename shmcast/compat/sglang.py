"""SGLang's message queue, `broadcast_pyobj`, `point_to_point_pyobj` and groups over shmcast.

With `SHMCAST_SGLANG=1` in the environment, every process of SGLang uses them: the requests that a
scheduler hands to its ranks in each iteration, those between pipeline stages, what groups of ranks
broadcast and gather, and their barriers. Or call `install()` yourself, in every process and before
there is a scheduler.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

from shmcast.compat._queues.interface import Interface
from shmcast.compat._queues.stand_in import Functions, StandIn

ENVIRONMENT_VARIABLE = "SHMCAST_SGLANG"
"""`1`: SGLang's plugin puts shmcast in place."""

_MODULE = "sglang.srt.distributed.device_communicators.shm_broadcast"
_BROADCAST = "sglang.srt.utils.common:broadcast_pyobj"
_POINT_TO_POINT = "sglang.srt.utils.common:point_to_point_pyobj"
_BARRIER = "sglang.srt.distributed.parallel_state:GroupCoordinator.barrier"
_ALL_GATHER = "sglang.srt.distributed.parallel_state:GroupCoordinator.all_gather_object"

_GROUP = ("pg", "max_chunk_bytes", "max_chunks", "writer_rank")
_MADE = ("n_reader", "n_local_reader", "local_reader_ranks", "max_chunk_bytes", "max_chunks")

KNOWN = Interface(
    methods={
        "__init__": (("self", *_MADE, "connect_ip"),),
        "acquire_read": (("self",),),
        "acquire_write": (("self",),),
        "broadcast_object": (("self", "obj"),),
        "create_from_handle": (("handle", "rank"),),
        "create_from_process_group": (_GROUP,),
        "dequeue": (("self",),),
        "enqueue": (("self", "obj"),),
        "export_handle": (("self",),),
        "wait_until_ready": (("self",),),
    },
    handle=(
        (
            "connect_ip", "local_reader_ranks", "buffer", "local_subscribe_port",
            "remote_subscribe_port",
        ),
    ),
)  # fmt: skip
"""The queue that this version of shmcast can stand in for."""

KNOWN_FUNCTIONS = {
    _BROADCAST: ("data", "rank", "dist_group", "src", "force_cpu_device"),
    _POINT_TO_POINT: ("data", "rank", "group", "src", "dst", "async_send"),
    _BARRIER: ("self",),
    _ALL_GATHER: ("self", "obj"),
}
"""The functions and methods, with their parameters."""


def _settings(own: ModuleType) -> dict[str, Any]:
    return {
        "long_wait": "No available block found in %s second. ",  # in SGLang's words
        "long_wait_level": logging.WARNING,
        "warning_interval": lambda: own.SGLANG_RINGBUFFER_WARNING_INTERVAL,
    }


def _make_functions(own: Functions) -> Functions:
    from shmcast.compat._groups.broadcasters import Broadcasters
    from shmcast.compat._groups.coordinator import all_gather_object_over, barrier_over
    from shmcast.compat._groups.pyobj import Broadcast, PointToPoint

    broadcasters = Broadcasters()
    return {
        _BROADCAST: Broadcast(own[_BROADCAST], broadcasters),
        _POINT_TO_POINT: PointToPoint(own[_POINT_TO_POINT]),
        _BARRIER: barrier_over(broadcasters, own[_BARRIER]),
        _ALL_GATHER: all_gather_object_over(broadcasters, own[_ALL_GATHER]),
    }


_stand_in = StandIn(
    "SGLang",
    __name__,
    ENVIRONMENT_VARIABLE,
    _MODULE,
    KNOWN,
    _settings,
    KNOWN_FUNCTIONS,
    _make_functions,
)


def install() -> bool:
    """Put shmcast in the place of SGLang's queue and functions, in this process; idempotent.

    Returns:
        Whether they are in place. If this SGLang has others than shmcast knows, they are not, and
        a warning says what is different.

    Raises:
        ImportError: there is no SGLang.
    """
    return _stand_in.install()


def plugin() -> None:
    """Install it if `SHMCAST_SGLANG=1`; SGLang calls this in every process. Never raises."""
    _stand_in.plugin()


def broadcast_pyobj(
    data: list[Any],
    rank: int,
    dist_group: Any = None,
    src: int = 0,
    force_cpu_device: bool = True,
) -> list[Any]:
    """Return the source's list, on every rank of a group; a collective.

    See SGLang's own for the arguments. Ranks that can't share memory get it over the network.

    Raises:
        ShmcastError: what `ShmBroadcaster.broadcast_object` raises.
    """
    function = _stand_in.functions[_BROADCAST]
    received: list[Any] = function(data, rank, dist_group, src, force_cpu_device)
    return received


def point_to_point_pyobj(
    data: list[Any],
    rank: int,
    group: Any = None,
    src: int = 0,
    dst: int = 1,
    async_send: bool = False,
) -> list[Any]:
    """Send a list from one rank to another one.

    See SGLang's own for the arguments, and for what is returned. Between hosts, that is used.

    Raises:
        ShmcastError: what `Writer.send` and `Reader.recv` raise.
    """
    received: list[Any] = _stand_in.functions[_POINT_TO_POINT](
        data, rank, group, src, dst, async_send
    )
    return received


def __getattr__(name: str) -> Any:
    """Return `MessageQueue` or `Handle`; a process that unpickles a handle asks for it so."""
    return _stand_in.attribute(name)

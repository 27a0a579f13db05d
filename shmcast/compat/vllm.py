"""vLLM's message queue over shmcast: the same tokens, sooner.

With `SHMCAST_VLLM=1` in the environment, every process of vLLM uses it: its engine cores' calls to
workers, their replies, and what groups of ranks broadcast. Or call `install()` yourself, in every
process and before there is an engine.
"""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

from shmcast.compat._queues.interface import Interface
from shmcast.compat._queues.stand_in import StandIn

ENVIRONMENT_VARIABLE = "SHMCAST_VLLM"
"""`1`: vLLM's plugin puts shmcast in place."""

_MODULE = "vllm.distributed.device_communicators.shm_broadcast"

_MADE = (
    "self",
    "n_reader",
    "n_local_reader",
    "local_reader_ranks",
    "max_chunk_bytes",
    "max_chunks",
)
_FIELDS = (
    "local_reader_ranks", "buffer_handle", "local_subscribe_addr", "local_notify_addr",
    "remote_subscribe_addr", "remote_addr_ipv6",
)  # fmt: skip
_GROUP = ("pg", "max_chunk_bytes", "max_chunks")

# Of vLLM 0.27 to 0.33.
KNOWN = Interface(
    methods={
        "__init__": (
            (*_MADE, "connect_ip"),
            (*_MADE, "connect_ip", "enable_shm_tensor_arena"),
        ),
        "acquire_read": (("self", "timeout", "indefinite"),),
        "acquire_write": (("self", "timeout"),),
        "broadcast_object": (("self", "obj"),),
        "create_from_handle": (("handle", "rank"),),
        "create_from_process_group": (
            (*_GROUP, "writer_rank", "external_writer_handle", "blocking"),
        ),
        "create_from_process_group_single_reader": ((*_GROUP, "reader_rank", "blocking"),),
        "dequeue": (("self", "timeout", "indefinite"),),
        "enqueue": (("self", "obj", "timeout"),),
        "export_handle": (("self",),),
        "recv": (("socket", "timeout"),),
        "shutdown": (("self",),),
        "wait_until_ready": (("self",),),
    },
    handle=(_FIELDS, (*_FIELDS, "tensor_arena_handle")),
)
"""What this version of shmcast can stand in for."""

_ARENA_BYTES = 8 * 256 * 1024 * 1024  # as much as vLLM's own; memory is taken when it is needed


def _settings(own: ModuleType) -> dict[str, Any]:
    return {
        "long_wait": own.LONG_WAIT_TIME_LOG_MSG,
        "long_wait_level": logging.INFO,  # as vLLM does
        "warning_interval": lambda: own.VLLM_RINGBUFFER_WARNING_INTERVAL,
        "arena_bytes": _ARENA_BYTES,
    }


_stand_in = StandIn("vLLM", __name__, ENVIRONMENT_VARIABLE, _MODULE, KNOWN, _settings)


def install() -> bool:
    """Put shmcast in the place of vLLM's message queue, in this process; idempotent.

    Queues that there are already stay what they are.

    Returns:
        Whether it is in place. If this vLLM's queue is one that shmcast does not know, it is not,
        and a warning says what is different.

    Raises:
        ImportError: there is no vLLM.
    """
    return _stand_in.install()


def plugin() -> None:
    """Install it if `SHMCAST_VLLM=1`; vLLM calls this in every process. Never raises."""
    _stand_in.plugin()


def __getattr__(name: str) -> Any:
    """Return `MessageQueue` or `Handle`; a process that unpickles a handle asks for it so."""
    return _stand_in.attribute(name)

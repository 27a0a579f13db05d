"""vLLM's message queue over shmcast: the same tokens, sooner.

With `SHMCAST_VLLM=1` in the environment, every process of vLLM uses it: its engine cores' calls to
workers, their replies, and what groups of ranks broadcast. Or call `install()` yourself, in every
process and before there is an engine.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
from typing import Any

from shmcast.compat._queues.interface import Engine, Interface, replace_everywhere, version_of

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

_log = logging.getLogger("vllm.shmcast")  # (vLLM's log has what is under its name)


def install() -> bool:
    """Put shmcast in the place of vLLM's message queue, in this process; idempotent.

    Queues that there are already stay what they are.

    Returns:
        Whether it is in place. If this vLLM's queue is one that shmcast does not know, it is not,
        and a warning says what is different.

    Raises:
        ImportError: there is no vLLM.
    """
    from shmcast.compat._queues.stacks import offer_stacks

    own = importlib.import_module(_MODULE)
    queue, handle = _own_classes()
    if unknown := KNOWN.unknown_in(queue, handle):
        _log.warning(
            "shmcast: vLLM %s has a MessageQueue that this version of shmcast does not know (%s); "
            "vLLM's own is used",
            version_of("vllm"),
            "; ".join(unknown),
        )
        return False
    replace_everywhere("vllm", queue, _classes()["MessageQueue"])
    assert own.MessageQueue is _classes()["MessageQueue"]  # noqa: S101
    offer_stacks()
    return True


def plugin() -> None:
    """Install it if `SHMCAST_VLLM=1`; vLLM calls this in every process. Never raises."""
    if os.environ.get(ENVIRONMENT_VARIABLE) != "1":
        return
    try:
        is_installed = install()
    except Exception:
        _log.warning("shmcast can't be put in place; vLLM's own queue is used", exc_info=True)
    else:
        if is_installed:
            _log.info("shmcast carries the messages between vLLM's processes")


@functools.cache
def _own_classes() -> tuple[type[Any], type[Any]]:
    """Return vLLM's classes: once, as its name for the first may lead to ours afterwards."""
    own = importlib.import_module(_MODULE)
    return own.MessageQueue, own.Handle


@functools.cache
def _classes() -> dict[str, type[Any]]:
    """Return our classes by name, which need vLLM's as bases."""
    from shmcast.compat._queues.ring_queue import queue_class

    own = importlib.import_module(_MODULE)
    queue, handle = _own_classes()
    engine = Engine(
        name="vLLM",
        queue=queue,
        handle=handle,
        logger=own.logger,
        long_wait=own.LONG_WAIT_TIME_LOG_MSG,
        long_wait_level=logging.INFO,
        warning_interval=own.VLLM_RINGBUFFER_WARNING_INTERVAL,
        arena_bytes=_ARENA_BYTES,
    )
    made = queue_class(engine, __name__)
    return dict(zip(("MessageQueue", "Handle"), made, strict=True))


def __getattr__(name: str) -> Any:
    """Return `MessageQueue` or `Handle`; a process that unpickles a handle asks for it so."""
    if name in ("MessageQueue", "Handle"):
        return _classes()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

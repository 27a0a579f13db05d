"""SGLang's fork of an older `MessageQueue` of vLLM's, and what its scheduler sends requests by."""

from __future__ import annotations

from typing import Any

from bench.transports import vllm_queue
from bench.transports.base import Peer, Seat, Transport


class Queue(vllm_queue.Queue):
    """`MessageQueue.broadcast_object`, as SGLang has it."""

    module = "sglang.srt.distributed.device_communicators.shm_broadcast"


class BroadcastPyobj(Transport):
    """`broadcast_pyobj` over a gloo group: two collectives, one for the size."""

    def __init__(self, seat: Seat) -> None:
        from sglang.srt.utils import broadcast_pyobj

        from bench.transports import process_group

        process_group.join(seat)
        self._broadcast = broadcast_pyobj
        self._rank = seat.rank

    def broadcast(self, obj: Any, /) -> Any:
        [received] = self._broadcast([obj], self._rank)
        return received


_ENVIRONMENT = {"PYTHONWARNINGS": "ignore:The given NumPy array is not writable"}
_INSTALL = (
    "pip install --no-deps sglang==0.5.23 && "
    "pip install aiohttp ipython msgspec orjson packaging pillow psutil pybase64 pydantic pyzmq "
    "requests starlette tqdm triton"
)

PEERS = (
    Peer(
        name="SGLang",
        make=Queue,
        crew="sglang",
        settings=(
            "MessageQueue as it comes: 10 chunks of 10 MiB, what is larger goes through a ZeroMQ "
            "socket; readers poll with sched_yield and never sleep"
        ),
        modules=(Queue.module,),
        environment=_ENVIRONMENT,
        install=_INSTALL,
    ),
    Peer(
        name="SGLang broadcast_pyobj",
        make=BroadcastPyobj,
        crew="sglang",
        settings="broadcast_pyobj over a gloo group, as the scheduler sends requests to its ranks",
        modules=("sglang.srt.utils",),
        environment=_ENVIRONMENT,
        install=_INSTALL,
    ),
)

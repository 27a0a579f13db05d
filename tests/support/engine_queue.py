"""An engine's own message queue, as small as it can be, and ours for such an engine.

Its readers are all on other hosts, as it were: they read from sockets.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from types import ModuleType
from typing import Any

from shmcast.compat._queues.interface import Engine
from shmcast.compat._queues.ring_queue import queue_class

LOGGER = "tests.engine"
LONG_WAIT = "No available shared memory broadcast block found in %d seconds."


@dataclass
class OwnHandle:
    """Where the writer listens."""

    local_reader_ranks: list[int] = field(default_factory=list)
    buffer_handle: tuple[int, int, int, str] | None = None
    local_subscribe_addr: str | None = None
    local_notify_addr: str | None = None
    remote_subscribe_addr: Any = None
    remote_addr_ipv6: bool = False


class OwnQueue:
    """Sends by a connection to each reader; with the methods and parameters of vLLM's."""

    _listener: Any = None
    _connection: Any = None
    _connections: Sequence[Any] = ()

    def __init__(
        self,
        n_reader: int,
        n_local_reader: int,
        local_reader_ranks: list[int] | None = None,
        max_chunk_bytes: int = 1 << 20,
        max_chunks: int = 10,
        connect_ip: str | None = None,
        enable_shm_tensor_arena: bool = False,
    ) -> None:
        self._readers = n_reader
        self._listener = Listener((connect_ip or "127.0.0.1", 0), backlog=n_reader)
        self._connections = []
        self._is_writer = True
        self.handle = OwnHandle(remote_subscribe_addr=self._listener.address)

    def __del__(self) -> None:
        for end in (self._listener, self._connection, *self._connections):
            if end is not None:
                end.close()

    @staticmethod
    def create_from_handle(handle: OwnHandle, rank: int) -> Any:
        # As engines do it: by a name that may lead to another class.
        queue = MODULE.MessageQueue.__new__(MODULE.MessageQueue)
        queue._connection = Client(handle.remote_subscribe_addr)
        queue._is_writer = False
        return queue

    @staticmethod
    def recv(socket: Connection, timeout: float | None) -> Any:
        if not socket.poll(timeout):
            raise TimeoutError
        return pickle.loads(socket.recv_bytes())  # noqa: S301 (our own bytes)

    def export_handle(self) -> OwnHandle:
        return self.handle

    def wait_until_ready(self) -> None:
        if self._is_writer:
            self._connections = [self._listener.accept() for _ in range(self._readers)]

    def shutdown(self) -> None:
        """Nothing waits here without end."""

    def acquire_read(self, timeout: float | None = None, indefinite: bool = False) -> Any:
        raise NotImplementedError

    def acquire_write(self, timeout: float | None = None) -> Any:
        raise NotImplementedError

    def enqueue(self, obj: Any, timeout: float | None = None) -> None:
        for connection in self._connections:
            connection.send_bytes(pickle.dumps(obj))

    def dequeue(self, timeout: float | None = None, indefinite: bool = False) -> Any:
        return OwnQueue.recv(self._connection, timeout)

    def broadcast_object(self, obj: Any = None) -> Any:
        if self._is_writer:
            self.enqueue(obj)
            return obj
        return self.dequeue()

    @staticmethod
    def create_from_process_group(
        pg: Any,
        max_chunk_bytes: int,
        max_chunks: int,
        writer_rank: int = 0,
        external_writer_handle: OwnHandle | None = None,
        blocking: bool = True,
    ) -> Any:
        return MODULE.MessageQueue(1, 1)

    @staticmethod
    def create_from_process_group_single_reader(
        pg: Any,
        max_chunk_bytes: int,
        max_chunks: int,
        reader_rank: int = 0,
        blocking: bool = False,
    ) -> Any:
        return MODULE.MessageQueue(1, 1)


ENGINE = Engine(
    name="this engine",
    queue=OwnQueue,
    handle=OwnHandle,
    logger=logging.getLogger(LOGGER),
    long_wait=LONG_WAIT,
    long_wait_level=logging.INFO,
    warning_interval=lambda: 60,
    arena_bytes=64 << 20,
)
MessageQueue, Handle = queue_class(ENGINE, __name__)


def module() -> ModuleType:
    """Return a module with the names that an engine's has, as if nobody had replaced any."""
    made = ModuleType("own")
    made.__dict__.update(
        MessageQueue=OwnQueue,
        Handle=OwnHandle,
        logger=ENGINE.logger,
        LONG_WAIT_TIME_LOG_MSG=LONG_WAIT,
        VLLM_RINGBUFFER_WARNING_INTERVAL=60,
    )
    return made


MODULE = module()
"""Where the engine looks for its class: ours is in its place."""
vars(MODULE)["MessageQueue"] = MessageQueue

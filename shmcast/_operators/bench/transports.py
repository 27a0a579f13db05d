"""What a message travels by: shmcast, gloo, a Pipe for each reader."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from shmcast._endpoints.reader import Reader
from shmcast._endpoints.writer import Writer

MEET_SECONDS = 90.0
"""For the others to come."""

_LOOPBACK = "127.0.0.1"
_LOOPBACK_SECONDS = 5.0  # for an answer: a packet filter may drop what is asked


@dataclass(frozen=True)
class Seat:
    """Who a process is.

    Attributes:
        rank: 0 is the source.
        size: how many processes there are.
        pipes: the source's to each reader, or a reader's from the source.
    """

    rank: int
    size: int
    pipes: Sequence[Connection]


@dataclass(frozen=True)
class End:
    """An end of a transport.

    Attributes:
        call: the source's takes an object and sends it to every reader; a reader's takes nothing
            and returns the next one.
        close: ends it.
    """

    call: Callable[..., Any]
    close: Callable[[], object]


def _pipe(seat: Seat) -> End:
    """Pickle once and write to each reader's Pipe."""

    def send(obj: Any) -> None:
        data = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
        for pipe in seat.pipes:
            pipe.send_bytes(data)

    return End(seat.pipes[0].recv if seat.rank else send, lambda: None)


def _gloo(seat: Seat) -> End:
    """Call `torch.distributed.broadcast_object_list`, over gloo on the loopback interface."""
    _check_loopback()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import TCPStore

    torch.set_num_threads(1)
    seconds = timedelta(seconds=MEET_SECONDS)
    if seat.rank:
        store = TCPStore(_LOOPBACK, seat.pipes[0].recv(), None, False, seconds)
    else:
        store = TCPStore(_LOOPBACK, 0, None, True, seconds, wait_for_workers=False)
        for pipe in seat.pipes:
            pipe.send(store.port)
    dist.init_process_group(
        "gloo", store=store, rank=seat.rank, world_size=seat.size, timeout=seconds
    )

    def send(obj: Any) -> None:
        dist.broadcast_object_list([obj], src=0)

    def recv() -> Any:
        place: list[Any] = [None]
        dist.broadcast_object_list(place, src=0)
        return place[0]

    return End(recv if seat.rank else send, dist.destroy_process_group)


def _check_loopback() -> None:
    """Raise at once where there is no loopback network, which gloo's store would wait for long."""
    try:
        with socket.create_server((_LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), _LOOPBACK_SECONDS).close()
    except OSError as error:
        raise ConnectionError(
            f"there is no loopback network here: {error.strerror or error} (ip link set lo up)"
        ) from error


def _shmcast(seat: Seat) -> End:
    """Make a `Writer`, or a `Reader` of it, as a program does that sets nothing."""
    if seat.rank:
        reader = Reader(seat.pipes[0].recv(), seat.rank - 1)
        return End(reader.recv, reader.close)
    writer = Writer(seat.size - 1, label="shmcast bench")
    for pipe in seat.pipes:
        pipe.send(writer.handle)
    writer.wait_ready(MEET_SECONDS)
    return End(writer.send, writer.close)


OURS = "shmcast"
TRANSPORTS: dict[str, Callable[[Seat], End]] = {OURS: _shmcast, "pipe": _pipe, "gloo": _gloo}
"""What makes a process's end, by name."""

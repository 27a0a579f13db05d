"""A store of the source's own, for ranks that no process group's store connects.

The source's control thread serves it, so that it ends with the source's process.
"""

from __future__ import annotations

import functools
import json
import socket
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from shmcast._group.notices import NoticeStore
from shmcast._host.signals import is_interruption
from shmcast._nodes import control
from shmcast._nodes.addresses import Address, local_addresses


class NoticeBoard:
    """The store, at the source.

    Args:
        secret: what the other ranks must know.

    Raises:
        OSError: the source can't listen.
    """

    def __init__(self, secret: str) -> None:
        self._values: dict[str, str] = {}
        # (Not bound to self: the thread of all listeners would keep it alive.)
        self._listener = control.Listener(secret, functools.partial(_serve, self._values))
        weakref.finalize(self, self._listener.close).atexit = False

    @property
    def addresses(self) -> list[Address]:
        """Where the other ranks may reach it."""
        return local_addresses(self._listener.port)

    def set(self, key: str, value: str, /) -> None:
        """Keep a value."""
        self._values[key] = value

    def check(self, keys: list[str], /) -> bool:
        """Return whether there are values for all of these."""
        return all(key in self._values for key in keys)

    def get(self, key: str, /) -> bytes:
        """Return a value that is there."""
        return self._values[key].encode()


def _serve(values: dict[str, str], _rank: int, connection: socket.socket) -> None:
    """Answer the requests on a connection, in the control thread, which keeps its link."""

    def answer(request: dict[str, Any]) -> None:
        if "value" in request:
            values[request["key"]] = request["value"]
        link.send({"value": values.get(request["key"])})

    link = control.Link(connection, answer, lambda _error: None)


def notices_of(addresses: Sequence[Address], secret: str, rank: int) -> NoticeStore:
    """Return the source's store, for another rank; it connects when needed.

    Args:
        addresses: where it may be.
        secret: the source's.
        rank: this one.
    """
    return _RemoteBoard(addresses, secret, rank)


class _RemoteBoard:
    """The store, at another rank."""

    def __init__(self, addresses: Sequence[Address], secret: str, rank: int) -> None:
        self._addresses = addresses
        self._secret = secret
        self._rank = rank
        self._idle: list[socket.socket] = []  # the connection, between two requests
        weakref.finalize(self, _close_all, self._idle)
        self._lock = threading.Lock()

    def set(self, key: str, value: str, /) -> None:
        self._ask({"key": key, "value": value})

    def check(self, keys: list[str], /) -> bool:
        return all(self._ask({"key": key}) is not None for key in keys)

    def get(self, key: str, /) -> bytes:
        return str(self._ask({"key": key})).encode()

    def _ask(self, request: dict[str, str]) -> str | None:
        with self._lock:
            connection = self._idle.pop() if self._idle else None
            try:
                if connection is None:
                    connection = control.connect(self._addresses, self._secret, self._rank)
                connection.sendall(json.dumps(request).encode() + b"\n")
                answer = _line(connection)
            except BaseException as error:  # a signal's, too: the answer would be another call's
                if connection is not None:
                    connection.close()
                if isinstance(error, OSError) and not is_interruption(error):
                    raise RuntimeError(f"the source serves it: {error}") from error
                raise
            self._idle.append(connection)
        value: str | None = json.loads(answer)["value"]
        return value


def _close_all(connections: list[socket.socket]) -> None:
    for connection in connections:
        connection.close()


def _line(connection: socket.socket) -> bytes:
    """Receive a line.

    Raises:
        OSError: none has come, for that the connection was ended, or in time.
    """
    received = b""
    while not received.endswith(b"\n"):
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError("its connection has ended")
        received += chunk
    return received

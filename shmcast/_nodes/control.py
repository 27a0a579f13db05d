"""A plain TCP connection between the source and each leader: who lives, and short reports.

gloo can't tell a slow node from a dead one. The kernel can: it answers for a process that is busy
or stopped, closes the connection of one that has died, and notices within seconds that the network
is cut. One thread of this process serves all connections; it never waits for any of them.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import json
import logging
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shmcast._nodes.addresses import Address

_LONGEST_LINE = 64 * 1024
_CONNECT_SECONDS = 5.0
_WELCOME = b"welcome\n"

_log = logging.getLogger("shmcast")


@dataclass(frozen=True)
class Keepalive:
    """When the kernel gives a silent connection up, in seconds."""

    idle: int = 4
    interval: int = 2
    count: int = 3

    @property
    def seconds(self) -> int:
        """From the cut to the end."""
        return self.idle + self.interval * self.count

    def apply(self, connection: socket.socket) -> None:
        """To a TCP connection."""
        tcp = socket.IPPROTO_TCP
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(tcp, socket.TCP_KEEPIDLE, self.idle)
        connection.setsockopt(tcp, socket.TCP_KEEPINTVL, self.interval)
        connection.setsockopt(tcp, socket.TCP_KEEPCNT, self.count)
        connection.setsockopt(tcp, socket.TCP_USER_TIMEOUT, self.seconds * 1000)
        connection.setsockopt(tcp, socket.TCP_NODELAY, 1)


KEEPALIVE = Keepalive()


class _Reactor:
    """The thread, and what it calls when something can be read or written."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        threading.Thread(target=self._run, name="shmcast-control", daemon=True).start()

    def add(self, fd: int, handler: Callable[[int], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def also_write(self, fd: int, wanted: bool) -> None:
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def remove(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            self._epoll.unregister(fd)
        self._handlers.pop(fd, None)

    def _run(self) -> None:
        while True:
            for fd, events in self._epoll.poll():
                handler = self._handlers.get(fd)
                if handler is None:
                    continue
                try:
                    handler(events)
                except Exception:  # one broadcaster's must not end the others'
                    _log.exception("in a report from another node")


@functools.cache
def _reactor() -> _Reactor:
    return _Reactor()


os.register_at_fork(after_in_child=_reactor.cache_clear)  # threads stay behind


class Link:
    """One end of a connection. Messages are dicts, one line of JSON each.

    Args:
        connection: connected; belongs to the link from now on.
        on_message: called with each message, in the control thread.
        on_end: called once, there too, when the connection has ended before `finish`: with the
            error, or None if the other end has finished or its process died.
    """

    def __init__(
        self,
        connection: socket.socket,
        on_message: Callable[[dict[str, Any]], None],
        on_end: Callable[[OSError | None], None],
    ) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._on_message = on_message
        self._on_end = on_end
        self._received = b""
        self._unsent = b""
        self._lock = threading.RLock()
        self._open = True
        self._finishing = False
        _reactor().add(connection.fileno(), self._handle)

    def send(self, message: dict[str, Any]) -> None:
        """Sends a message, or nothing if the connection has ended. Does not wait."""
        with self._lock:
            if self._open and not self._finishing:
                self._unsent += json.dumps(message).encode() + b"\n"
                self._flush()

    def finish(self) -> None:
        """Says no more. The connection is closed when the other end has done the same.

        (Closed at once, what is on its way here would make the kernel throw away what is on its
        way there.)
        """
        with self._lock:
            self._finishing = True
            if self._open:
                self._flush()

    def _close(self) -> None:
        self._open = False
        _reactor().remove(self._socket.fileno())
        self._socket.close()

    def _flush(self) -> None:
        had = bool(self._unsent)
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # reading will tell why
        if had:
            _reactor().also_write(self._socket.fileno(), bool(self._unsent))
        if self._finishing and not self._unsent:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)

    def _handle(self, events: int) -> None:
        with self._lock:
            if not self._open:
                return
            if events & select.EPOLLOUT:
                self._flush()
            end: OSError | None = None
            try:
                chunk = self._socket.recv(_LONGEST_LINE)
            except BlockingIOError:
                return
            except (ConnectionResetError, BrokenPipeError):
                chunk = b""  # the process died with something unread
            except OSError as error:
                chunk, end = b"", error
            if not chunk or len(self._received) > _LONGEST_LINE:
                self._close()
        if not self._open:
            on_end = self._on_end
            self._on_message = self._on_end = _ignore  # whose owner may have this link
            if not self._finishing:
                on_end(end)
            return
        *lines, self._received = (self._received + chunk).split(b"\n")
        for line in lines:
            self._on_message(json.loads(line))


def _ignore(_what: object) -> None:
    pass


class Listener:
    """The source's end, until all leaders are connected.

    Args:
        secret: who knows it is a leader.
        on_link: called with a leader's rank and its connection, in the control thread.
    """

    def __init__(self, secret: str, on_link: Callable[[int, socket.socket], None]) -> None:
        if socket.has_dualstack_ipv6():
            self._socket = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        else:
            self._socket = socket.create_server(("", 0), backlog=1024)
        self._socket.setblocking(False)
        self._secret = secret
        self._on_link = on_link
        self._guests: dict[int, tuple[socket.socket, bytes]] = {}  # who has not proved anything yet
        self.port: int = self._socket.getsockname()[1]
        _reactor().add(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Takes nobody any more. Idempotent."""
        if self._socket.fileno() >= 0:
            _reactor().remove(self._socket.fileno())
            self._socket.close()
        for fd, (guest, _) in [*self._guests.items()]:
            _reactor().remove(fd)
            guest.close()
        self._guests.clear()
        self._on_link = _refuse  # whose owner may have this listener

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            guest, _ = self._socket.accept()
            guest.setblocking(False)
            fd = guest.fileno()
            self._guests[fd] = (guest, b"")
            _reactor().add(fd, lambda _: self._hear(fd))

    def _hear(self, fd: int) -> None:
        guest, heard = self._guests[fd]
        try:
            chunk = guest.recv(1024)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        heard += chunk
        if chunk and b"\n" not in heard and len(heard) <= 1024:
            self._guests[fd] = (guest, heard)
            return
        del self._guests[fd]
        _reactor().remove(fd)
        line, _, rest = heard.partition(b"\n")
        rank, _, proof = line.decode(errors="replace").partition(" ")
        known = rank.isdecimal() and hmac.compare_digest(proof.encode(), self._secret.encode())
        if rest or not known:  # (a leader says no more until it is welcome)
            guest.close()
            return
        KEEPALIVE.apply(guest)
        # Before it is told that it is welcome: it goes on then, and so may the source.
        self._on_link(int(rank), guest)
        with contextlib.suppress(OSError):  # (it has room for that: it does not block)
            guest.send(_WELCOME)


def _refuse(_rank: int, connection: socket.socket) -> None:
    connection.close()


def connect(addresses: Iterable[Address], secret: str, rank: int) -> socket.socket:
    """Connect a leader to the source.

    Raises:
        ConnectionError: none of the addresses led there.
    """
    tried = []
    for address in addresses:
        try:
            connection = socket.create_connection(address, _CONNECT_SECONDS)
        except OSError as error:
            tried.append(f"{address[0]} port {address[1]}: {error}")
            continue
        try:
            KEEPALIVE.apply(connection)
            connection.sendall(f"{rank} {secret}\n".encode())
            heard = b""
            while len(heard) < len(_WELCOME):
                chunk = connection.recv(len(_WELCOME) - len(heard))
                if not chunk:
                    break
                heard += chunk
            if heard != _WELCOME:
                raise ConnectionError("somebody else is there")
        except OSError as error:
            connection.close()
            tried.append(f"{address[0]} port {address[1]}: {error}")
            continue
        return connection
    raise ConnectionError(
        f"can't connect to the source: {'; '.join(tried)}; let GLOO_SOCKET_IFNAME on the source "
        "name the interface that the other nodes reach"
    )

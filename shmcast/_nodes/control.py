"""Plain TCP connections between the source and each leader: who is alive, and short reports.

gloo can't tell a slow node from a dead one. The kernel can: it answers for a process that is busy
or stopped, closes the connection of one that has died, and notices within seconds that the network
is cut. One thread of this process serves all connections and never blocks on any of them.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import select
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from shmcast._host.epoll_thread import epoll_thread
from shmcast._host.signals import pass_on
from shmcast._nodes.addresses import Address

_LONGEST_LINE = 64 * 1024
_CONNECT_SECONDS = 5.0
_LONGEST_PROOF = 1024
_WELCOME = b"welcome\n"

_THREAD = "shmcast-control"


@dataclass(frozen=True)
class Keepalive:
    """When the kernel gives up a silent connection."""

    idle: int = 4
    """Seconds of silence before the first probe."""
    interval: int = 2
    """Seconds between two probes."""
    count: int = 3
    """Probes without an answer that end the connection."""

    @property
    def seconds(self) -> int:
        """Seconds from a cut of the network to the end of the connection."""
        return self.idle + self.interval * self.count

    def apply(self, connection: socket.socket) -> None:
        """Set these times on a TCP connection."""
        tcp = socket.IPPROTO_TCP
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(tcp, socket.TCP_KEEPIDLE, self.idle)
        connection.setsockopt(tcp, socket.TCP_KEEPINTVL, self.interval)
        connection.setsockopt(tcp, socket.TCP_KEEPCNT, self.count)
        connection.setsockopt(tcp, socket.TCP_USER_TIMEOUT, self.seconds * 1000)
        connection.setsockopt(tcp, socket.TCP_NODELAY, 1)


KEEPALIVE = Keepalive()


class Link:
    """One end of a connection. Messages are dicts, one line of JSON each.

    Args:
        connection: connected; belongs to the link from now on.
        on_message: called with each message, in the control thread.
        on_end: called at most once, in the control thread, when the connection has ended before
            `send_eof`: with the error, or with None if the other end has sent its EOF or died.
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
        self._is_ending = False
        epoll_thread(_THREAD).add(connection.fileno(), self._handle)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, or nothing if the connection has ended. Does not wait."""
        with self._lock:
            if self._open and not self._is_ending:
                self._unsent += json.dumps(message).encode() + b"\n"
                self._flush()

    def send_eof(self) -> None:
        """Send no further message. The connection is closed when the other end does the same.

        (If it were closed at once, data on its way here would make the kernel discard data on its
        way there.)
        """
        with self._lock:
            self._is_ending = True
            if self._open:
                self._flush()

    def _close(self) -> None:
        self._open = False
        epoll_thread(_THREAD).remove(self._socket.fileno())
        self._socket.close()

    def _flush(self) -> None:
        had_some = bool(self._unsent)
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent = b""  # reading will tell why
        if had_some:
            epoll_thread(_THREAD).also_write(self._socket.fileno(), bool(self._unsent))
        if self._is_ending and not self._unsent:
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
            self._on_message = self._on_end = _ignore  # (their owner may have this link)
            if not self._is_ending:
                on_end(end)
            return
        *lines, self._received = (self._received + chunk).split(b"\n")
        for line in lines:
            self._on_message(json.loads(line))


def _ignore(_what: object) -> None:
    pass


class Listener:
    """Accepts the leaders' connections at the source.

    Args:
        secret: what a leader must send to be accepted.
        on_link: called with a leader's rank and its connection, in the control thread, before it
            is told that it is welcome: it goes on then, and so may the source.
        on_welcome: the same, but after that: whoever gets the connection may send at once.
    """

    def __init__(
        self,
        secret: str,
        on_link: Callable[[int, socket.socket], None] | None = None,
        on_welcome: Callable[[int, socket.socket], None] | None = None,
    ) -> None:
        if socket.has_dualstack_ipv6():
            self._socket = socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
        else:
            self._socket = socket.create_server(("", 0), backlog=1024)
        self._socket.setblocking(False)
        self._secret = secret
        self._on_link = on_link
        self._on_welcome = on_welcome
        # By descriptor: connections that have not sent the secret yet, and what they have sent.
        self._unproven: dict[int, tuple[socket.socket, bytes]] = {}
        self.port: int = self._socket.getsockname()[1]
        epoll_thread(_THREAD).add(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Accept no further connection. Idempotent."""
        if self._socket.fileno() >= 0:
            epoll_thread(_THREAD).remove(self._socket.fileno())
            self._socket.close()
        for fd, (connection, _) in [*self._unproven.items()]:
            epoll_thread(_THREAD).remove(fd)
            connection.close()
        self._unproven.clear()
        self._on_link, self._on_welcome = _refuse, None  # (their owner may have this listener)

    def _accept(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._socket.accept()
            connection.setblocking(False)
            fd = connection.fileno()
            self._unproven[fd] = (connection, b"")
            epoll_thread(_THREAD).add(fd, lambda _: self._receive_proof(fd))

    def _receive_proof(self, fd: int) -> None:
        connection, received = self._unproven[fd]
        try:
            chunk = connection.recv(_LONGEST_PROOF)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        received += chunk
        if chunk and b"\n" not in received and len(received) <= _LONGEST_PROOF:
            self._unproven[fd] = (connection, received)
            return
        del self._unproven[fd]
        epoll_thread(_THREAD).remove(fd)
        line, _, rest = received.partition(b"\n")
        rank, _, proof = line.decode(errors="replace").partition(" ")
        is_known = rank.isdecimal() and hmac.compare_digest(proof.encode(), self._secret.encode())
        if rest or not is_known:  # (a leader says no more until it is welcome)
            connection.close()
            return
        KEEPALIVE.apply(connection)
        if self._on_link is not None:
            self._on_link(int(rank), connection)
        with contextlib.suppress(OSError):  # (there is room for it: this does not block)
            connection.send(_WELCOME)
        if self._on_welcome is not None:
            self._on_welcome(int(rank), connection)


def _refuse(_rank: int, connection: socket.socket) -> None:
    connection.close()


def connect_to_source(addresses: Iterable[Address], secret: str, rank: int) -> socket.socket:
    """Connect to the source during set-up: do what `connect` does, and advise where that fails."""
    try:
        return connect(addresses, secret, rank)
    except ConnectionError as error:
        pass_on(error)
        raise ConnectionError(
            f"can't connect to the source: {error}; let GLOO_SOCKET_IFNAME on the source name the "
            "interface that the other nodes reach"
        ) from error


def connect(addresses: Iterable[Address], secret: str, rank: int) -> socket.socket:
    """Connect to a rank that listens.

    Args:
        addresses: where it may be, to be tried in this order.
        secret: what proves to it that one of its group connects.
        rank: this one.

    Raises:
        ConnectionError: none of the addresses leads there.
    """
    errors = []
    for host, port in addresses:
        try:
            connection = socket.create_connection((host, port), _CONNECT_SECONDS)
        except OSError as error:
            pass_on(error)
            errors.append(f"{host} port {port}: {error}")
            continue
        try:
            KEEPALIVE.apply(connection)
            connection.sendall(f"{rank} {secret}\n".encode())
            answer = b""
            while len(answer) < len(_WELCOME):
                chunk = connection.recv(len(_WELCOME) - len(answer))
                if not chunk:
                    break
                answer += chunk
            if answer != _WELCOME:
                raise ConnectionError("something else listens there")
        except OSError as error:
            connection.close()
            pass_on(error)
            errors.append(f"{host} port {port}: {error}")
            continue
        return connection
    raise ConnectionError("; ".join(errors))

"""Whether a connection's other end still answers, also while it has no room for what is sent to it.

TCP_USER_TIMEOUT can't tell: since Linux 4.20 it also ends a connection whose other end answers each
probe of a full window, that is, one whose program computes for as long. And without it, the kernel
sends no keepalive while something is on its way.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time

from shmcast._nodes import control

_TCP_RTO_MAX_MS = 44  # (Linux 6.15; the socket module has no name for it)
# Of struct tcp_info: how many times in a row what was sent was sent again, how many probes of a
# full window have no answer yet, and how long ago anything was acknowledged, in milliseconds.
_INFO = struct.Struct("=2xBB52xI")


class Silence:
    """How long the other end of a connection has answered nothing.

    Args:
        connection: from now on its kernel gives up a silent end minutes later than `check`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6)
        self._since: float | None = None  # on time.monotonic's clock
        if self._is_tcp:
            tcp, keepalive = socket.IPPROTO_TCP, control.KEEPALIVE
            connection.setsockopt(tcp, socket.TCP_USER_TIMEOUT, 0)
            with contextlib.suppress(OSError):  # (older kernels: their probes grow rarer, 2 min)
                connection.setsockopt(tcp, _TCP_RTO_MAX_MS, 1000 * keepalive.interval)

    def check(self) -> None:
        """Look; to be called now and then while something is waited for.

        Raises:
            TimeoutError: for as long as `control.KEEPALIVE` says, it should have answered, and has
                not. (The kernel's own error of such an end.)
        """
        if not self._is_tcp:
            return
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
        repeats, probes, answered = _INFO.unpack(info)
        now = time.monotonic()
        if not (repeats or probes):
            self._since = None
        elif self._since is None or answered / 1000 < now - self._since:
            self._since = now
        elif now - self._since >= control.KEEPALIVE.seconds:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

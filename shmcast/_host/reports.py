"""Tells who asks what this process's threads do: other processes of its user, by a local socket.

The socket has a name of no folder, so that nothing of it can be left over. Its thread sleeps until
somebody asks, and answers in Python: no signal's handler is set, and nothing is polled.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from shmcast._host import switches
from shmcast._host.descriptors import above_stdio
from shmcast._host.epoll_thread import epoll_thread
from shmcast._host.process import own_start_time, pid_namespace, start_time
from shmcast._host.signals import pass_on
from shmcast._host.stack_order import in_order

if TYPE_CHECKING:
    from socket import socket

VARIABLE = "SHMCAST_REPORTS"
"""Whether processes answer: "1", or "0", the default: it takes a thread of Python's in each."""

_THREAD = "shmcast-reports"
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_MOST_FRAMES = 100
_MOST_BYTES = 64 * 1024  # fit a socket's buffer, whoever reads slowly

_listener: socket | None = None


def listen() -> None:
    """Answer from now on, if the operator wants it; where that can't be, nobody is told.

    Raises:
        InvalidArgument: the operator has set something else than 0 or 1.
    """
    global _listener
    if _listener is not None or not are_wanted():
        return
    try:
        listener = _listening()
        try:
            epoll_thread(_THREAD).add(listener.fileno(), lambda _events: _answer())
        except BaseException:
            listener.close()
            raise
        _listener = listener
    except (OSError, RuntimeError, AttributeError) as error:  # a limit; gevent has no epoll
        pass_on(error)


def are_wanted() -> bool:
    """Return whether the operator wants processes to answer.

    Raises:
        InvalidArgument: the operator has set something else than 0 or 1.
    """
    return switches.is_on(VARIABLE, "to have processes tell `shmcast diagnose` what they do")


def _listening() -> socket:
    import socket  # (Here, for a light `import shmcast`.)

    fd = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK).detach()
    listener = socket.socket(fileno=above_stdio(fd))
    try:
        listener.bind(_address(os.getpid(), own_start_time()))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _address(pid: int, started: int) -> bytes:
    return f"\0shmcast-{pid_namespace()}-{pid}-{started}".encode()


def _answer() -> None:
    """Answer one process, and wait for nothing."""
    if _listener is None:
        return
    with contextlib.suppress(OSError):  # it has gone, or has no room
        connection, _ = _listener.accept()
        with connection:
            connection.setblocking(False)
            if _peer_of(connection)[1] == os.geteuid():
                told = in_order("\n".join(_stacks()))
                connection.send(told.encode(errors="replace")[:_MOST_BYTES])


def _peer_of(connection: socket) -> tuple[int, int]:
    """Return the pid and the user of the other side."""
    import socket

    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(told)
    return pid, uid


def _stacks() -> Iterator[str]:
    """Yield what the threads of this process do, line by line, as py-spy shows it."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, top in sys._current_frames().items():  # noqa: SLF001 (documented)
        if ident == threading.get_ident():
            continue
        yield f'Thread "{names.get(ident, ident)}"'
        frame: FrameType | None = top
        for _ in range(_MOST_FRAMES):
            if frame is None:
                break
            code = frame.f_code
            yield f"    {code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})"
            frame = frame.f_back


def ask(pid: int, timeout: float) -> str | None:
    """Return what the threads of process `pid` do, as it tells itself; None: it does not.

    Args:
        pid: of this pid namespace.
        timeout: seconds to wait for its answer, which needs its GIL.
    """
    import socket

    try:
        started = start_time(pid)
        if started is None:
            return None
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(_address(pid, started))
            if _peer_of(connection) != (pid, os.geteuid()):
                return None  # another has the name
            parts = [*iter(lambda: connection.recv(_MOST_BYTES), b"")]
    except OSError as error:
        pass_on(error)
        return None
    return b"".join(parts).decode(errors="replace") or None


def _forget() -> None:
    global _listener
    if _listener is not None:
        _listener.close()  # (in a fork's child: the parent's goes on)
        _listener = None


os.register_at_fork(after_in_child=_forget)
atexit.register(_forget)

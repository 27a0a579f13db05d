"""The Python stacks of another process of this engine, also where it hangs in C.

By py-spy where that is installed and may look; else by a signal, at which the process's
faulthandler writes them. That runs in the signal's handler: it needs neither the GIL nor a return
from C.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from pathlib import Path

from shmcast._host.process import UNKNOWN_START, Pidfd, stack_of
from shmcast._host.signals import pass_on
from shmcast._host.stack_order import in_order

SIGNAL = signal.SIGRTMAX - 2
"""A signal that nobody else uses: the ones that Python programs like are taken in engines."""

_FILE = "shmcast-stacks"
_SECONDS = 1.0  # for one process to write
_STEP = 0.02  # between two looks whether it still writes

_registered: list[int] = []  # the descriptor, once there is one


def offer_stacks() -> None:
    """Let the processes of this user ask this one for its stacks; idempotent.

    Where the signal has a handler already, which is somebody else's, it stays.
    """
    if _registered or signal.getsignal(SIGNAL) is not signal.SIG_DFL:
        return
    fd = os.memfd_create(_FILE)
    faulthandler.register(SIGNAL, file=fd, all_threads=True)
    _registered.append(fd)


def python_stack(pid: int) -> str:
    """Return the Python stacks of process `pid`; "" where nothing and nobody tells them."""
    return stack_of(pid) or _by_signal(pid)


def _by_signal(pid: int) -> str:
    try:
        told = _file_of(pid)
        if told is None or not _handles_signal(pid):  # (which would end it)
            return ""
        with told.open("rb") as file:
            begin = file.seek(0, os.SEEK_END)
            _send(pid)
            _wait_until_written(file.fileno(), begin)
            file.seek(begin)
            return in_order(file.read().decode(errors="replace"))
    except OSError as error:  # it has ended, or is not ours to ask
        pass_on(error)
        return ""


def _send(pid: int) -> None:
    process = Pidfd(pid, UNKNOWN_START)
    try:
        signal.pidfd_send_signal(process.fileno(), SIGNAL)
    finally:
        process.close()


def _wait_until_written(fd: int, begin: int) -> None:
    """Wait until a file has grown and grows no more: nobody says when the last line is written."""
    give_up = time.monotonic() + _SECONDS
    size = begin
    while time.monotonic() < give_up:
        time.sleep(_STEP)
        before, size = size, os.fstat(fd).st_size
        if before == size > begin:
            return


def _file_of(pid: int) -> Path | None:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        if descriptor.readlink().name.startswith(f"memfd:{_FILE}"):
            return descriptor
    return None


def _handles_signal(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (SIGNAL - 1) & 1)
    return False

"""The ways in which a process with an endpoint can end, each with what its peers may be told."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

from shmcast import Reader
from shmcast._endpoints.handle import Handle

SECONDS = 30.0


class StepFailed(Exception):
    """What a worker's step raises."""


def _raise(_reader: Reader) -> None:
    sys.stderr.close()
    raise StepFailed


def _raise_in_with_block(reader: Reader) -> None:
    sys.stderr.close()
    with reader:
        raise StepFailed


def _exit(_reader: Reader) -> None:
    raise SystemExit(3)


def _end_without_close(_reader: Reader) -> None:
    pass


def _exit_at_once(_reader: Reader) -> None:
    os._exit(4)


def _execute(_reader: Reader) -> None:
    os.execv(sys.executable, [sys.executable, "-S", "-c", "import signal; signal.pause()"])  # noqa: S606


def _crash(_reader: Reader) -> None:
    ctypes.string_at(0)


def _kill(_reader: Reader) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _abort(_reader: Reader) -> None:
    os.abort()


ENDINGS: dict[str, tuple[Callable[[Reader], None], tuple[str, ...]]] = {
    "exception": (_raise, ("exit code 1",)),
    "exception out of a with block": (_raise_in_with_block, ("ended without close()",)),
    "sys.exit": (_exit, ("exit code 3",)),
    "no close": (_end_without_close, ("exit code 0",)),
    "os._exit": (_exit_at_once, ("exit code 4",)),
    "exec": (_execute, ("replaced by another program (exec)",)),
    "SIGSEGV": (_crash, ("killed by SIGSEGV",)),
    "SIGKILL": (_kill, ("killed by SIGKILL",)),
    "SIGABRT": (_abort, ("killed by SIGABRT",)),
}
"""By name: what the process does, and the words that tell how."""


def read_then_end(handle: Handle, index: int, ending: str, rejoin: bool = False) -> None:
    """Receive until None comes, then end so; to be the last thing that a program does."""
    global reader
    reader = Reader(handle, index, rejoin=rejoin)
    while reader.recv(SECONDS) is not None:
        pass
    ENDINGS[ending][0](reader)


def fail_in_thread(handle: Handle, index: int) -> None:
    """Let a thread that reads end by an exception, which ends its reader and not the process."""

    def work() -> None:
        reader = Reader(handle, index)
        reader.recv(SECONDS)
        raise StepFailed

    threading.excepthook = lambda _args: None
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


reader: Reader

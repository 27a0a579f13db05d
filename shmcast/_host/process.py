"""Facts about processes of this host: who is alive, what it does, how it ended.

From /proc and pidfds, Linux only. Pids are those of this process's pid namespace.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
import sys
from pathlib import Path
from typing import NamedTuple

from shmcast import _core
from shmcast._host import proc
from shmcast._host.descriptors import above_stdio
from shmcast._host.signals import pass_on
from shmcast._host.stack_order import in_order

UNKNOWN_START = 2**64 - 1
"""In place of a `start_time` that /proc doesn't tell."""

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

# Places in /proc/<pid>/stat as proc(5) counts them, less the 3 up to and including the state, which
# is the first field behind the name.
_STATE = 0
_FLAGS = 9 - 3
_USER_TICKS = 14 - 3
_SYSTEM_TICKS = 15 - 3
_THREADS = 20 - 3
_START_TIME = 22 - 3
_WAIT_STATUS = 52 - 3

_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for disk",
    "T": "stopped",
    "t": "traced (at a breakpoint)",
    "Z": "zombie",
}

_ENDED = ("Z", "X")  # X: being reaped

_PF_EXITING = 0x4  # of the flags: its memory and descriptors go, or are gone

_P_PIDFD = 3  # what `os` lacks in Pythons built against headers of before Linux 5.3

# <linux/pidfd.h>: of struct pidfd_info, in its first size, the mask of what is asked and answered,
# and the wait status; PIDFD_GET_INFO is _IOWR(0xFF, 11, struct pidfd_info).
_PIDFD_INFO = struct.Struct("@Q52xi")
_PIDFD_GET_INFO = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11
_PIDFD_INFO_EXIT = 1 << 3


class State(NamedTuple):
    """What /proc says of a process at one moment."""

    name: str
    """Of the main thread, in words: "running", "sleeping", "stopped", ..."""
    cpu_seconds: float
    """CPU time used by all threads since the process began."""
    threads: int


class Pidfd:
    """A hold on one process, which no later process of the same pid can be taken for.

    Poll or select it for reading: it is readable once the process has ended, reaped or not.

    Args:
        pid: the process.
        started: its `start_time`; UNKNOWN_START: whoever has the pid now.

    Raises:
        ProcessLookupError: it has ended; the message says how, where known.
        OSError: the kernel has no pidfds (ENOSYS) or refuses them (EPERM), or /proc hides the
            process (EACCES).
    """

    # (Of one that a signal's handler has ended while it was made.)
    _fd = -1
    _owner_pid = -1

    def __init__(self, pid: int, started: int) -> None:
        self._pid = pid
        self._started = started
        self._owner_pid = os.getpid()
        self._file: tuple[int, int] | None = None  # not known yet
        self._fd = above_stdio(proc.pidfd_open(pid))
        opened = os.fstat(self._fd)
        self._file = (opened.st_dev, opened.st_ino)
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        # After the opening: what has the start time now is the process that was opened.
        is_known = self._started != UNKNOWN_START
        found = start_time(self._pid) if is_known else UNKNOWN_START
        if self.is_dead() or found not in (self._started, None):
            how = self.how() if found == self._started else ""
            ended = f"process {self._pid} has ended" + (f": {how}" if how else "")
            raise ProcessLookupError(errno.ESRCH, ended)
        if found is None:  # and yet alive
            raise PermissionError(errno.EACCES, f"/proc hides process {self._pid}")

    def fileno(self) -> int:
        """Return the file descriptor, -1 after `close`."""
        return self._fd

    def close(self) -> None:
        """Close the file descriptor; idempotent."""
        # In a fork, what is open there may be the child's own.
        if self._owner_pid == os.getpid() and self.is_usable():
            os.close(self._fd)
        self._fd = -1

    def __del__(self) -> None:
        self.close()

    def is_dead(self) -> bool:
        """Return whether the process has ended, without waiting."""
        # Not by `select`, which gevent and eventlet replace. And whoever closes all descriptors may
        # have opened something else as this one.
        return _core.is_readable(self._fd) and self._is_ours()

    def is_usable(self) -> bool:
        """Return whether the descriptor is still the one that was opened."""
        return self._fd >= 0 and self._is_ours()

    def _is_ours(self) -> bool:
        try:
            found = os.fstat(self._fd)
        except OSError as error:
            pass_on(error)
            return False
        return self._file in (None, (found.st_dev, found.st_ino))

    def how(self) -> str:
        """Return how the process ended, such as "killed by SIGKILL"; "" if it lives or is unknown.

        Known are all children and zombies of this user; from Linux 6.15 on the reaped, too. Nothing
        is reaped here.
        """
        # In the order in which an ending process passes from one to the next.
        for ask in (self._ask_as_parent, self._ask_proc, self._ask_pidfd):
            status = ask()
            if status is not None:
                return _in_words(status)
        return ""

    def _ask_as_parent(self) -> int | None:
        try:
            ended = os.waitid(_P_PIDFD, self._fd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except OSError as error:  # no child of this process, or reaped; before Linux 5.4 never
            pass_on(error)
            return None
        if ended is None:
            return None
        return ended.si_status << 8 if ended.si_code == os.CLD_EXITED else ended.si_status

    def _ask_proc(self) -> int | None:
        try:
            fields = proc.stat(self._pid)
        except PermissionError as error:  # hidden
            pass_on(error)
            return None
        if not fields or fields[_STATE] not in _ENDED or _started(fields) != self._started:
            return None
        status = int(fields[_WAIT_STATUS])
        return status if status or proc.tells_status(self._pid) else None

    def _ask_pidfd(self) -> int | None:
        info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, 0))
        try:
            fcntl.ioctl(self._fd, _PIDFD_GET_INFO, info)
        except OSError as error:
            pass_on(error)
            return None
        mask, status = _PIDFD_INFO.unpack(info)
        return status if mask & _PIDFD_INFO_EXIT else None


def start_time(pid: int) -> int | None:
    """Return when process `pid` was started, in clock ticks since boot, 1 at least; None: no such.

    With the pid it names a process for as long as the host is up. By the host's own clock, in
    whatever time namespace this process is.

    Raises:
        PermissionError: /proc hides it.
    """
    fields = proc.stat(pid)
    return _started(fields) if fields else None


def own_start_time() -> int:
    """Return the `start_time` of this process, UNKNOWN_START where /proc doesn't tell."""
    fields = proc.own_stat()
    return _started(fields) if fields else UNKNOWN_START


def pid_namespace() -> int:
    """Return the inode number of this process's pid namespace."""
    return Path("/proc/self/ns/pid").stat().st_ino


def is_alive(pid: int, started: int = UNKNOWN_START) -> bool:
    """Return whether process `pid` of that start time lives; in doubt yes, for a zombie no."""
    if not _exists(pid):
        return False
    try:
        fields = proc.stat(pid)
    except PermissionError as error:  # hidden
        pass_on(error)
        return True
    if not fields:  # hidden, too
        return True
    # The leader of threads that live on is a zombie, too.
    is_zombie = fields[_STATE] in _ENDED and int(fields[_THREADS]) <= 1
    return not is_zombie and started in (UNKNOWN_START, _started(fields))


def how_it_ends(pid: int) -> str:
    """Return how process `pid` is about to end, as `Pidfd.how`; "" if it is not, or not told.

    From when the end begins: before it is a zombie, and its memory given back.
    """
    try:
        fields = proc.stat(pid)
    except OSError as error:  # hidden
        pass_on(error)
        fields = None
    if not fields or not int(fields[_FLAGS]) & _PF_EXITING:
        return ""
    status = int(fields[_WAIT_STATUS])
    return _in_words(status) if status or proc.tells_status(pid) else ""


def is_exiting(pid: int) -> bool:
    """Return whether process `pid` has ended or is about to: what it held may be gone."""
    try:
        fields = proc.stat(pid)
    except OSError as error:  # hidden
        pass_on(error)
        fields = None
    if not fields:
        return not _exists(pid)
    return fields[_STATE] in _ENDED or bool(int(fields[_FLAGS]) & _PF_EXITING)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def state_of(pid: int) -> State | None:
    """Return what process `pid` does now; None: there is none.

    Raises:
        PermissionError: /proc hides it.
    """
    fields = proc.stat(pid)
    if not fields:
        return None
    return State(
        name=_STATES.get(fields[_STATE], f"in state {fields[_STATE]}"),
        cpu_seconds=(int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) / _TICKS_PER_SECOND,
        threads=int(fields[_THREADS]),
    )


def stack_of(pid: int, timeout: float = 3.0) -> str:
    """Return the Python stacks of process `pid`, as py-spy sees them without pausing it.

    "" where there is no py-spy, where it may not look, and where it takes longer than `timeout`
    seconds.
    """
    if not proc.is_own():
        return ""  # it would look at another process
    import subprocess  # (Here, for a light `import shmcast`.)

    spy = py_spy()
    if spy is None:
        return ""
    try:
        dump = subprocess.run(  # noqa: S603
            [spy, "dump", "--nonblocking", "--pid", str(pid)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        pass_on(error)
        return ""
    # Not what comes before the threads: a command line may hold what is not for logs.
    return in_order(dump.partition("\n\n")[2])


def py_spy() -> str | None:
    """Return where py-spy is, in PATH or beside this Python; None: it is not there."""
    import shutil  # (Here, for a light `import shmcast`.)

    return shutil.which("py-spy") or shutil.which("py-spy", path=Path(sys.executable).parent)


def _started(fields: list[str]) -> int:
    # (1: a sandbox's first process starts at 0, which in a segment means that none is written.)
    return max(1, int(fields[_START_TIME]) - _boot_offset())


def _boot_offset() -> int:
    """Return by how many ticks the kernel shifts start times that this process is told."""
    try:
        # The offsets are those of the namespace of children, mostly this process's own.
        if (
            Path("/proc/self/ns/time").readlink()
            != Path("/proc/self/ns/time_for_children").readlink()
        ):
            return 0
    except OSError as error:  # no time namespaces in this kernel
        pass_on(error)
        return 0
    offsets = _core.read_file("/proc/self/timens_offsets")
    lines = offsets.splitlines() if isinstance(offsets, bytes) else []
    for clock, seconds, nanoseconds in map(bytes.split, lines):
        if clock == b"boottime":
            shift = int(seconds) + int(nanoseconds) / 1e9
            return round(shift * _TICKS_PER_SECOND)
    return 0


def _in_words(status: int) -> str:
    """Put a wait status, as wait(2) packs it, in words."""
    if os.WIFEXITED(status):
        return f"exit code {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    try:
        return f"killed by {signal.Signals(number).name}"
    except ValueError:  # a real-time signal
        return f"killed by signal {number}"

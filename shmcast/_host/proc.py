"""What /proc says of a process, also where it is the /proc of another pid namespace.

A new pid namespace may keep the /proc of the one around it (unshare --pid without --mount-proc),
which numbers its processes otherwise; a pidfd tells how.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from shmcast import _core
from shmcast._host.signals import pass_on

# What `os` lacks in Pythons built against headers of before Linux 5.3 (as portable ones are).
_SYS_PIDFD_OPEN = 434

_NUMBERS = re.compile(rb"^NSpid:(.*)$", re.MULTILINE)  # in each namespace from that of /proc on
_NUMBER = re.compile(rb"^Pid:\s*(\d+)$", re.MULTILINE)


def stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the state on; None: no such process.

    Raises:
        PermissionError: /proc hides it, or is another namespace's and doesn't tell which it is.
    """
    number = pid if is_own() else _number(pid)
    return None if number is None else _fields(str(number))


def pids() -> list[int]:
    """Return the processes that /proc shows, by the pids that it has for them, the least first.

    Raises:
        OSError: there is no /proc; an empty folder is none.
    """
    found = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())  # noqa: PTH208
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/proc")
    return found


def own_stat() -> list[str] | None:
    """Return those fields of this process; None where /proc doesn't show it."""
    try:
        return _fields("self")
    except OSError as error:
        pass_on(error)
        return None


def tells_status(pid: int) -> bool:
    """Return whether /proc tells the exit status of zombie `pid`: to others, it says 0."""
    try:
        number = pid if is_own() else _number(pid)
        # By the same permission, and zombies have it, too.
        Path(f"/proc/{number}/ns/user").readlink()
    except OSError as error:
        pass_on(error)
        return False
    return True


def command_line(pid: int) -> str:
    """Return the command line of process `pid`, words apart by spaces; "" where it is not told."""
    words = _core.read_file(f"/proc/{pid}/cmdline") if is_own() else b""
    if isinstance(words, OSError):
        return ""
    return words.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")


def is_own() -> bool:
    """Return whether /proc numbers processes as this process's pid namespace does."""
    try:
        if Path("/proc/self").readlink() != Path(str(os.getpid())):
            return False
    except OSError as error:
        pass_on(error)
        return False
    status = _core.read_file("/proc/self/status")
    if isinstance(status, OSError):
        return False
    found = _NUMBERS.search(status)
    # (Sandboxes lack the line. Without it, two namespaces may number one process alike.)
    return found is None or len(found[1].split()) == 1


def pidfd_open(pid: int) -> int:
    """Return a pidfd of process `pid`.

    Raises:
        OSError: there is no such process (ESRCH), or there are no pidfds.
    """
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    import ctypes  # (Here, for a light `import shmcast`.)

    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SYS_PIDFD_OPEN, pid, 0)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


def _number(pid: int) -> int | None:
    """Return what another namespace's /proc calls process `pid`; None: there is no such process."""
    try:
        pidfd = pidfd_open(pid)
        try:
            info = _core.read_file(f"/proc/self/fdinfo/{pidfd}")
        finally:
            os.close(pidfd)
    except ProcessLookupError:
        return None
    except OSError as error:
        pass_on(error)
        info = b""
    found = None if isinstance(info, OSError) else _NUMBER.search(info)
    if found is None or not int(found[1]):
        raise PermissionError(errno.EACCES, f"/proc does not show process {pid}")
    return int(found[1])


def _fields(name: str) -> list[str] | None:
    line = _core.read_file(f"/proc/{name}/stat")
    if isinstance(line, FileNotFoundError | ProcessLookupError):
        return None  # (the latter when it ends between open and read)
    if isinstance(line, OSError):
        try:
            raise line
        finally:
            del line  # (it would keep this frame, which would keep it)
    # The name before may hold anything, spaces and parentheses included.
    return line[line.rindex(b")") + 1 :].decode().split()

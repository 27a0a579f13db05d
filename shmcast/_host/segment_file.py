"""A segment's name and descriptors: made, found by name or by who has it open, removed.

Knows files in the folder that POSIX shared memory lies in; does not know what is in them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import warnings
from collections.abc import Callable
from pathlib import Path

from shmcast._host.descriptors import above_stdio
from shmcast._host.process import own_start_time, pid_namespace
from shmcast._host.signals import pass_on
from shmcast._host.system_errors import SHM_FOLDER, explained, explaining
from shmcast.errors import SegmentMismatch, SegmentNotFound, ShmcastWarning

# (None: what version 0.1 wrote where /proc did not tell the start time.)
NAME = re.compile(r"shmcast-\d+-(\d+)-(\d+)-(\d+|None)-[0-9a-f]{16}(-arena)?", re.ASCII)
"""A segment's name: pid namespace, pid and start time of its owner, and whether it is an arena."""

MODE = 0o600
"""Of a segment's file: only its user may open it."""

_READ_WRITE = os.O_RDWR | os.O_CLOEXEC


class SegmentFile:
    """This process's descriptor of a segment that it has made, and the segment's name.

    A program may close descriptors by number and open files of its own there: what is closed here
    is still the segment, or it is left alone. Nothing is closed in a fork.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self._identity = _identity(fd)
        self._owner_pid = os.getpid()

    def unlink(self) -> None:
        """Remove the name, see `unlink`."""
        if self._owner_pid == os.getpid():
            unlink(self.name)

    def close(self) -> None:
        """Close the descriptor; idempotent, also where a signal's handler interrupts it."""
        if self.fd < 0 or self._owner_pid != os.getpid():
            return
        with contextlib.suppress(OSError):  # it is closed
            if _identity(self.fd) == self._identity:
                os.close(self.fd)
        self.fd = -1


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def open_name(name: str, flags: int = 0) -> int:
    """Do what shm_open(3) does, and keep 0 to 2 free: what others print there is no message.

    (shm_open's own bindings for Python hide errno.)

    Raises:
        OSError: what the kernel says.
    """
    flags |= os.O_NOFOLLOW
    return above_stdio(os.open(f"{SHM_FOLDER}{name}", flags | _READ_WRITE, MODE))


def make(size: int, size_it: Callable[[int], None], kind: str = "") -> tuple[str, int]:
    """Make a segment's file, named after this process, and size it.

    Args:
        size: bytes, for errors.
        size_it: gives the file behind a descriptor its size; where it raises, nothing is left.
        kind: the end of the name.

    Returns:
        Its name, and a descriptor, which the caller closes.

    Raises:
        SharedMemoryFull: there is no room for one more file.
        HostError: the system refuses.
    """
    what = f"a segment of {size} bytes"
    with explaining(what):
        owner = f"{os.geteuid()}-{pid_namespace()}-{os.getpid()}-{own_start_time()}"
    name = f"/shmcast-{owner}-{os.urandom(8).hex()}{kind}"
    with explaining(what, "open"):
        fd = open_name(name, os.O_CREAT | os.O_EXCL)
    try:
        with explaining(what):
            os.fchmod(fd, MODE)  # whatever the umask took away
        size_it(fd)
    except BaseException:
        os.close(fd)
        unlink(name)
        raise
    return name, fd


def find(name: str, size: int, holder: tuple[int, int] | None = None, rejoin: bool = False) -> int:
    """Return a descriptor of a segment, for the caller to close.

    Args and what is raised: as for `shared_memory.attach`.
    """
    fd = _open(name, holder, rejoin)
    try:
        with explaining(f"the segment {name}"):
            found = os.fstat(fd)
        checks = (
            ("owner uid", os.geteuid(), found.st_uid),
            ("mode", stat.filemode(stat.S_IFREG | MODE), stat.filemode(found.st_mode)),
            ("size in bytes", size, found.st_size),
        )
        for what, want, got in checks:
            if got != want:
                raise SegmentMismatch(f"the segment {name} has {what} {got}, expected {want}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _open(name: str, holder: tuple[int, int] | None, rejoin: bool) -> int:
    try:
        return open_name(name)
    except FileNotFoundError:
        return _open_of_holder(name, holder, rejoin)
    except PermissionError as error:
        raise SegmentMismatch(
            f"the segment {name} belongs to another user, or a policy closes it "
            f"({os.strerror(error.errno or 0)}); who attaches must run as the user who has "
            f"made it, this process runs as uid {os.geteuid()}"
        ) from None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSYS):
            raise explained(error, f"the segment {name}", "open") from error
        pass_on(error)
        # A symbolic link, a socket; a folder.
        raise SegmentMismatch(f"the segment {name} is not a file: {error}") from None


def _open_of_holder(name: str, holder: tuple[int, int] | None, rejoin: bool) -> int:
    """Open the segment by the descriptor of the process that has made it."""
    code, why = errno.ENOENT, ""
    if holder is not None:
        path = "/proc/{}/fd/{}".format(*holder)
        try:
            # The name is random: what has it is the segment, not what another process of that pid
            # has open there. (And nothing else is opened: that could wait, or have effects.)
            place, gone, _ = str(Path(path).readlink()).partition(" (deleted)")
            if place.rpartition("/")[2] == name[1:] and (gone or rejoin):
                # It is the same file; the kernel lets its user in only.
                return above_stdio(os.open(path, _READ_WRITE))
        except PermissionError as error:
            code = error.errno or code
            why = (
                f". If process {holder[0]} has made it, the kernel does not let this one in by its "
                f"descriptor, {path} ({os.strerror(code)}): that needs the other's user, its user "
                "namespace and at least its capabilities, and a process that has not changed its "
                "user since it was started and may be dumped (ptrace(2), access mode "
                "PTRACE_MODE_READ_FSCREDS)"
            )
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR, errno.ENXIO):
                raise explained(error, f"the segment {name}", "open") from error
    raise SegmentNotFound(
        code,
        f"no shared-memory segment {name} on this host: who attaches must run on the node of "
        "the process that made it and share its /dev/shm (containers: --ipc=host or "
        "--ipc=container:<id>), and come while that lives and before all the others are "
        f"there{why}",
    )


def unlink(name: str) -> bool:
    """Remove the name, if it is still there; mappings live on. Warn where that fails.

    Returns:
        Whether it is gone.
    """
    try:
        Path(f"{SHM_FOLDER}{name}").unlink(missing_ok=True)
    except OSError as error:
        said = explained(error, f"the segment {name} stays in {SHM_FOLDER}", "unlink")
        warnings.warn(str(said), ShmcastWarning, stacklevel=2)
        return False
    return True

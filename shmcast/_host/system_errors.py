"""What an error of the operating system means here: its cause, and the way out.

One table, from the call that failed and its errno. Knows the kernel's limits and what sandboxes
refuse; does not know what a segment is for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterator

from shmcast._host.signals import pass_on
from shmcast.errors import HostError, SharedMemoryFull, ShmcastError

SHM_FOLDER = "/dev/shm"  # noqa: S108 (where shm_open puts its names on Linux)

_SIZING = ("open", "ftruncate", "fallocate")
_NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.ENOMEM)

_FEWER = "or ask for fewer or smaller slots, or a smaller arena"
_FILE_SIZE = (
    "it is over the limit on the size of files, {fsize} bytes: raise it (ulimit -f unlimited; "
    f"systemd: LimitFSIZE=infinity), {_FEWER}"
)
_FILTER = (
    "a seccomp filter or a sandbox refuses it to this process: allow {call} there (docker run "
    "--security-opt seccomp=<profile>)"
)

# Cause and way out, by call and errno; "" is any call. {call} is the call.
_CAUSES: dict[tuple[str, int], str] = {
    ("open", errno.ENOENT): "there is no {shm} here: mount one (mount -t tmpfs -o mode=1777 tmpfs "
    "{shm}), or bind the host's into the chroot or sandbox",
    ("open", errno.EROFS): "{shm} is mounted read-only: remount it (mount -o remount,rw {shm}; "
    "Kubernetes: an emptyDir of medium Memory there, without readOnly)",
    ("open", errno.ENOSPC): "{shm} has no inode left for one more file: remove what others left "
    "there, or remount it with more (mount -o remount,nr_inodes=100k {shm})",
    ("open", errno.EDQUOT): "the user's quota on {shm} is used up: remove files there, or raise it",
    ("open", errno.EACCES): "this user may make no file in {shm}: give it the mode it is made for "
    "(chmod 1777 {shm}), or look for a policy that forbids it (SELinux, AppArmor)",
    ("open", errno.EPERM): _FILTER,
    ("ftruncate", errno.EFBIG): _FILE_SIZE,
    ("fallocate", errno.EFBIG): _FILE_SIZE,
    ("fallocate", errno.ENOSPC): "{shm} has {free}: enlarge it (docker run --shm-size=1g, "
    "Kubernetes: an emptyDir of medium Memory on /dev/shm), remove what others left there, "
    f"{_FEWER}",
    ("fallocate", errno.ENOMEM): f"the kernel has no memory for it: free some, {_FEWER}",
    ("mmap", errno.ENOMEM): "there is no address space for it, of which {address_space} bytes are "
    "allowed (raise that: ulimit -v unlimited), or the process has as many mappings as it may "
    f"(sysctl vm.max_map_count), or memory may not be overcommitted; {_FEWER.removeprefix('or ')}",
    ("mmap", errno.EAGAIN): "the process locks its memory (mlockall) and may lock no more: raise "
    "that (ulimit -l unlimited)",
    ("unlink", errno.EACCES): "the file is another user's than this process runs as now (uid "
    "{uid}): remove it as that user (python -m shmcast clean)",
    ("unlink", errno.EPERM): "the file is another user's than this process runs as now (uid "
    "{uid}), or a seccomp filter refuses it: remove it as that user, without the filter (python "
    "-m shmcast clean)",
    ("unlink", errno.EROFS): "{shm} is mounted read-only now: remount it (mount -o remount,rw "
    "{shm}) and remove it (python -m shmcast clean)",
    ("/proc", errno.ENOENT): "there is no /proc here, by which processes know each other: mount it "
    "(mount -t proc proc /proc; bwrap --proc /proc)",
    ("/proc", errno.EACCES): "/proc is closed to this process: mount it without hidepid, or look "
    "for a policy that forbids it (SELinux, AppArmor)",
    ("", errno.EMFILE): "the process has as many open files as it may, {files}: raise that "
    "(ulimit -n; systemd: LimitNOFILE=), or close some",
    ("", errno.ENFILE): "the system has as many open files as it may: raise that (sysctl "
    "fs.file-max)",
    ("", errno.ENOMEM): "the kernel has no memory for it: free some, or raise the memory limit of "
    "the cgroup",
    ("", errno.EPERM): _FILTER,
    ("", errno.ENOSYS): _FILTER,
    ("", errno.EOPNOTSUPP): _FILTER,
}  # fmt: skip

_SAME = {errno.ENOTDIR: errno.ENOENT}


def explained(error: OSError, what: str, call: str = "") -> ShmcastError:
    """Make the error that says why the operating system refused something, and the way out.

    Args:
        error: what it answered.
        what: whose attempt it was, and at what.
        call: the system call, as the table names it.

    Returns:
        `SharedMemoryFull` where something is too small, else `HostError`; with the same errno.
    """
    pass_on(error)
    code = error.errno or 0
    if not call and str(error.filename or "").startswith("/proc"):
        call = "/proc"
    kind = _SAME.get(code, code)
    text = _CAUSES.get((call, kind)) or _CAUSES.get(("", kind)) or "see errno(3)"
    attempt = f"{call}: " if call else f"{error.filename}: " if error.filename else ""
    why = text.format_map(_Facts(call or "that system call"))
    is_full = call in _SIZING and code in _NO_ROOM
    return (SharedMemoryFull if is_full else HostError)(
        code, f"{what}: {attempt}{os.strerror(code)}: {why}"
    )


@contextlib.contextmanager
def explaining(what: str, call: str = "") -> Iterator[None]:
    """Raise an error of the operating system as a `ShmcastError`, see `explained`."""
    try:
        yield
    except ShmcastError:
        raise
    except OSError as error:
        raise explained(error, what, call) from error


class _Facts(dict[str, object]):
    """What causes speak of, looked up when one does."""

    def __init__(self, call: str) -> None:
        super().__init__(call=call, shm=SHM_FOLDER, uid=os.geteuid())

    def __missing__(self, name: str) -> object:
        look: dict[str, Callable[[], object]] = {
            "fsize": lambda: _limit(resource.RLIMIT_FSIZE),
            "address_space": lambda: _limit(resource.RLIMIT_AS),
            "files": lambda: _limit(resource.RLIMIT_NOFILE),
            "free": _free,
        }
        return look[name]()


def _limit(which: int) -> object:
    limit, _ = resource.getrlimit(which)
    return "any number of" if limit == resource.RLIM_INFINITY else limit


def _free() -> str:
    try:
        room = os.statvfs(SHM_FOLDER)
    except OSError:
        return "an unknown part"
    return f"{room.f_bavail * room.f_frsize} bytes free of {room.f_blocks * room.f_frsize}"

"""Processes that the operating system refuses something: limits, filters, mounts, cgroups, users.

Each function confines the calling process for good: call them in a process of a test's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.permissions import NotPermitted
from tests.support.processes import Worker

ANOTHER_UID = 12345

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_RDONLY, _MS_REC, _MS_PRIVATE = 1, 1 << 14, 1 << 18

# Numbers of system calls, by machine.
_CALLS: dict[str, dict[str, tuple[int, ...]]] = {
    "x86_64": {
        "fallocate": (285,),
        "mmap": (9,),
        "fstatfs": (138,),
        "unlink": (87, 263),
        "madvise": (28,),
        "sched_getaffinity": (204,),
        "pidfd_open": (434,),
    },
    "aarch64": {
        "fallocate": (47,),
        "mmap": (222,),
        "fstatfs": (44,),
        "unlink": (35,),
        "madvise": (233,),
        "sched_getaffinity": (123,),
        "pidfd_open": (434,),
    },
}
MAP_SHARED = (3, 1)  # the argument of mmap, and the bit in it


@contextlib.contextmanager
def process(name: str = "a confined process") -> Iterator[Worker]:
    """Give the test a process of its own, which ends with the block."""
    worker = Worker(name)
    try:
        yield worker
    finally:
        worker.end()


def refuse(call: str, code: int, argument: tuple[int, int] | None = None) -> None:
    """Let a system call fail with `code` from now on, as a sandbox's filter does.

    Args:
        call: its name.
        code: the errno.
        argument: refuse only calls with this bit set in this argument.
    """
    numbers = _CALLS[platform.machine()][call]
    refused = 0x00050000 | code  # SECCOMP_RET_ERRNO
    allowed = 0x7FFF0000
    program: list[tuple[int, int, int, int]] = []
    for number in numbers:
        body = [(0x06, 0, 0, refused)]
        if argument is not None:
            place, bit = argument
            body = [(0x20, 0, 0, 16 + 8 * place), (0x45, 0, 1, bit), *body]
        # Load the number; if it is another one, skip the body.
        program += [(0x20, 0, 0, 0), (0x15, 0, len(body), number), *body]
    program.append((0x06, 0, 0, allowed))
    code_bytes = b"".join(struct.pack("@HBBI", *step) for step in program)
    buffer = ctypes.create_string_buffer(code_bytes, len(code_bytes))
    described = struct.pack("@HxxxxxxP", len(program), ctypes.addressof(buffer))
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))))
    _check(_libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), described))


def mount_over(folder: str, options: str = "", read_only: bool = False) -> None:
    """Mount an empty file system on a folder, for this process only."""
    _private_mounts()
    flags = _MS_RDONLY if read_only else 0
    _mount(b"none", folder.encode(), b"tmpfs", flags, options.encode())


def hide(folder: str) -> None:
    """Take a folder away from this process; its parent is empty but for it."""
    mount_over(str(Path(folder).parent))


def become_another_user() -> None:
    """Change to another user, as a daemon does that starts as root."""
    os.setgid(ANOTHER_UID)
    os.setuid(ANOTHER_UID)


def lose_capabilities() -> None:
    """Go on as the same user without any capabilities."""
    header = struct.pack("@Ii", 0x20080522, 0)
    _check(_libc.capset(header, bytes(24)))


def enter_a_user_namespace() -> None:
    """Go on as the same user in another user namespace."""
    uid = os.geteuid()
    if _libc.unshare(_CLONE_NEWUSER) != 0:
        raise NotPermitted.because("can't make a user namespace")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")


def make_pid_namespace() -> None:
    """Let the processes that are forked from now on be in a pid namespace of their own."""
    if _libc.unshare(_CLONE_NEWPID) != 0:
        raise NotPermitted.because("can't make a pid namespace")


def in_namespaces(*kinds: str) -> list[str]:
    """Return the command that starts a program in new namespaces of these kinds.

    Raises:
        NotPermitted: none can be made.
    """
    command = ["unshare", *kinds, "--fork"]
    if shutil.which("unshare") is None:
        raise NotPermitted("there is no unshare here")
    tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)  # noqa: S603
    if tried.returncode:
        raise NotPermitted(f"can't make namespaces: {tried.stderr.strip()}")
    return command


class MemoryCgroup:
    """A cgroup with a memory limit and no swap, for processes that enter it.

    Raises:
        NotPermitted: there is no memory controller to be used here.
    """

    def __init__(self, nbytes: int) -> None:
        top = Path("/sys/fs/cgroup")
        self._is_v1 = (top / "memory").is_dir()
        self.folder = (top / "memory" if self._is_v1 else top) / f"shmcast-test-{os.getpid()}"
        try:
            self.folder.mkdir()
            limit = "memory.limit_in_bytes" if self._is_v1 else "memory.max"
            (self.folder / limit).write_text(str(nbytes))
        except OSError as error:
            self.end()
            raise NotPermitted(f"can't limit a cgroup's memory: {error}") from None

    def enter(self) -> None:
        """Move the calling process there."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def end(self) -> None:
        """Remove it; all of its processes have ended."""
        with contextlib.suppress(FileNotFoundError):
            self.folder.rmdir()


def _private_mounts() -> None:
    if _libc.unshare(_CLONE_NEWNS) != 0:
        raise NotPermitted.because("can't make a mount namespace")
    _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)


def _mount(*arguments: bytes | int | None) -> None:
    if _libc.mount(*arguments) != 0:
        raise NotPermitted.because("can't mount")


def _check(returned: int) -> None:
    if returned != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))

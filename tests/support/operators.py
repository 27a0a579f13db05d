"""Broadcasters for operators' tools to look at, and these tools as programs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

from shmcast import Closed, Hub, HubHandle, Member, Reader, ShmBroadcaster, Writer
from shmcast._endpoints.handle import Handle
from shmcast._host import reports
from tests.support import ranks

COMMAND = [sys.executable, "-W", "error", "-m", "shmcast"]
"""What runs the command line, with warnings as errors."""

_kept: list[Any] = []


def run_shmcast(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(  # noqa: S603
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def rows(*arguments: str, code: int | None = 0) -> list[dict[str, Any]]:
    """Return what a command prints as JSON. Its exit code is this one; None: whatever it is."""
    ran = run_shmcast(*arguments, "--json")
    assert (ran.returncode, ran.stderr) == (ran.returncode if code is None else code, ""), ran
    found = json.loads(ran.stdout)
    assert isinstance(found, list)
    return found


# What processes of their own do.


def open_pair(index: int, label: str, user: int | None = None) -> int:
    """Keep a writer and its reader in this process; return its pid."""
    if user is not None:
        os.setuid(user)
    writer = Writer(1, label=f"{label} {index}")
    _kept.extend([writer, Reader(writer.handle, 0)])
    return os.getpid()


def close_all(_index: int) -> None:
    """Close what this process keeps."""
    while _kept:
        _kept.pop().close()


def keep(endpoint: Any) -> None:
    """Keep an endpoint in this process."""
    _kept.append(endpoint)


def keep_reader(index: int, handle: Handle, answers: bool = False) -> int:
    """Keep a reader that receives nothing, in a process that tells its stacks."""
    if answers:
        os.environ[reports.VARIABLE] = "1"
    _kept.append(Reader(handle, index))
    return os.getpid()


def keep_hub(_index: int, members: int, label: str) -> Any:
    """Keep a hub; return its handle."""
    _kept.append(Hub(members, label=label))
    return _kept[-1].handle


def join(rank: int, size: int, store: str, label: str) -> int:
    """Be a rank of a broadcaster; return the pid."""
    ranks.join(rank, size, store)
    _kept.append(ShmBroadcaster(slots=4, label=label))
    return os.getpid()


def broadcast_for_ever(rank: int) -> None:
    """Send or receive until somebody ends this process."""
    while True:
        _kept[0].broadcast_object("step" if rank == 0 else None)


def call(_index: int, method: str, *args: Any) -> None:
    """Call a method of the first thing that this process keeps."""
    getattr(_kept[0], method)(*args)


def receive_until_closed(_index: int) -> None:
    """Receive with what this process keeps."""
    with contextlib.suppress(Closed):
        while True:
            _kept[0].recv()


def reply_until_closed(_index: int) -> None:
    """Receive, and reply at once."""
    with contextlib.suppress(Closed):
        while True:
            _kept[0].reply(_kept[0].recv())


def keep_member(index: int, handle: HubHandle) -> int:
    """Keep a member of a hub; return the pid."""
    _kept.append(Member(handle, index))
    return os.getpid()


def send_ahead(_index: int, dst: int, count: int) -> None:
    """Send so many objects to a rank that has not received any."""
    for number in range(count):
        _kept[0].isend_object(number, dst=dst)


def wait_for_death() -> None:
    """Do nothing."""
    signal.pause()

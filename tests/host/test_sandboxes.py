"""In sandboxes that refuse what shmcast can do without, all goes on, and nothing is warned of."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from shmcast import PeerDied, Reader, Writer
from shmcast._host import proc
from tests.support import confined
from tests.support.arena_roles import MIB, filled
from tests.support.processes import Worker
from tests.support.ring_roles import (
    SECONDS,
    hand_over,
    handle_at,
    send_until_told,
    wait_for_death,
)
from tests.support.subprocess_programs import wait_until

# Pidfds, and huge pages on demand: what gVisor and older kernels lack, and what filters refuse.
SANDBOXES = {
    "lacking": {"pidfd_open": errno.ENOSYS, "madvise": errno.EINVAL},
    "refusing": {"pidfd_open": errno.EPERM, "madvise": errno.EPERM},
}


class Seen(NamedTuple):
    """What a member has learnt and been warned of."""

    peer: str
    pid: int
    warned: list[str]


@pytest.fixture
def members() -> Iterator[list[Worker]]:
    workers = [Worker(name) for name in ("writer", "reader")]
    yield workers
    for worker in workers:
        worker.end()


def enter(sandbox: str) -> None:
    for call, code in SANDBOXES[sandbox].items():
        confined.refuse(call, code)
    with pytest.raises(OSError, match="Errno"):
        proc.pidfd_open(os.getpid())


def write(sandbox: str, path: Path, is_victim: bool) -> Seen:
    """Send an array; then, until the reader dies, or wait to be killed."""
    enter(sandbox)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Writer(1, slots=2**14, slot_bytes=256, arena_bytes=8 * MIB) as writer:
            hand_over(writer.handle, path)
            writer.send(filled(4 * MIB, 2), SECONDS)
            wait_until(path.with_suffix(".received").exists)
            if is_victim:
                wait_for_death()
            told = send_until_told(writer)
    return Seen(told.peer, told.pid, [str(warning.message) for warning in caught])


def read(sandbox: str, path: Path, is_victim: bool) -> Seen:
    """Receive the array; then wait for more until the writer dies, or to be killed."""
    enter(sandbox)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Reader(handle_at(path), 0) as reader:
            assert np.array_equal(reader.recv(SECONDS), filled(4 * MIB, 2))
            path.with_suffix(".received").touch()
            if is_victim:
                wait_for_death()
            with pytest.raises(PeerDied) as told:
                reader.recv(SECONDS)
    return Seen(told.value.peer, told.value.pid, [str(warning.message) for warning in caught])


@pytest.mark.parametrize("victim", [0, 1], ids=["the writer dies", "the reader dies"])
@pytest.mark.parametrize("sandbox", SANDBOXES)
def test_a_death_is_told_and_nothing_is_warned_of(
    sandbox: str, victim: int, members: list[Worker], tmp_path: Path
) -> None:
    path = tmp_path / "handle"
    jobs = [
        worker.start(role, sandbox, path, k == victim)
        for k, (worker, role) in enumerate(zip(members, (write, read), strict=True))
    ]
    wait_until(path.with_suffix(".received").exists)
    pid = jobs[victim].kill()
    assert jobs[1 - victim].result() == Seen(("writer", "reader 0")[victim], pid, [])

"""What the processes of test_spill.py do."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
from pathlib import Path

import numpy as np

import shmcast
from shmcast import Handle, Reader, Writer
from tests.support.arena_roles import MIB, SECONDS, filled
from tests.support.ring_roles import hand_over
from tests.support.shared_memory import make_private

_MCL_FUTURE = 2
SPARE_ADDRESSES = 512 * MIB
"""Less than the spill, enough for a ring."""


def blocks(writer: Writer) -> int:
    """Return the bytes of memory that the writer's segment has."""
    return os.fstat(writer.handle.holder[1]).st_blocks * 512


def limit_addresses() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def receive_with_few_addresses(index: int, handle: Handle) -> int:
    """Receive one array where there is no room to map the spill; return its sum."""
    limit_addresses()
    with Reader(handle, index) as reader:
        return int(reader.recv(SECONDS).sum(dtype=np.uint64))


def write_with_few_addresses() -> tuple[int, bool]:
    """Return what a writer has of the spill, and whether its memory is what the ring needs."""
    limit_addresses()
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send(filled(MIB))
        reader.recv(SECONDS)
        return writer.handle.spill_bytes, os.fstat(writer.handle.holder[1]).st_size < 6 * MIB


def write_small_files() -> tuple[int, bool]:
    """Do the same where no file may be as large."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * MIB, resource.RLIM_INFINITY))
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send(filled(MIB))
        reader.recv(SECONDS)
        return writer.handle.spill_bytes, os.fstat(writer.handle.holder[1]).st_size < 6 * MIB


def lock_all_memory() -> int | None:
    """Return what a segment takes where all memory is locked as it is mapped; None: it may not."""
    if ctypes.CDLL(None).mlockall(_MCL_FUTURE) != 0:
        return None
    with Writer(1) as writer, Reader(writer.handle, 0):
        return blocks(writer)


def spill_in_small_memory(nbytes: int) -> tuple[list[int], int, int]:
    """Send arrays to a busy reader, beyond what a small /dev/shm has.

    Returns:
        The sums of what the reader has got, how many messages were spilled, and the most memory
        that was taken, in bytes.
    """
    make_private(nbytes)
    sums = []
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:

        def send_all() -> None:
            for k in range(20):
                writer.send(filled(4 * MIB, k))

        sender = threading.Thread(target=send_all)
        sender.start()
        while not writer.statistics().spill_full:
            pass
        most = blocks(writer)
        for _ in range(20):
            sums.append(int(reader.recv(SECONDS).sum(dtype=np.uint64)))
            most = max(most, blocks(writer))
        sender.join()
        return sums, writer.statistics().spilled, most


def spill_and_die(_index: int, path: Path) -> None:
    """Send what is spilled, to a reader that does not look, until killed."""
    with Writer(1) as writer:
        hand_over(writer.handle, path)
        writer.wait_ready(SECONDS)
        for k in range(3):
            writer.send(filled(4 * MIB, k))
        assert writer.statistics().spilled == 3
        writer._end.begin_tensor_set()  # says that it has
        signal.pause()


def hold_on(index: int, handle: Handle, rejoin: bool = False) -> None:
    """Attach, and receive nothing until killed."""
    with Reader(handle, index, rejoin=rejoin) as reader:
        reader._end.begin_tensor_set()  # says that it is here
        signal.pause()


def receive_all(index: int, handle: Handle) -> list[int]:
    """Return the sums of all arrays."""
    sums = []
    with Reader(handle, index) as reader:
        while True:
            try:
                sums.append(int(reader.recv(SECONDS).sum(dtype=np.uint64)))
            except shmcast.Closed:
                return sums

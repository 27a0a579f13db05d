"""The arena and the spill are in huge pages where the kernel gives them, and tell."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shmcast import Reader, Writer
from tests.support import confined
from tests.support.arena_roles import MIB, SECONDS, filled
from tests.support.processes import Worker

HUGE_PAGE = 2 * MIB


@pytest.fixture
def alone() -> Iterator[Worker]:
    with confined.process() as worker:
        yield worker


def mapped(fd: int) -> list[tuple[int, int, str, int]]:
    """Return this process's mappings of a file: address, offset, access, bytes in huge pages."""
    inode, found = os.fstat(fd).st_ino, []
    for region in re.split(r"^(?=[0-9a-f]+-)", Path("/proc/self/smaps").read_text(), flags=re.M):
        words = region.split(maxsplit=5)
        if len(words) > 5 and words[4] == str(inode) and "/shmcast-" in words[5]:
            huge = re.search(r"ShmemPmdMapped: +(\d+) kB", region)
            begin = int(words[0].partition("-")[0], 16)
            found.append((begin, int(words[2], 16), words[1], int(huge[1]) * 1024 if huge else 0))
    return found


def send_beside_the_ring(writer: Writer) -> tuple[int, int, int]:
    """Have most of 13 MiB spilled; return the segment's descriptor, and what is said of it."""
    writer.send(filled(13 * MIB), 0)
    said = writer.statistics()
    assert said.spilled == 1
    return writer.handle.holder[1], said.spill_reserved_bytes, said.spill_huge_bytes


def send_through_the_arena(writer: Writer) -> tuple[int, int, int]:
    writer.send(filled(12 * MIB), 0)
    said = writer.statistics()
    assert said.arena_frames == 1
    assert writer.handle.arena is not None
    return writer.handle.arena.fd, said.arena_reserved_bytes, said.arena_huge_bytes


Send = Callable[[Writer], tuple[int, int, int]]


@pytest.mark.parametrize(
    ("send", "arena_bytes"), [(send_beside_the_ring, 0), (send_through_the_arena, 64 * MIB)]
)
def test_statistics_tell_what_the_kernel_has_mapped(send: Send, arena_bytes: int) -> None:
    with Writer(1, arena_bytes=arena_bytes) as writer, Reader(writer.handle, 0) as reader:
        fd, reserved, huge = send(writer)
        assert huge <= reserved
        views = reader.recv(0, copy=False)
        assert np.array_equal(views, filled(views.nbytes))
        assert huge % HUGE_PAGE == 0
        regions = mapped(fd)
        assert sum(bytes_ for *_, access, bytes_ in regions if access == "rw-s") == huge
        # Whoever reads maps them as such, too.
        assert sum(bytes_ for *_, access, bytes_ in regions if access == "r--s") >= huge - HUGE_PAGE
        for address, offset, access, _ in regions:
            assert access != "r--s" or address % HUGE_PAGE == offset % HUGE_PAGE


def send_where_there_are_none(_index: int) -> tuple[list[int], int, int]:
    """Send where a filter refuses huge pages, as an older kernel does."""
    confined.refuse("madvise", 22)
    sums = []
    with Writer(1, arena_bytes=8 * MIB) as writer, Reader(writer.handle, 0) as reader:
        for nbytes in (4 * MIB, 13 * MIB):
            writer.send(filled(nbytes, 2), 0)
            sums.append(int(reader.recv(SECONDS).sum(dtype=np.uint64)))
        said = writer.statistics()
    return sums, said.arena_huge_bytes, said.spill_huge_bytes


def test_without_them_all_goes_on(alone: Worker) -> None:
    assert alone.start(send_where_there_are_none, 0).result() == ([8 * MIB, 26 * MIB], 0, 0)

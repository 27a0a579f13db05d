"""A writer and its one reader, with an arena between them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmcast import Reader, Writer
from tests.support.arena_roles import ARENA


@pytest.fixture
def writer() -> Iterator[Writer]:
    with Writer(1, arena_bytes=ARENA) as writer:
        yield writer


@pytest.fixture
def waiting_writer() -> Iterator[Writer]:
    """Make a writer that spills nothing: what does not fit the ring waits for its reader."""
    with Writer(1, arena_bytes=ARENA, spill_bytes=0) as writer:
        yield writer


@pytest.fixture
def reader(writer: Writer) -> Iterator[Reader]:
    with Reader(writer.handle, 0) as reader:
        yield reader

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
def reader(writer: Writer) -> Iterator[Reader]:
    with Reader(writer.handle, 0) as reader:
        yield reader

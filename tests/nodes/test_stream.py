"""A stream's end says why it has ended: closed in order, or not."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

import shmcast
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.stream import Stream

FOREVER = Deadline.after(None)


@pytest.fixture
def ends() -> Iterator[list[Stream]]:
    """Rank 0's end, and rank 1's."""
    ends = [
        Stream(end, f"rank {me}", f"rank {1 - me}", lambda: None, cause_seconds=0.0)
        for me, end in enumerate(socket.socketpair())
    ]
    yield ends
    for end in ends:
        end.close()


def test_who_sends_to_one_that_has_closed_in_order_is_told_so(ends: list[Stream]) -> None:
    here, there = ends
    there.send([b"first"], FOREVER, "gather")
    there.close()
    with pytest.raises(shmcast.Closed, match=r"^rank 0: barrier: rank 1 has closed$"):
        here.send([b"lost"], FOREVER, "barrier")
    assert here.receive(FOREVER, "gather") == [b"first"]  # what had come is still there
    for _ in range(2):
        with pytest.raises(shmcast.Closed, match=r"^rank 0: gather: rank 1 has closed$"):
            here.receive(FOREVER, "gather")


def test_an_end_that_is_not_in_order_is_a_death(ends: list[Stream]) -> None:
    here, there = ends
    there.send([b"first"], FOREVER, "gather")
    there.close(in_order=False)
    with pytest.raises(shmcast.PeerDied, match="rank 0: rank 1 has died"):
        here.send([b"lost"], FOREVER, "barrier")
    assert here.receive(FOREVER, "gather") == [b"first"]
    with pytest.raises(shmcast.PeerDied, match="rank 0: rank 1 has died: its connection has ended"):
        here.receive(FOREVER, "gather")

"""A signal's handler that raises while a call looks at its peers: the next call looks again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

import shmcast
from shmcast import PeerDied, Reader, Writer
from shmcast._endpoints import deaths, peers

SECONDS = 30.0
_LOOK = {peers.__file__, deaths.__file__}


class Handled(BaseException):
    """What the handler raises."""


@contextlib.contextmanager
def interrupted_at(number: int) -> Iterator[list[int]]:
    """Raise at so many lines of looking at peers; yield a list of the lines that came before."""
    lines: list[int] = []

    def in_look(frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            lines.append(frame.f_lineno)
            if len(lines) == number:
                raise Handled
        return in_look

    def trace(frame: FrameType, _event: str, _argument: Any) -> Any:
        return in_look if frame.f_code.co_filename in _LOOK else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


def fail(handle: shmcast.Handle, index: int, rejoin: bool = False) -> None:
    """Take a place and end without close()."""
    with pytest.raises(ZeroDivisionError), Reader(handle, index, rejoin=rejoin):
        raise ZeroDivisionError


def look_at_a_death(number: int, drops: bool, is_replaced: bool) -> bool:
    """Interrupt the look that finds a death; return whether there were as many lines."""
    told: list[PeerDied] = []
    options: Any = {"on_reader_death": "drop", "on_death": told.append} if drops else {}
    with (
        Writer(2, slots=4, slot_bytes=1024, **options) as writer,
        Reader(writer.handle, 0) as reader,
    ):
        other = Reader(writer.handle, 1)
        writer.send("all are watched")
        other._end.give_up()
        if is_replaced:
            fail(writer.handle, 1, rejoin=True)
        was_interrupted = False
        try:
            with interrupted_at(number) as lines:
                writer.send("interrupted", timeout=SECONDS)
        except Handled:
            was_interrupted = True
            assert len(lines) == number
        except PeerDied:
            assert not drops
        if drops:
            writer.send("the next", timeout=SECONDS)
            died = writer.dropped[1]
            # (An interrupted on_death is not called again: here its first line may be.)
            assert 1 + is_replaced - was_interrupted <= len(told) <= 1 + is_replaced
        else:
            with pytest.raises(PeerDied) as caught:
                writer.send("the next", timeout=SECONDS)
            died = caught.value
        assert died.how == peers.ENDED_WITHOUT_CLOSE
        assert reader.recv(SECONDS) == "all are watched"
    return was_interrupted


@pytest.mark.parametrize(("drops", "is_replaced"), [(False, False), (True, False), (True, True)])
def test_the_next_call_tells_of_a_death_wherever_the_look_was_interrupted(
    drops: bool, is_replaced: bool
) -> None:
    number = 1
    while look_at_a_death(number, drops, is_replaced):
        number += 1
    assert number > 20

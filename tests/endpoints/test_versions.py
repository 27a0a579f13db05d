"""Processes with two versions of shmcast that meet are told so, and which versions they have."""

from __future__ import annotations

import dataclasses
import mmap
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmcast
from shmcast import Handle, Hub, HubHandle, Member, Reader, ShmBroadcaster, Writer, _core
from shmcast._group.group_handle import GroupHandle
from shmcast._operators.discovery import open_segments
from shmcast._operators.snapshot import take

TOLD = (
    rf"was made by shmcast 9\.8\.7, with layout version 99; this process has shmcast "
    rf"{shmcast.__version__}, with layout version {_core.LAYOUT_VERSION}"
)
LAYOUT_OFFSET = 8


def test_a_handle_knows_the_versions_of_its_writer() -> None:
    with Writer(1) as writer, Hub(1) as hub:
        for handle in (writer.handle, hub.handle):
            copy = pickle.loads(pickle.dumps(handle))  # noqa: S301
            assert copy == handle
            assert type(copy) is type(handle)
            assert (copy.layout, copy.version) == (_core.LAYOUT_VERSION, shmcast.__version__)


@pytest.mark.parametrize(
    ("make", "join"),
    [(Writer, Reader), (Hub, Member)],
    ids=["a ring", "a hub"],
)
def test_another_versions_segment_is_refused(
    make: Callable[[int], Writer | Hub], join: Callable[[Any, int], object]
) -> None:
    with make(1) as end:
        other = dataclasses.replace(end.handle, layout=99, version="9.8.7")
        with pytest.raises(shmcast.SegmentMismatch, match=TOLD):
            join(other, 0)


@pytest.mark.parametrize(
    ("cls", "join"),
    [(Handle, Reader), (HubHandle, Member), (GroupHandle, ShmBroadcaster.rejoin)],
    ids=["a ring", "a hub", "a group"],
)
def test_a_handle_with_other_fields_can_be_read_for_what_it_tells_of_its_version(
    cls: type[Handle], join: Callable[[Any, int], object]
) -> None:
    class Pickled:
        def __reduce__(self) -> tuple[Any, ...]:
            fields = {"name": "/shmcast-of-tomorrow", "way": "new", "layout": 99}
            return cls._restored, ({**fields, "version": "9.8.7"},)

    handle = pickle.loads(pickle.dumps(Pickled()))  # noqa: S301
    with pytest.raises(shmcast.SegmentMismatch, match=TOLD):
        join(handle, 0)


def test_operators_are_told_whose_segment_they_can_not_read() -> None:
    with Writer(1) as writer:
        path = Path("/dev/shm", writer.handle.name[1:])
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            memory[LAYOUT_OFFSET] = 99
        [segment] = [each for each in open_segments() if f"/{each.name}" == writer.handle.name]
        told = take(segment).error
        assert told == (
            f"it has layout version 99, of shmcast {shmcast.__version__}; this shmcast reads "
            f"version {_core.LAYOUT_VERSION}"
        )

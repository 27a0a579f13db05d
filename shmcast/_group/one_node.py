"""Set up a broadcaster whose ranks all share one node: the source's writer, the others' readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.handle import Handle
from shmcast._group.options import Options

if TYPE_CHECKING:
    from shmcast._group.rendezvous import Rendezvous


def connect_one_node(
    meeting: Rendezvous,
    options: Options,
    warmup: Callable[[], object] | None,
    equip: Callable[[FrameWriter | FrameReader, list[int]], None],
    error: Exception | None,
) -> None:
    """Bring the source's writer and the other ranks' readers together: a collective of the group.

    What goes wrong on one rank is raised on every rank.

    Args:
        meeting: of the group.
        options: the user's.
        warmup: see `FrameReader`.
        equip: is given this rank's end, and the readers' global ranks by index.
        error: why this rank can't take part, which the others are told.
    """
    end: FrameWriter | FrameReader | None = None

    def make_writer() -> Handle | None:
        nonlocal end
        if meeting.rank != meeting.group_src:
            return None
        end = FrameWriter(
            len(meeting.readers),
            label=meeting.label,
            reader_label=meeting.names.__getitem__,
            **options.for_writer(),
        )
        return end.handle

    def attach() -> None:
        nonlocal end
        if end is None:
            assert handle is not None  # noqa: S101 (the source has made it)
            end = FrameReader(
                handle,
                meeting.readers.index(meeting.rank),
                label=meeting.label,
                peer_label=meeting.names.__getitem__,
                warmup=warmup,
                **options.for_reader(),
            )
        equip(end, [meeting.ranks[r] for r in meeting.readers])

    try:
        handle = meeting.share(make_writer, error)[meeting.group_src]
        meeting.confirm(attach)
        assert end is not None  # noqa: S101 (else there was an error)
        end.watch_peers()
    except BaseException:
        if end is not None:
            end.give_up()  # (others may have theirs, and must not take this for an end in order)
        raise

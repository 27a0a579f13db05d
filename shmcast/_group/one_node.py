"""Set up a broadcaster whose ranks all share one node: the source's writer, the others' readers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from shmcast._endpoints.description import Description
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.handle import Handle
from shmcast._group.group_handle import title_of
from shmcast._group.options import Options
from shmcast._nodes.topology import Topology

if TYPE_CHECKING:
    from shmcast._group.rendezvous import Rendezvous

ALL_MUST_RECEIVE = (
    "every rank must receive what the source broadcasts; for answers there are gather_object and "
    "isend_object"
)
"""For who has made a broadcaster of another source as a way back, from one rank to one."""


class OneNode:
    """This rank's end of a ring for all ranks of a group, if they all share the source's node.

    Args:
        meeting: of the group.
        options: the user's.
        warmup: see `FrameReader`.
        equip: is given this rank's end and the topology.
    """

    def __init__(
        self,
        meeting: Rendezvous,
        options: Options,
        warmup: Callable[[], object] | None,
        equip: Callable[[FrameWriter | FrameReader, Topology], None],
    ) -> None:
        self._meeting = meeting
        self._options = options
        self._warmup = warmup
        self._equip = equip
        self._end: FrameWriter | FrameReader | None = None

    def make_writer(self) -> Handle:
        """Make the source's end.

        Raises:
            ShmcastError: what `Writer` raises.
        """
        meeting = self._meeting
        self._end = FrameWriter(
            len(meeting.readers),
            label=meeting.label,
            reader_label=meeting.names.__getitem__,
            description=Description(title_of(meeting.ranks, meeting.group_name)),
            **self._options.for_writer(),
        )
        self._end.advise(ALL_MUST_RECEIVE)
        return self._end.handle

    def attach(self, handle: Handle, topology: Topology) -> None:
        """Make this rank's end, if it is not the source; and what it sends or receives with.

        Args:
            handle: of the source's end.
            topology: of one node.

        Raises:
            ShmcastError: what `Reader` raises.
        """
        meeting = self._meeting
        if self._end is None:
            self._end = FrameReader(
                handle,
                meeting.readers.index(meeting.rank),
                label=meeting.label,
                peer_label=meeting.names.__getitem__,
                warmup=self._warmup,
                **self._options.for_reader(),
            )
        self._equip(self._end, topology)

    def populate(self) -> None:
        """Do what is left to do with this rank's end, if there is one: it need not delay others."""
        if self._end is not None:
            self._end.populate()

    def begin(self) -> None:
        """Watch the others, who all have their ends."""
        assert self._end is not None  # noqa: S101 (else there was an error)
        self._end.watch_peers()

    def undo(self) -> None:
        """End this rank's end: others may have theirs, and must not take this for one in order."""
        if self._end is not None:
            self._end.give_up()

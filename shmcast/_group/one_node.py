"""Set up a broadcaster whose ranks all share one node: the source's writer, the others' readers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shmcast._endpoints.reader import Reader
from shmcast._endpoints.writer import Writer
from shmcast._group.options import Options

if TYPE_CHECKING:
    from shmcast._group.rendezvous import Rendezvous


def connect_one_node(meeting: Rendezvous, options: Options) -> Writer | Reader:
    """Brings the source's writer and the other ranks' readers together."""
    endpoint: Writer | Reader | None = None
    error: Exception | None = None
    try:
        try:
            if meeting.rank == meeting.group_src:
                endpoint = Writer(
                    len(meeting.readers),
                    label=meeting.label,
                    reader_label=meeting.names.__getitem__,
                    **options.for_writer(),
                )
        except Exception as caught:
            error = caught
        handle = meeting.share(endpoint and endpoint.handle, error)[meeting.group_src]
        try:
            if endpoint is None:
                endpoint = Reader(
                    handle,
                    meeting.readers.index(meeting.rank),
                    label=meeting.label,
                    peer_label=meeting.names.__getitem__,
                    **options.for_reader(),
                )
        except Exception as caught:
            error = caught
        meeting.confirm(error)
        assert endpoint is not None  # noqa: S101 (else there was an error)
        endpoint._meet()
    except BaseException:
        if endpoint is not None:
            endpoint.close()
        raise
    return endpoint

"""`ShmBroadcaster`: one per process group; knows ranks and the source, not slots or bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from shmcast.codec import Codec
from shmcast.endpoint import (
    DEFAULT_SLOT_BYTES,
    DEFAULT_SLOTS,
    Handle,
    Reader,
    Statistics,
    Writer,
)
from shmcast.errors import (
    Closed,
    InvalidArgument,
    NotOneNode,
    SegmentError,
    SegmentNotFound,
    WrongRole,
)
from shmcast.waiting import WaitPolicy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ShmBroadcaster:
    """Broadcasts Python objects from one rank of a process group to all others of the node.

    Making one is a collective: every rank of the group makes it, at the same point of its program
    and with the same source, as for `torch.distributed.new_group`. From then on the group is not
    used any more, and calls of several broadcasters don't disturb each other. In a group of one
    rank there is no segment and nothing is copied.

    Args:
        group: a process group of any backend; None is the default group. All of its ranks must be
            on one node.
        src: the source as a global rank; None to give it by `group_src`.
        group_src: the source as a rank in the group.
        wait: see `Writer` and `Reader`; may differ from rank to rank.
        codec: see `Writer` and `Reader`; must be the like on every rank.
        slots: see `Writer`. Only the source's value counts.
        slot_bytes: see `Writer`. Only the source's value counts.

    Raises:
        InvalidArgument: no such rank in the group, this process is not in the group, or the ranks
            name different sources.
        SharedMemoryFull: on the source; the other ranks then raise SegmentError.
        NotOneNode: some rank can't see the source's shared memory. Raised on every rank.
        SegmentError: another rank could not set up; the message says which one and why.
    """

    _send: Callable[[Any, float | None], None]  # on the source
    _warm: Callable[[], None]
    _recv: Callable[[float | None], Any]  # elsewhere

    def __init__(
        self,
        group: ProcessGroup | None = None,
        src: int | None = None,
        group_src: int = 0,
        *,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        slots: int = DEFAULT_SLOTS,
        slot_bytes: int = DEFAULT_SLOT_BYTES,
    ) -> None:
        ranks, rank = _members(group)
        group_src = _source(ranks, src, group_src)
        self.group_rank: int = rank
        """This process's rank in the group."""
        self.group_size: int = len(ranks)
        """Number of ranks in the group."""
        self.group_src: int = group_src
        """The source's rank in the group."""
        self.src: int = ranks[group_src]
        """The source's global rank."""
        self.is_src: bool = rank == group_src
        """Whether this process is the source."""
        self._label = f"rank {ranks[rank]} (rank {rank} of {len(ranks)} in {_group_name(group)})"
        self._endpoint: Writer | Reader | _Alone = _Alone(self._label)
        if len(ranks) > 1:
            self._set_up(group, ranks, rank, wait, codec, slots, slot_bytes)
        # Bound once: in a decode loop every look-up on the way is a cache miss.
        if isinstance(self._endpoint, Reader):
            self._recv = self._endpoint.recv
        else:
            self._send = self._endpoint.send
            self._warm = self._endpoint.warm

    def _set_up(
        self,
        group: ProcessGroup | None,
        ranks: list[int],
        rank: int,
        wait: WaitPolicy | None,
        codec: Codec | None,
        slots: int,
        slot_bytes: int,
    ) -> None:
        """Brings the source's writer and the other ranks' readers together."""
        group_src = self.group_src
        readers = [r for r in range(len(ranks)) if r != group_src]
        # Whatever goes wrong on one rank before the others know is carried to them: none of them
        # must be left in a collective.
        error: Exception | None = None
        if self.is_src:
            try:
                self._endpoint = Writer(
                    len(readers),
                    slots=slots,
                    slot_bytes=slot_bytes,
                    wait=wait,
                    codec=codec,
                    label=self._label,
                    reader_label=lambda index: f"rank {ranks[readers[index]]}",
                )
            except Exception as caught:
                error = caught
        try:
            handle = self._agree(group, ranks, error)
            if not self.is_src:
                try:
                    self._endpoint = Reader(
                        handle, readers.index(rank), wait=wait, codec=codec, label=self._label
                    )
                except Exception as caught:
                    error = caught
            self._confirm(group, ranks, error)
        except BaseException:
            self.close()
            raise

    def _agree(
        self, group: ProcessGroup | None, ranks: list[int], error: Exception | None
    ) -> Handle:
        """Tells every rank the source's handle, or why there is none."""
        handle = self._endpoint.handle if isinstance(self._endpoint, Writer) else None
        offers = _all_gather(group, _Offer(self.group_src, handle, str(error) if error else ""))
        sources = {offer.group_src for offer in offers}
        if len(sources) > 1:
            said = ", ".join(
                f"rank {r} says {offer.group_src}" for r, offer in zip(ranks, offers, strict=True)
            )
            raise InvalidArgument(
                f"{self._label}: the ranks name different sources by rank in the group: {said}; "
                "pass the same src or group_src on every rank"
            )
        if error is not None:
            raise error
        offer: _Offer = offers[self.group_src]
        if offer.handle is None:
            raise SegmentError(
                f"{self._label}: the source, rank {self.src}, could not set up: {offer.error}"
            )
        return offer.handle

    def _confirm(
        self, group: ProcessGroup | None, ranks: list[int], error: Exception | None
    ) -> None:
        """Raises on every rank if any rank could not attach."""
        outcome = _Outcome(
            os.uname().nodename, str(error or ""), isinstance(error, SegmentNotFound)
        )
        outcomes = _all_gather(group, outcome)
        failed = [(r, o) for r, o in zip(ranks, outcomes, strict=True) if o.error]
        if not failed:
            return
        if error is not None and not isinstance(error, SegmentNotFound):
            raise error
        said = "; ".join(f"rank {r} on host {o.host}: {o.error}" for r, o in failed)
        kind = NotOneNode if any(o.not_found for _, o in failed) else SegmentError
        raise kind(
            f"{self._label}: {len(failed)} of {len(ranks)} ranks can't attach the shared memory of "
            f"the source, rank {self.src} on host {outcomes[self.group_src].host}: {said}. All "
            "ranks of a ShmBroadcaster must be on one node: make one for each node's ranks "
            "(torch.distributed.new_group), or let the containers share /dev/shm"
        ) from error

    def broadcast_object(self, obj: Any = None, timeout: float | None = None) -> Any:
        """Sends `obj` on the source, receives it on every other rank; returns it on all.

        On the source it returns when the object is in shared memory, and returns `obj` itself.

        Args:
            obj: on the source, anything that the codec can encode; ignored elsewhere.
            timeout: seconds, None for ever: for room in the ring on the source, for the object
                elsewhere.

        Raises:
            What `Writer.send` raises on the source, and `Reader.recv` elsewhere.
        """
        if self.is_src:
            self._send(obj, timeout)
            return obj
        return self._recv(timeout)

    def send(self, obj: Any, timeout: float | None = None) -> None:
        """`broadcast_object` for code that runs on the source only.

        Raises:
            WrongRole: on another rank. And what `Writer.send` raises.
        """
        if not self.is_src:
            raise WrongRole(
                f"{self._label}: send() is for the source, rank {self.src}; call recv() here"
            )
        self._send(obj, timeout)

    def recv(self, timeout: float | None = None) -> Any:
        """`broadcast_object` for code that runs on the other ranks only.

        Raises:
            WrongRole: on the source. And what `Reader.recv` raises.
        """
        if self.is_src:
            raise WrongRole(
                f"{self._label}: recv() is for the other ranks, this is the source; call send()"
            )
        return self._recv(timeout)

    def warm(self) -> None:
        """Makes the next `send` faster; see `Writer.warm`. Does nothing on the other ranks.

        Raises:
            What `Writer.warm` raises.
        """
        if self.is_src:
            self._warm()

    def statistics(self) -> Statistics:
        """What this rank has sent or received so far."""
        return self._endpoint.statistics()

    def close(self) -> None:
        """Ends this rank's part; idempotent, not a collective.

        Closed on the source, the other ranks receive what was sent and then raise `Closed`. Closed
        elsewhere, the source goes on with the others.
        """
        self._endpoint.close()

    def __enter__(self) -> ShmBroadcaster:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class _Alone:
    """The endpoint of a group of one rank: it only counts."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._messages = 0
        self._closed = False

    def send(self, _obj: Any, _timeout: float | None) -> None:
        if self._closed:
            raise Closed(f"{self._label}: used after close(); make a new broadcaster")
        self._messages += 1

    def warm(self) -> None:
        pass

    def statistics(self) -> Statistics:
        return Statistics(messages=self._messages)

    def close(self) -> None:
        self._closed = True


@dataclass(frozen=True)
class _Offer:
    """What each rank brings to the set-up."""

    group_src: int
    handle: Handle | None
    error: str


@dataclass(frozen=True)
class _Outcome:
    """How each rank's attach ended; no error: well."""

    host: str
    error: str
    not_found: bool


def _members(group: ProcessGroup | None) -> tuple[list[int], int]:
    """The group's global ranks, in the order of the group, and this process's rank in it."""
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise InvalidArgument(
            f"process {os.getpid()}: torch.distributed is not initialised; call "
            "torch.distributed.init_process_group first, or use shmcast.Writer and shmcast.Reader"
        )
    me = dist.get_rank()
    # What new_group() returns to a rank that is not in it is not a group at all.
    outside = group is cast("object", dist.GroupMember.NON_GROUP_MEMBER)
    group = dist.group.WORLD if group is None else group  # torch 2.4 takes no None here
    ranks = [] if outside else dist.get_process_group_ranks(group)
    if me not in ranks:
        raise InvalidArgument(
            f"rank {me} is not a member of the group (ranks {ranks or 'unknown here'}); make the "
            "broadcaster only on the group's ranks"
        )
    return ranks, ranks.index(me)


def _source(ranks: list[int], src: int | None, group_src: int) -> int:
    """The source as a rank in the group."""
    if src is not None:
        if src not in ranks:
            raise InvalidArgument(f"src={src!r} is not one of the group's global ranks {ranks}")
        if group_src not in (0, ranks.index(src)):
            raise InvalidArgument(
                f"src={src} is rank {ranks.index(src)} of the group but group_src={group_src}; "
                "give one of them"
            )
        return ranks.index(src)
    if not isinstance(group_src, int) or not 0 <= group_src < len(ranks):
        raise InvalidArgument(
            f"group_src={group_src!r} is not a rank of the group: it has ranks 0 to "
            f"{len(ranks) - 1} (global ranks {ranks}); a global rank is given as src"
        )
    return group_src


def _group_name(group: ProcessGroup | None) -> str:
    import torch.distributed as dist

    description = getattr(dist.group.WORLD if group is None else group, "group_desc", "")
    return f"group {description!r}" if description else "the group"


def _all_gather(group: ProcessGroup | None, mine: Any) -> list[Any]:
    import torch.distributed as dist

    everybody: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everybody, mine, group=group)
    return everybody

"""The source's end in a group of several nodes: its own node's ring, and all other nodes.

It has the face of the writer whose place it takes, sends in one order everywhere, and closes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, NoReturn

from shmcast._codecs.base import Frame
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.loans import Shape
from shmcast._endpoints.peers import ENDED_WITHOUT_CLOSE
from shmcast._endpoints.statistics import Statistics
from shmcast._host.log import tell
from shmcast._nodes.addresses import Address
from shmcast._nodes.failure import CLOSED, Failure, FailurePage
from shmcast._nodes.gloo_group import leak_at_exit
from shmcast._nodes.node_ring import NodeWriter, NoRing, dropped_of
from shmcast._nodes.remote_nodes import CLOSE_SECONDS, RemoteNodes
from shmcast._nodes.topology import Topology
from shmcast._nodes.views import flat_views
from shmcast.errors import Closed, ConcurrentUse, Interrupted, PeerDied, ShmcastError

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from shmcast._endpoints.loans import LoanedArray

LINGER_SECONDS = 10.0
"""How long an interpreter that exits waits for what was sent to be taken."""


class SourceRelay:
    """The endpoint of a source in a group of several nodes.

    Args:
        ring: writes to the ring of the source's own node; None: it has no other rank.
        page: what that ring's readers look at when it is closed; None: there is none.
        topology: the group's.
        src: the source's global rank.
        label: how errors name this rank.
        key: of the relay's groups; also what a leader must know.
        drops: go on without nodes and ranks that are lost.
        warn_after: seconds of a wait until the log says who is slow; None: never.
    """

    def __init__(
        self,
        ring: NodeWriter | None,
        page: FailurePage | None,
        topology: Topology,
        *,
        src: int,
        label: str,
        key: str,
        drops: bool,
        warn_after: float | None,
    ) -> None:
        self.label: str = label
        """How errors name this end."""
        self._src = src
        self._ring: NodeWriter | NoRing = ring or NoRing(label)
        self._seats = self._ring  # of the own node's ranks, also of those that are no more there
        self._page = page
        self._drops = drops
        self._turn = threading.Lock()  # one thread sends at a time
        here = topology.node_of(src)
        self._readers = [rank for rank in here.ranks if rank != src]
        self._remote = RemoteNodes(
            [node for node in topology.nodes if node != here],
            label=label,
            key=key,
            drops=drops,
            warn_after=warn_after,
            turn=self._turn,
            on_failure=self._on_failure,
            on_finish=self._on_finish,
        )
        self.addresses: list[Address] = self._remote.addresses
        """Where leaders find this one."""
        self.store_port: int = self._remote.store_port
        """Where they find its store, on the same host."""
        self._pid = os.getpid()
        self._on_dropped: Callable[[list[int]], object] | None = None

    def join(self, pids: dict[int, int]) -> None:
        """Make the gloo group, with all leaders.

        Args:
            pids: the leaders' processes by global rank.

        Raises:
            RuntimeError: gloo could not connect them all.
        """
        self._remote.join(pids)
        self._ring.call_on_death(self._on_death)
        _open.add(self)
        if not _registered:
            # Runs at the exit of multiprocessing's processes, too, where atexit does not.
            _registered.append(Finalize(None, _linger, exitpriority=10))

    # The face of a writer.

    @property
    def handle(self) -> Handle | None:
        """Where readers find the ring of the source's own node; None: it has none."""
        return self._ring.handle

    def warm(self, warmup: Callable[[], None] | None = None) -> None:
        """See `FrameWriter.warm`."""
        self._ring.warm(warmup)

    def empty(self, shape: Shape, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `Writer.empty`; without a ring, return ordinary memory."""
        return self._ring.empty(shape, dtype)

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None) -> torch.Tensor:
        """See `Writer.empty_tensor`; without a ring, return ordinary memory."""
        return self._ring.empty_tensor(shape, dtype)

    def thaw(self, array: LoanedArray) -> bool:
        """See `Writer.thaw`; other nodes have copies."""
        return self._ring.thaw(array)

    def record_stream(self, array: LoanedArray, stream: torch.Stream) -> None:
        """See `Writer.record_stream`."""
        self._ring.record_stream(array, stream)

    def not_encoded(self) -> None:
        """Do nothing: nobody asks whether it was sent."""

    def forget_views(self) -> None:
        """See `FrameWriter.forget_views`."""
        self._ring.forget_views()

    def interrupt(self) -> None:
        """See `FrameEnd.interrupt`."""
        self._remote.interrupt()
        self._ring.interrupt()

    def publish(self, frames: Sequence[Frame], timeout: float | None = None) -> None:
        """Publish one message on all nodes or, if this raises a ShmcastError, on none.

        Args:
            frames: contiguous buffers; their memory is read before this returns.
            timeout: seconds to wait for room, None for ever.

        Raises:
            TypeError, BufferError: `frames` is no sequence of contiguous buffers.
            MessageTooLarge: more than 1 TiB, or more than 8 388 607 frames.
            Timeout: some node has not taken enough.
            Interrupted: `interrupt` was called.
            Closed: this end is closed, or every rank has closed.
            PeerDied: a rank has died.
            NodeLost: a node is out of reach.
            ConcurrentUse: another thread is inside this end.
            Forked: this process was forked from the source's.
        """
        if not self._turn.acquire(blocking=False):
            self._take_turn()
        try:
            if not self._remote.is_ready():
                timeout = self._remote.wait_for_room(timeout)
            if self._remote.take_interrupt() and isinstance(self._ring, NoRing):  # (a ring tells)
                raise Interrupted(f"{self.label}: send was ended by interrupt(); call again")
            if not self._remote.is_connected and isinstance(self._ring, NoRing):
                raise self._nobody_is_left()
            # What can be wrong with the frames is found before any node has the message.
            views = flat_views(frames)
            try:
                self._publish_here(frames, timeout)
                if self._remote.is_connected:
                    self._remote.send(views)
            except BaseException as error:
                if not isinstance(error, ShmcastError):  # (of those, the message is nowhere)
                    self._fail_if_uneven(error)
                raise
        finally:
            self._turn.release()

    def _nobody_is_left(self) -> ShmcastError:
        what = f"{self.label}: send: every rank has"
        lost = [failure.error(self.label) for failure in self._remote.lost.values()]
        dead = [e for e in [*lost, *self.dropped().values()] if isinstance(e, PeerDied)]
        if not dead:
            return Closed(f"{what} closed, nobody is left to receive")
        text = f"{what} died or closed, nobody is left to receive; the first that died: {dead[0]}"
        return PeerDied(text, dead[0].peer, dead[0].pid, dead[0].how)

    @property
    def outbox(self) -> SourceRelay:
        """See `FrameSink`."""
        return self

    def __setitem__(self, timeout: float | None, frames: Sequence[Frame], /) -> None:
        """Do what `publish` does."""
        self.publish(frames, timeout)

    def not_published(self, error: BaseException, _timeout: float | None, /) -> NoReturn:
        """See `FrameSink`: the errors of `publish` say what they mean."""
        try:
            raise error
        finally:
            del error  # in a cycle, it would hold what was to be sent until it is collected

    def _take_turn(self) -> None:
        """Take the turn that was taken, if it was a heartbeat's."""
        with self._remote.interlude:
            if self._turn.acquire(blocking=False):
                return
        raise ConcurrentUse(
            f"{self.label}: send while another thread is inside this endpoint; give each "
            "thread an endpoint of its own, or guard this one with a lock"
        )

    def statistics(self) -> Statistics:
        """See `Writer.statistics`."""
        remote = self._remote
        if isinstance(self._ring, NoRing):
            here = Statistics(messages=remote.messages, payload_bytes=remote.payload_bytes)
        else:
            here = self._ring.statistics()
        return remote.statistics(here)

    def close(self) -> None:
        """End the source; what was sent still arrives while this process lives. Idempotent."""
        if self._refuse_messages():
            self._close_ring()
            self._close_remote(CLOSED)

    def give_up(self) -> None:
        """End it otherwise than in order: all ranks are told, after what was sent; idempotent."""
        if self._refuse_messages():
            self._ring.give_up()
            self._ring.call_no_more()
            self._close_remote(self._death())

    def _end_at_exit(self) -> None:
        """Tell the other nodes that the program ends without `close`; the own one will know."""
        if self._refuse_messages():
            self._close_remote(self._death())

    def _death(self) -> Failure:
        name = f"rank {self._src}, the source"
        text = f"{name} (pid {self._pid}), has {ENDED_WITHOUT_CLOSE}"
        return Failure("PeerDied", text, name, self._pid, ENDED_WITHOUT_CLOSE)

    def _refuse_messages(self) -> bool:
        """Accept no further message; return False if there is nothing to end."""
        if os.getpid() != self._pid:
            return False  # a fork's: all of it is its parent's
        if not self._remote.refuse_messages():
            return False
        if self._remote.failure is not None:  # (the thread that found it may not be so far yet)
            self._write_page(self._remote.failure)
        return True

    def _close_remote(self, ending: Failure) -> None:
        # (Not for ever: a signal's handler may have come between a send and its end.)
        is_mine = self._turn.acquire(timeout=CLOSE_SECONDS)
        try:
            self._remote.close(is_mine, ending)
        finally:
            if is_mine:
                self._turn.release()

    def dropped(self) -> dict[int, PeerDied]:
        """See `FrameWriter.dropped`: of the source's own node."""
        return self._seats.dropped()

    def lost_nodes(self) -> dict[int, Failure]:
        """Return how other nodes were lost that are dropped, by index. From any thread."""
        return {**self._remote.lost}

    def begin_tensor_set(self) -> None:
        """See `FrameEnd.begin_tensor_set`."""
        try:
            self._ring.begin_tensor_set()
        except Closed:
            self._remote.raise_failure()
            raise

    def tensor_sets(self) -> list[int]:
        """See `FrameEnd.tensor_sets`."""
        return self._ring.tensor_sets()

    def check_peers(self) -> None:
        """See `FrameEnd.check_peers`."""
        self._remote.raise_failure()
        self._ring.check_peers()

    def end_all(self, failure: Failure) -> None:
        """End everything, on all nodes, because of what a collective has found."""
        self._remote.fail(failure)

    def tell_death(self, index: int) -> None:
        """See `FrameEnd.tell_death`: to the source's own node."""
        self._seats.tell_death(index)

    def departed(self) -> dict[int, str]:
        """See `FrameEnd.departed`: of the source's own node."""
        return self._seats.departed()

    def death_of_reader(self, index: int) -> PeerDied:
        """See `FrameEnd.death_of_reader`: of the source's own node."""
        assert not isinstance(self._seats, NoRing)  # noqa: S101 (there is such a reader)
        return self._seats.death_of_reader(index)

    def call_on_dropped(self, on_dropped: Callable[[list[int]], object]) -> None:
        """Call `on_dropped` in any thread with ranks that have died, and are dropped.

        They are of the source's own node, or all ranks of another one that was lost.
        """
        self._on_dropped = on_dropped
        self._remote.on_node_dropped = lambda node: on_dropped([*node.ranks])
        self._on_death()

    # The source's own node.

    def _publish_here(self, frames: Sequence[Frame], timeout: float | None) -> None:
        try:
            self._ring.publish(frames, timeout)
            return
        except (Closed, PeerDied) as error:
            self._remote.raise_failure()
            if isinstance(error, PeerDied) and not self._drops:
                self._remote.fail(Failure.of(error, self.label))
                raise
            if self._remote.closed or not self._remote.is_connected:
                raise
        # All readers of the own node have closed: the others go on.
        self._close_ring()
        self._ring = NoRing(self.label)

    def _fail_if_uneven(self, error: BaseException) -> None:
        """End everything if the own node has a message that the others have not.

        A signal's handler or want of memory may come between, and no node may miss a message.
        """
        if isinstance(self._ring, NoRing) or not self._remote.is_connected:
            return
        if self._ring.statistics().messages != self._remote.messages:
            text = f"send was interrupted by {type(error).__name__} when one node had the message"
            self._remote.fail(Failure("Closed", f"{text} and the others had not"))

    def _on_death(self) -> None:
        """End everything if somebody has died; called in the thread of the ring's watch."""
        try:
            self._ring.check_peers()
        except PeerDied as error:
            self._remote.fail(Failure.of(error, self.label))
        if self._on_dropped is not None:
            self._on_dropped(dropped_of(self._seats, self._readers))

    def _on_failure(self, failure: Failure) -> None:
        self._write_page(failure)
        self._ring.close()

    def _on_finish(self) -> None:
        self._ring.call_no_more()  # (in a cycle, its memory would wait for the collector)
        _open.discard(self)

    def _write_page(self, failure: Failure) -> None:
        if self._page is not None:
            self._page.write(failure)

    def _close_ring(self) -> None:
        self._ring.close()
        self._ring.call_no_more()

    def linger(self, until: float) -> None:
        """Wait until all nodes have what was sent; `until` on the clock of `time.monotonic`."""
        if not self._remote.wait_finished(max(0.0, until - time.monotonic())):
            tell(
                logging.WARNING, "%s: exits %s s after its end, and %s",
                self.label, LINGER_SECONDS, self._remote.backlog(),
            )  # fmt: skip


_open: set[SourceRelay] = set()
_registered: list[Callable[[], object]] = []


def _linger() -> None:
    """Wait at the interpreter's exit until what was sent is taken.

    Nor may it exit while a group ends in another thread, which would be thrown out of C++.
    """
    relays = [*_open]
    for relay in relays:
        relay._end_at_exit()  # noqa: SLF001 (of this module)
    until = time.monotonic() + LINGER_SECONDS
    for relay in relays:
        relay.linger(until)
    leak_at_exit()

"""The source's side of the relay: the same bytes to every other node's leader, without waiting.

It stands before the writer of the source's own ring, with the same methods. Messages that some
leader has not taken yet are kept: they are the window that bounds what is on its way, and what is
sent again when the others go on without a leader.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any

import torch

from shmcast._codecs.base import Frame
from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.loans import OrdinaryMemory, Shape
from shmcast._endpoints.peers import ENDED_WITHOUT_CLOSE
from shmcast._endpoints.statistics import Statistics
from shmcast._nodes import addresses as _addresses
from shmcast._nodes import control as _control
from shmcast._nodes import envelope as _envelope
from shmcast._nodes.control import Link
from shmcast._nodes.estimate import SizeEstimate
from shmcast._nodes.failure import LastWords, Verdict
from shmcast._nodes.gloo_group import RelayGroup, keep_for_ever
from shmcast._nodes.node_ring import NodeWriter
from shmcast._nodes.outbox import Sent, Window
from shmcast._nodes.topology import Node, Topology
from shmcast.errors import Closed, ConcurrentUse, Forked, PeerDied, ShmcastError, Timeout

if TYPE_CHECKING:
    import numpy.typing as npt

    from shmcast._endpoints.loans import LoanedArray

ASK_SECONDS = 0.5
"""How often a wait for room asks the leaders how far they are, for its time-out's message."""

CLOSE_SECONDS = 5.0
"""How long `close` may wait for a group without those that were lost just before."""

LINGER_SECONDS = 10.0
"""How long an interpreter that exits waits for what was sent to be taken."""

_log = logging.getLogger("shmcast")


@dataclass
class _Remote:
    """Another node, as the source knows it."""

    node: Node
    pid: int
    link: Link | None = None
    taken: int = 0  # sequence number of its last message
    epoch: int = 0  # of the group that it is in
    answered: int = 0  # the last question
    is_live: bool = True  # neither left nor lost
    has_closed: bool = False  # it has taken the source's last word, and ends its connection

    def __str__(self) -> str:
        others = ", ".join(map(str, self.node.ranks))
        return f"{self.node} (leader rank {self.node.leader} of ranks {others})"


class SourceRelay:
    """The endpoint of a source in a group of several nodes.

    Args:
        near: writes to the ring of the source's own node; None: it has no other rank.
        words: what that ring's readers look at when it is closed; None: there is none.
        topology: the group's.
        src: the source's global rank.
        label: how errors name this rank.
        key: of the relay's groups; also what a leader must know.
        drops: go on without nodes and ranks that are lost.
        warn_after: seconds of a wait until it is told who is slow; None: never.
    """

    def __init__(
        self,
        near: NodeWriter | None,
        words: LastWords | None,
        topology: Topology,
        src: int,
        label: str,
        key: str,
        drops: bool,
        warn_after: float | None,
    ) -> None:
        self._near = near
        self._words = words
        self._lends: NodeWriter | OrdinaryMemory = near or OrdinaryMemory()
        self.label: str = label
        """How errors name this end."""
        self._key = key
        self._src = src
        self._drops = drops
        self._warn_after = math.inf if warn_after is None else warn_after
        here = topology.node_of(src)
        self._remotes = [_Remote(node, 0) for node in topology.nodes if node != here]
        welcome = weakref.WeakMethod(self._welcome)  # (the listener is this relay's)

        def on_link(rank: int, connection: socket.socket, rest: bytes) -> None:
            method = welcome()
            if method is None:
                connection.close()
            else:
                method(rank, connection, rest)

        self._listener = _control.Listener(key, on_link)
        self.addresses: list[_addresses.Address] = _addresses.addresses(self._listener.port)
        """Where leaders find this one."""
        self._group: RelayGroup | None = None
        self._epoch = 0
        self._estimate = SizeEstimate()
        self._seq = 0
        self._window = Window()
        self._bytes = self._messages = self._payload_bytes = 0
        self._attention = False  # something happened that the next send must see to
        self._must_regroup = False
        self._broken: tuple[float, str] | None = None  # since when gloo fails, and how
        self._verdict: Verdict | None = None
        self._pid = os.getpid()
        self._closed = False
        self._has_said_so = False  # the leaders will hear of the end, behind all messages
        self._asked = 0
        self._ask_at = 0.0  # when to ask how far the leaders are
        self._news = 0  # counts what has happened elsewhere
        self._is_finished = False
        self._turn = threading.Lock()  # one thread sends at a time
        self._changed = threading.Condition(threading.RLock())

    def join(self, pids: dict[int, int]) -> None:
        """Makes the gloo group, with all leaders; their processes by global rank."""
        self._listener.close()
        for remote in self._remotes:
            remote.pid = pids[remote.node.leader]
        self._group = RelayGroup(f"{self._key}/0", 0, 1 + len(self._remotes))
        if self._near is not None:
            self._near.call_on_death(self._look)
        _open.add(self)
        if not _registered:
            # Runs at the exit of multiprocessing's processes, too, where atexit does not.
            _registered.append(Finalize(None, _linger, exitpriority=10))

    # The face of a writer.

    @property
    def handle(self) -> Handle | None:
        """Of the ring of the source's own node."""
        return None if self._near is None else self._near.handle

    def warm(self, rehearse: Callable[[], None] | None = None) -> None:
        """See `FrameWriter.warm`."""
        if self._near is not None:
            self._near.warm(rehearse)

    def empty(self, shape: Shape, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """See `Writer.empty`; on a node of its own ordinary memory."""
        return self._lends.empty(shape, dtype)

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None) -> torch.Tensor:
        """See `Writer.empty_tensor`."""
        return self._lends.empty_tensor(shape, dtype)

    def thaw(self, array: LoanedArray) -> bool:
        """See `Writer.thaw`: other nodes have copies."""
        return self._lends.thaw(array)

    def record_stream(self, array: LoanedArray, stream: torch.Stream) -> None:
        """See `Writer.record_stream`."""
        self._lends.record_stream(array, stream)

    def forget_views(self) -> None:
        """See `FrameWriter.forget_views`."""
        if self._near is not None:
            self._near.forget_views()

    def publish(self, frames: Sequence[Frame], timeout: float | None = None) -> None:
        """Publish one message on all nodes or, if this raises a ShmcastError, on none.

        Args:
            frames: contiguous buffers; their memory is read before this returns.
            timeout: seconds to wait for room, None for ever.
        """
        if not self._turn.acquire(blocking=False):
            raise ConcurrentUse(
                f"{self.label}: send while another thread is inside this endpoint; give each "
                "thread an endpoint of its own, or guard this one with a lock"
            )
        try:
            if self._attention or self._window.is_full():
                timeout = self._await_room(timeout)
            if self._group is None and self._near is None:
                raise Closed(
                    f"{self.label}: send: every rank has closed, nobody is left to receive"
                )
            try:
                self._publish_near(frames, timeout)
                if self._group is not None:
                    self._put(frames)
            except BaseException as error:
                if not isinstance(error, ShmcastError):  # (of those, the message is nowhere)
                    self._fail_if_uneven(error)
                raise
        finally:
            self._turn.release()

    def statistics(self) -> Statistics:
        """See `Writer.statistics`."""
        if self._near is None:
            near = Statistics(messages=self._messages, payload_bytes=self._payload_bytes)
        else:
            near = self._near.statistics()
        return dataclasses.replace(
            near,
            relayed=self._messages,
            relayed_bytes=self._bytes,
            estimate_hits=self._estimate.hits,
            estimate_misses=self._estimate.misses,
        )

    def close(self) -> None:
        """Ends the source; what was sent still arrives while this process lives. Idempotent."""
        if os.getpid() != self._pid:
            return  # a fork's: all of it is its parent's
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._attention = True
            self._tell_news()
        self._listener.close()
        if self._verdict is not None and self._words is not None:
            self._words.write(self._verdict)  # (who has come to it may be on the way here)
        self._close_near()
        # (Not for ever: a signal's handler may have come between a send and its end.)
        is_mine = self._turn.acquire(timeout=CLOSE_SECONDS)
        try:
            if self._group is not None and self._verdict is None and is_mine:
                if self._must_regroup:
                    self._regroup(time.monotonic() + CLOSE_SECONDS, CLOSE_SECONDS)
                if self._group is not None:
                    self._put([], _envelope.CLOSE)
                    self._has_said_so = True
                    if self._must_regroup:  # somebody has left just now
                        self._regroup(time.monotonic() + CLOSE_SECONDS, CLOSE_SECONDS)
                    return
        except (ShmcastError, RuntimeError) as error:
            _log.warning("%s: closed before all nodes had what was sent: %s", self.label, error)
        finally:
            if is_mine:
                self._turn.release()
            self._finish_if_done()
        self._finish(self._verdict or Verdict("Closed", "the source has closed"))

    def dropped(self) -> dict[int, PeerDied]:
        """See `FrameWriter.dropped`: of the source's own node."""
        return {} if self._near is None else self._near.dropped()

    def give_up(self) -> None:
        """End the source otherwise than in order: all ranks are told; idempotent."""
        if os.getpid() == self._pid and not self._closed:
            name = f"rank {self._src}, the source"
            text = f"{name} (pid {self._pid}), has {ENDED_WITHOUT_CLOSE}"
            self._fail(Verdict("PeerDied", text, name, self._pid, ENDED_WITHOUT_CLOSE))
            self.close()

    def begin_tensor_set(self) -> None:
        """See `FrameEnd.begin_tensor_set`."""
        if self._near is not None:
            try:
                self._near.begin_tensor_set()
            except Closed:
                self._raise_verdict()
                raise

    def tensor_sets(self) -> list[int]:
        """See `FrameEnd.tensor_sets`."""
        return [] if self._near is None else self._near.tensor_sets()

    def check_peers(self) -> None:
        """See `FrameEnd.check_peers`."""
        self._raise_verdict()
        if self._near is not None:
            self._near.check_peers()

    # Sending.

    def _publish_near(self, frames: Sequence[Frame], timeout: float | None) -> None:
        if self._near is None:
            check_timeout(timeout, self.label)
            if os.getpid() != self._pid:
                raise Forked(
                    f"{self.label}: send in a process forked from the one that made this endpoint; "
                    "start processes with spawn"
                )
            return
        try:
            self._near.publish(frames, timeout)
            return
        except (Closed, PeerDied) as error:
            self._raise_verdict()
            if isinstance(error, PeerDied) and not self._drops:
                self._fail(Verdict.of(error, self.label))
                raise
            if self._closed or self._group is None:
                raise
        # All readers of the own node have closed: the others go on.
        self._close_near()
        self._near = None
        self._lends = OrdinaryMemory()

    def _close_near(self) -> None:
        if self._near is not None:
            self._near.close()
            self._near.call_no_more()

    def _fail_if_uneven(self, error: BaseException) -> None:
        """A signal's handler or want of memory came between: no node may miss a message."""
        if self._near is None or self._group is None:
            return
        if self._near.statistics().messages != self._messages:
            text = f"send was interrupted by {type(error).__name__} when one node had the message"
            self._fail(Verdict("Closed", f"{text} and the others had not"))

    def _put(self, frames: Sequence[Frame], kind: int = _envelope.MESSAGE) -> None:
        """Begins the broadcast of a message."""
        self._seq += 1
        envelope = _envelope.pack(frames, self._seq, self._estimate.next, kind)
        sent = Sent(envelope)
        with self._changed:
            self._window.add(sent)
        if kind == _envelope.MESSAGE:
            self._messages += 1
            self._payload_bytes += sum(memoryview(frame).nbytes for frame in frames)
        self._begin(sent)

    def _begin(self, sent: Sent) -> None:
        envelope, first, group = sent.envelope, self._estimate.next, self._group
        if group is None:
            return  # it was lost meanwhile
        tensor = envelope.tensor
        if envelope.nbytes < first:  # sent again, after other sizes than the first time
            tensor = torch.zeros(first, dtype=torch.uint8)
            tensor[: envelope.total] = envelope.tensor[: envelope.total]
        self._bytes += max(first, envelope.total)
        try:
            # (Making a view costs torch as much as all else here.)
            head = tensor if tensor.nbytes == first else tensor[:first]
            sent.works = [group.broadcast(head)]
            if envelope.total > first:
                sent.works.append(group.broadcast(tensor[first : envelope.total]))
        except RuntimeError as error:
            self._is_broken(error)
        except BaseException:  # a signal: the leaders may have less than they wait for
            self._must_regroup = self._attention = True
            raise
        self._estimate.add(envelope.total)

    def _await_room(self, timeout: float | None) -> float | None:
        """Waits until a message may be sent; returns what is left of `timeout`.

        Raises:
            Timeout: some node has not taken enough.
            PeerDied, NodeLost, Closed: no message can be sent any more.
        """
        check_timeout(timeout, self.label)
        begin = time.monotonic()
        deadline = math.inf if timeout is None else begin + timeout
        warn_at = begin + self._warn_after
        self._ask_at = begin + ASK_SECONDS / 4
        while True:
            seen = self._news
            self._raise_verdict()
            if self._closed:
                raise Closed(f"{self.label}: send after close(); make a new endpoint")
            if self._must_regroup:
                self._regroup(deadline, timeout)
            elif self._broken is not None:
                self._await_cause(seen, deadline, timeout)
            elif self._window.is_full():
                self._wait(seen, deadline, timeout)
            else:
                break
            if time.monotonic() > warn_at:
                warn_at = math.inf
                _log.warning("%s: waits for %s", self.label, self._slowest())
        with self._changed:
            self._attention = self._news != seen
        return None if timeout is None else max(0.0, deadline - time.monotonic())

    def _wait(self, seen: int, deadline: float, timeout: float | None) -> None:
        """For news since there were `seen`, or a while."""
        now = time.monotonic()
        if now >= deadline:
            raise Timeout(f"{self.label}: send timed out after {timeout} s: {self._slowest()}")
        if now >= self._ask_at and self._window.is_full():
            self._ask_at = now + ASK_SECONDS
            self._ask()
        patience = min(deadline, max(self._ask_at, now + 1e-3)) - now
        with self._changed:
            self._changed.wait_for(lambda: self._news != seen, patience)
            oldest = self._window.oldest_works()
        for work in oldest:
            try:
                if work.is_completed():
                    work.wait()
            except RuntimeError as error:
                self._is_broken(error)

    def _ask(self) -> None:
        """How far the leaders are, so that it is known who does not answer."""
        self._asked += 1
        for remote in self._remotes:
            if remote.is_live and remote.link is not None:
                remote.link.send({"ask": self._asked})

    def _tell_news(self) -> None:
        with self._changed:
            self._news += 1
            self._changed.notify_all()

    def _slowest(self) -> str:
        live = [remote for remote in self._remotes if remote.is_live]
        if not live:
            return "no other node is left"
        remote = min(live, key=lambda remote: (remote.answered, remote.taken))
        silent = "" if remote.answered == self._asked else ", and does not answer"
        return (
            f"{len(self._window)} messages of {self._window.nbytes} bytes are on their way; "
            f"{remote} has taken {remote.taken} of {self._seq}{silent}"
        )

    def _is_broken(self, error: RuntimeError) -> None:
        with self._changed:
            self._broken = self._broken or (time.monotonic(), str(error))
            self._attention = True

    def _await_cause(self, seen: int, deadline: float, timeout: float | None) -> None:
        """Gloo has failed: a control connection soon tells why."""
        assert self._broken is not None  # noqa: S101 (the caller has looked)
        since, why = self._broken
        if time.monotonic() < since + _control.KEEPALIVE.seconds + 2:
            self._wait(seen, deadline, timeout)
            return
        nodes = ", ".join(str(remote) for remote in self._remotes if remote.is_live)
        self._fail(Verdict("NodeLost", f"gloo can't reach {nodes} any more: {why}"))

    def _regroup(self, deadline: float, timeout: float | None) -> None:
        """Goes on with those nodes that are left, in a new group.

        Raises:
            Timeout: some of them did not come in time; the next call tries again.
        """
        with self._changed:
            self._must_regroup = False
            self._broken = None
            self._epoch += 1
            live = [remote for remote in self._remotes if remote.is_live]
            self._window.forget_works()
        group, self._group = self._group, None
        if group is not None:
            group.bury()
        for rank, remote in enumerate(live, 1):
            if remote.link is not None:
                about = {"regroup": self._epoch, "rank": rank, "size": 1 + len(live)}
                remote.link.send(about)
        try:
            while True:
                seen = self._news
                self._raise_verdict()
                if self._must_regroup:
                    return  # one more is lost: again
                if all(remote.epoch == self._epoch for remote in live):
                    break
                self._wait(seen, deadline, timeout)
            if live:  # (not under the lock: it waits for the leaders)
                self._group = RelayGroup(f"{self._key}/{self._epoch}", 0, 1 + len(live))
        except RuntimeError as error:
            if isinstance(error, ShmcastError):
                self._must_regroup = self._attention = True
                raise
            self._is_broken(error)  # one of them was lost just now
            return
        except BaseException:
            self._must_regroup = self._attention = True
            raise
        self._estimate.restart()
        with self._changed:
            again = [*self._window.sent]
        for sent in again:
            self._begin(sent)

    # What happens elsewhere, told in the control thread.

    def _welcome(self, rank: int, connection: socket.socket, rest: bytes) -> None:
        for remote in self._remotes:
            if remote.node.leader == rank and remote.link is None:
                remote.link = Link(
                    connection,
                    functools.partial(self._hear, remote),
                    functools.partial(self._lost, remote),
                    rest,
                )
                return
        connection.close()

    def _hear(self, remote: _Remote, message: dict[str, Any]) -> None:
        with self._changed:
            if "ack" in message:
                remote.taken = message["ack"]
                remote.epoch = message.get("at", remote.epoch)
                remote.answered = message.get("answer", remote.answered)
                remote.has_closed = message.get("closed", remote.has_closed)
                self._let_go()
            if "left" in message:
                if message.get("cut_off"):
                    _log.warning(
                        "%s: rank %s has ended, %s of the ranks of %s can't receive any more",
                        self.label, remote.node.leader, message["cut_off"], remote.node,
                    )  # fmt: skip
                self._go_on_without(remote)
            self._tell_news()
        if "verdict" in message:
            self._fail(Verdict(**message["verdict"]))
        self._finish_if_done()

    def _let_go(self) -> None:
        """Forgets the messages that every leader has taken."""
        live = [remote.taken for remote in self._remotes if remote.is_live]
        least = min(live, default=self._seq)
        self._window.let_go(least)

    def _go_on_without(self, remote: _Remote) -> None:
        remote.is_live = False
        if remote.link is not None:
            remote.link.finish()
        self._let_go()
        self._must_regroup = self._attention = True

    def _lost(self, remote: _Remote, error: OSError | None) -> None:
        """A control connection has ended."""
        if remote.has_closed or not remote.is_live:
            return
        if self._verdict is not None or self._is_finished:
            return
        name = f"rank {remote.node.leader} on {remote.node}"
        if error is None:
            text = f"{name} (pid {remote.pid}), the leader of its node, has died"
            verdict = Verdict("PeerDied", text, name, remote.pid)
        else:
            text = f"{remote} can't be reached any more: {error}"
            verdict = Verdict("NodeLost", text, node=remote.node.index)
        if not self._drops:
            self._fail(verdict)
            return
        _log.warning("%s: %s; it is dropped, the others go on", self.label, text)
        with self._changed:
            self._go_on_without(remote)
            self._tell_news()
        self._finish_if_done()

    def _look(self) -> None:
        """Somebody of the source's own node has died (called by the sentry)."""
        try:
            if self._near is not None:
                self._near.check_peers()
        except PeerDied as error:
            self._fail(Verdict.of(error, self.label))

    def _fail(self, verdict: Verdict) -> None:
        """Ends everything, on all nodes."""
        with self._changed:
            if self._verdict is not None or self._is_finished:
                return
            self._verdict = verdict
            self._attention = True
            self._tell_news()
        if self._words is not None:
            self._words.write(verdict)
        if self._near is not None:
            self._near.close()
        self._finish(verdict)

    def _raise_verdict(self) -> None:
        if self._verdict is not None:
            raise self._verdict.error(self.label)

    def _finish_if_done(self) -> None:
        """After `close`: when everybody has taken everything."""
        if self._has_said_so and not self._window.sent:
            self._finish(None)

    def _finish(self, verdict: Verdict | None) -> None:
        """Ends the connections; who has not closed by itself is told the verdict."""
        with self._changed:
            if self._is_finished:
                return
            self._is_finished = True
            self._window.let_go(self._seq)
            group, self._group = self._group, None
        for remote in self._remotes:
            if remote.link is not None:
                if verdict is not None:
                    remote.link.send({"verdict": verdict.plain()})
                remote.link.finish()
        if group is not None:
            group.bury()
            del group
        if self._near is not None:
            self._near.call_no_more()  # (in a cycle, its memory would wait for the collector)
        with self._changed:
            _open.discard(self)
            self._changed.notify_all()

    def _has_ended(self) -> bool:
        return self not in _open


_open: set[SourceRelay] = set()
_registered: list[Callable[[], object]] = []


def _linger() -> None:
    """The interpreter exits: what was sent is still to be taken.

    Nor may it exit while a group ends in another thread, which would be thrown out of C++.
    """
    for relay in [*_open]:
        relay.close()
    deadline = time.monotonic() + LINGER_SECONDS
    for relay in [*_open]:
        with relay._changed:
            left = deadline - time.monotonic()
            if not relay._changed.wait_for(relay._has_ended, max(0.0, left)):
                _log.warning(
                    "%s: exits %s s after its end, and %s",
                    relay.label,
                    LINGER_SECONDS,
                    relay._slowest(),
                )
    keep_for_ever()

"""A leader's side of the relay: what comes over the network goes into its node's ring.

A thread of its own does it, in C++ nearly all of the time, so that neither a computing leader nor
one that has closed starves its node. Nothing is unpickled on the way. The leader itself reads its
node's ring as the others do.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

from shmcast._endpoints.peers import ENDED_WITHOUT_CLOSE
from shmcast._endpoints.statistics import Statistics
from shmcast._nodes import control
from shmcast._nodes.addresses import Address
from shmcast._nodes.control import Link
from shmcast._nodes.envelope import CLOSE, HEARTBEAT
from shmcast._nodes.failure import Failure, FailurePage
from shmcast._nodes.gloo_group import find_store, leak_at_exit
from shmcast._nodes.inbox import Inbox, Message
from shmcast._nodes.node_ring import NodeWriter, dropped_of
from shmcast._nodes.topology import Node, Topology
from shmcast.errors import Closed, PeerDied, ShmcastError

ACK_MESSAGES = 16
ACK_BYTES = 16 * 1024 * 1024
"""Acknowledge after this many messages or bytes."""

_EXIT_SECONDS = 5.0


class _Place(NamedTuple):
    """This leader's place in the gloo group of an epoch."""

    epoch: int
    rank: int
    size: int


class LeaderRelay:
    """Relays to one node, until the source closes, all of its readers have, or something is lost.

    Args:
        writer: of the node's ring.
        page: what its readers look at when the ring is closed.
        topology: the group's.
        src: the source's global rank.
        rank: this one's.
        source_pid: the source's process.
        label: how errors name this rank.
        key: of the relay's groups.
    """

    def __init__(
        self,
        writer: NodeWriter,
        page: FailurePage,
        topology: Topology,
        *,
        src: int,
        rank: int,
        source_pid: int,
        label: str,
        key: str,
    ) -> None:
        self._writer = writer
        self._page = page
        self._source = topology.name(src)
        self._source_node: Node = topology.node_of(src)
        self._source_pid = source_pid
        self._readers = topology.node_of(rank).ranks
        self._name = topology.name(rank)
        self._label = label
        self._inbox = Inbox(key)
        self._link: Link | None = None
        self._taken = self._acknowledged = 0  # sequence numbers
        self._unacknowledged_bytes = 0
        self._messages = 0
        self._epoch = 0  # of the group that is in use, or the next to be
        self._place = _Place(0, 0, 0)  # as the source has said last
        self._connect_epoch = 0  # all leaders are ready for the group of this epoch
        self._is_over = False
        self._reader_has_closed = False  # the leader's own
        self._is_receiving = False  # it waits for gloo
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._failing = threading.RLock()  # held until the source has been told
        self._at_exit: weakref.finalize[[], NodeWriter] | None = None
        self.thread: threading.Thread | None = None
        self._on_dropped: Callable[[list[int]], object] | None = None

    def connect(self, addresses: list[Address], secret: str, rank: int, store_port: int) -> None:
        """Make the control connection, and find the source's store.

        Raises:
            ConnectionError: none of the addresses leads to the source.
            RuntimeError: the store is not to be reached.
        """
        connection = control.connect_to_source(addresses, secret, rank)
        self._inbox.store = find_store(connection.getpeername()[0], store_port)
        self._link = Link(connection, self._on_message, self._on_end)

    def join(self, rank: int, size: int) -> None:
        """Make the gloo group, with the source and the other leaders.

        Raises:
            RuntimeError: gloo could not connect them all.
        """
        self._inbox.connect(self._epoch, rank, size)

    def start(self) -> None:
        """Begin to relay."""
        self._writer.call_on_death(self._on_death)
        _open.add(self)
        # Before the writer's own finalizer, which is older; and at the exit of multiprocessing's
        # processes, where only its own finalizers run.
        self._at_exit = weakref.finalize(self._writer, self.leave_at_exit)
        if not _registered:
            _registered.append(Finalize(None, _leave_all, exitpriority=10))
        self.thread = threading.Thread(target=self._run, name="shmcast-relay", daemon=True)
        self.thread.start()

    def give_up(self) -> None:
        """End the relay otherwise than in order, for the whole node, and tell the source."""
        text = f"{self._name} (pid {self._pid}), has {ENDED_WITHOUT_CLOSE}"
        failure = Failure("PeerDied", text, self._name, self._pid, ENDED_WITHOUT_CLOSE)
        self._fail(failure, tell_source=True)
        self._inbox.disconnect()

    def reader_closed(self) -> None:
        """Note that the leader's own reader has closed; end the relay if it was the last."""
        self._reader_has_closed = True
        if os.getpid() != self._pid or self._is_over:
            return
        self._writer.watch_peers()  # it may have ended by an exception
        self._on_death()
        if not self._is_over and not self._writer.present_readers():
            self._leave()

    def statistics(self, base: Statistics) -> Statistics:
        """Return `base` with the relay's figures."""
        return dataclasses.replace(self._inbox.statistics(base), relayed=self._messages)

    # In the relay's thread.

    def _run(self) -> None:
        while self.step():
            pass
        _open.discard(self)
        self._writer.call_no_more()  # (in a cycle, its memory would wait for the collector)
        if self._at_exit is not None:
            self._at_exit.detach()

    def step(self) -> bool:
        """Relay one message, or see to something else; return False when the relay is over."""
        if self._is_over:
            self._inbox.disconnect()
            return False
        if self._place.epoch != self._epoch:
            self._make_ready()
            return True
        if not self._inbox.is_connected:
            self._rejoin()
            return True
        try:
            message = self._receive()
            if message is not None:
                self._deliver(message)
        except Exception as error:
            if not self._is_over:
                self._fail(self._failure_of(error), tell_source=True)
        return True

    def _receive(self) -> Message | None:
        """Receive a message; None: something else has come up."""
        self._is_receiving = True
        try:
            return self._inbox.receive(self._is_interrupted)
        except RuntimeError as error:
            self._is_receiving = False
            self._wait_for_cause(error)
            return None
        finally:
            self._is_receiving = False

    def _deliver(self, message: Message) -> None:
        seq = message.seq
        if seq <= self._taken:
            return  # sent again, because another leader had not got it
        if message.kind == CLOSE:
            with self._changed:  # before the source is told so: it ends the connection then
                self._is_over = True
            if message.frames:  # the source has failed
                self._page.write(Failure.of_frames(message.frames))
            self._writer.close()
            self._send({"ack": seq, "closed": True})
            self._send_eof()
            return
        if seq != self._taken + 1:
            raise RuntimeError(f"message {seq} has come, {self._taken + 1} is missing")
        if message.kind == HEARTBEAT:
            self._taken = seq
            self._acknowledge()
            return
        try:
            self._writer.publish(message.frames)
        except Closed:
            if not self._is_over:
                self._leave()
            return
        self._taken = seq
        self._messages += 1
        self._unacknowledged_bytes += message.nbytes
        is_much = self._unacknowledged_bytes >= ACK_BYTES
        if is_much or seq - self._acknowledged >= ACK_MESSAGES:
            self._acknowledge()

    def _acknowledge(self, **more: Any) -> None:
        self._acknowledged, self._unacknowledged_bytes = self._taken, 0
        self._send({"ack": self._taken, **more})

    def _is_interrupted(self) -> bool:
        return self._is_over or self._place.epoch != self._epoch

    def _wait_for_cause(self, error: RuntimeError) -> None:
        """Wait after an error of gloo: the control connection soon tells why."""
        seconds = control.KEEPALIVE.seconds + 2
        with self._changed:
            is_known = self._changed.wait_for(self._is_interrupted, seconds)
        if not is_known:
            text = f"{self._source_node} can't be reached through gloo any more: {error}"
            failure = Failure("NodeLost", text, node=self._source_node.index)
            self._fail(failure, tell_source=True)

    def _make_ready(self) -> None:
        """Leave the group for the next one: the source goes on with fewer nodes."""
        epoch = self._place.epoch
        self._inbox.disconnect()
        self._epoch = epoch
        self._acknowledge(at=epoch)

    def _rejoin(self) -> None:
        """Make the group of this epoch, once all others are ready for it.

        (Before that, one of them may leave, and gloo would wait for it.)
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_interrupted() or self._connect_epoch == self._epoch
            )
            place = self._place
        if self._is_interrupted():
            return
        try:
            self._inbox.connect(*place)
        except RuntimeError as error:
            self._wait_for_cause(error)

    # What ends it, in whichever thread.

    def _failure_of(self, error: Exception) -> Failure:
        if isinstance(error, ShmcastError):
            return Failure.of(error, self._label)
        return Failure("Closed", f"{self._name} can't relay any more: {error!r}")

    def _on_death(self) -> None:
        """End the relay if somebody has died; called in the thread of the ring's watch."""
        try:
            self._writer.check_peers()
        except PeerDied as error:
            self.report(Failure.of(error, self._label))
        if self._on_dropped is not None:
            self._on_dropped(dropped_of(self._writer, self._readers))

    def call_on_dropped(self, on_dropped: Callable[[list[int]], object]) -> None:
        """Call `on_dropped` in any thread with ranks of this node that are dropped, for dead."""
        self._on_dropped = on_dropped
        self._on_death()

    def report(self, failure: Failure) -> None:
        """End the relay because somebody has died; return when the source is told."""
        self._fail(failure, tell_source=True)

    def _leave(self) -> None:
        """Leave the group: all readers of this node have closed."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._writer.close()
        self._send({"left": True})
        self._send_eof()

    def _fail(self, failure: Failure, tell_source: bool) -> None:
        """End the node's ring, and tell its readers why."""
        with self._failing:
            with self._changed:
                if self._is_over:
                    return
                self._is_over = True
                self._changed.notify_all()
            # Before its own reader learns of it, whose program may end at once.
            if tell_source:
                self._send({"failure": failure.plain()})
            self._send_eof()
            self._page.write(failure)
        self._writer.close()

    def _send_eof(self) -> None:
        if self._link is not None:
            self._link.send_eof()

    def _send(self, message: dict[str, Any]) -> None:
        if self._link is not None:
            self._link.send(message)

    # What the control connection says, in the control thread.

    def _on_message(self, message: dict[str, Any]) -> None:
        if "failure" in message:
            self._fail(Failure(**message["failure"]), tell_source=False)
        elif "ask" in message:
            self._send({"ack": self._taken, "answer": message["ask"]})
        elif "probe" in message:
            self._send({"ack": self._taken, "receiving": self._is_receiving})
        elif "regroup" in message:
            with self._changed:
                self._place = _Place(message["regroup"], message["rank"], message["size"])
                self._changed.notify_all()
        elif "connect" in message:
            with self._changed:
                self._connect_epoch = message["connect"]
                self._changed.notify_all()

    def _on_end(self, error: OSError | None) -> None:
        if self._is_over:
            return
        if error is None:
            who = f"{self._source} (pid {self._source_pid}), the source"
            text = f"{who}, has died, or ended without close()"
            failure = Failure("PeerDied", text, self._source, self._source_pid)
        else:
            failure = Failure(
                "NodeLost",
                f"{self._source_node}, with the source {self._source}, can't be reached from "
                f"{self._name} any more: {error}",
                node=self._source_node.index,
            )
        self._fail(failure, tell_source=False)

    def leave_at_exit(self) -> None:
        """Tell at the interpreter's exit who receives through this process no more.

        Its thread must end before the interpreter does, which would throw it out of C++.
        """
        if os.getpid() != self._pid:
            return  # a fork's: all of it is its parent's
        if not self._is_over:
            self._fail(self._ended_at_exit(), tell_source=False)
        if self.thread is not None:
            self.thread.join(_EXIT_SECONDS)

    def _ended_at_exit(self) -> Failure:
        """Return what the node's readers are told; tell the source if this is no death."""
        if not self._reader_has_closed:  # the source finds the connection ended
            how = ENDED_WITHOUT_CLOSE
            text = f"{self._name} (pid {self._pid}), which relays to this node, has {how}"
            return Failure("PeerDied", text, self._name, self._pid, how)
        cut_off = len(self._writer.present_readers())
        self._send({"left": True, "cut_off": cut_off})
        ended = f"{self._name}, which relays to this node, has ended before the source"
        return Failure("Closed", ended)


_open: set[LeaderRelay] = set()
_registered: list[Callable[[], object]] = []


def _leave_all() -> None:
    for relay in [*_open]:
        relay.leave_at_exit()
    leak_at_exit()

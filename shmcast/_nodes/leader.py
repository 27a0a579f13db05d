"""A leader's side of the relay: what comes over the network goes into its node's ring.

A thread of its own does it, in C++ nearly all of the time, so that neither a computing leader nor
one that has closed starves its node. Nothing is unpickled on the way; the leader itself reads its
node's ring as the others do.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import weakref
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch

from shmcast._endpoints.statistics import Statistics
from shmcast._nodes import control as _control
from shmcast._nodes import envelope as _envelope
from shmcast._nodes.addresses import Address
from shmcast._nodes.control import Link
from shmcast._nodes.estimate import SizeEstimate
from shmcast._nodes.failure import LastWords, Verdict
from shmcast._nodes.gloo_group import RelayGroup, keep_for_ever
from shmcast._nodes.node_ring import NodeWriter
from shmcast._nodes.topology import Node, Topology
from shmcast.errors import Closed, PeerDied, ShmcastError

ACK_MESSAGES = 16
ACK_BYTES = 16 * 1024 * 1024
"""After so much the source is told what has been taken."""

_FIRST_BUFFER = 64 * 1024
_EXIT_SECONDS = 5.0


class LeaderRelay:
    """Relays to one node, until the source closes, all of its readers have, or something is lost.

    Args:
        writer: of the node's ring.
        words: what its readers look at when the ring is closed.
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
        words: LastWords,
        topology: Topology,
        src: int,
        rank: int,
        source_pid: int,
        label: str,
        key: str,
    ) -> None:
        self._writer = writer
        self._words = words
        self._source = topology.name(src)
        self._source_node: Node = topology.node_of(src)
        self._source_pid = source_pid
        self._name = topology.name(rank)
        self._label = label
        self._key = key
        self._link: Link | None = None
        self._group: RelayGroup | None = None
        self._estimate = SizeEstimate()
        self._memory = np.empty(_FIRST_BUFFER, np.uint8)
        self._tensor = torch.from_numpy(self._memory)
        self._taken = self._acked = 0  # sequence numbers
        self._unacked_bytes = 0
        self._bytes = self._messages = 0
        self._epoch = 0  # of the group that is in use
        self._told: tuple[int, int, int] = (0, 0, 0)  # epoch, rank and size of the group to use
        self._over = False
        self._pid = os.getpid()
        self._news = threading.Condition()
        self._at_exit: weakref.finalize[[], NodeWriter] | None = None
        self.thread: threading.Thread | None = None

    def connect(self, addresses: list[Address], secret: str, rank: int) -> None:
        """Makes the control connection. Raises ConnectionError if it can't."""
        connection, rest = _control.connect(addresses, secret, rank)
        self._link = Link(connection, self._hear, self._lost_source, rest)

    def join(self, rank: int, size: int) -> None:
        """Makes the gloo group, with the source and the other leaders."""
        self._group = RelayGroup(f"{self._key}/0", rank, size)

    def start(self) -> None:
        """Begins to relay."""
        self._writer.call_on_death(self._look)
        _open.add(self)
        # Before the writer's own finalizer, which is older; and at the exit of multiprocessing's
        # processes, where only its own finalizers run.
        self._at_exit = weakref.finalize(self._writer, self.leave_at_exit)
        if not _registered:
            _registered.append(Finalize(None, _leave_all, exitpriority=10))
        self.thread = threading.Thread(target=self._run, name="shmcast-relay", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Ends it at once, for the whole node."""
        self._end(Verdict("Closed", f"{self._name}, which relays to this node, has ended"), False)
        self._clean_up()

    def reader_closed(self) -> None:
        """The leader's own reader has closed: the relay ends if it was the last."""
        is_mine = os.getpid() == self._pid
        if is_mine and not self._over and not self._writer.present_readers():
            self._leave()

    def statistics(self, base: Statistics) -> Statistics:
        """`base` with the relay's figures."""
        return dataclasses.replace(
            base,
            relayed=self._messages,
            relayed_bytes=self._bytes,
            estimate_hits=self._estimate.hits,
            estimate_misses=self._estimate.misses,
        )

    # The relay's thread.

    def _run(self) -> None:
        while self.step():
            pass
        _open.discard(self)
        self._writer.call_no_more()  # (in a cycle, its memory would wait for the collector)
        if self._at_exit is not None:
            self._at_exit.detach()

    def step(self) -> bool:
        """Relays one message, or takes notice of something; false when it is over."""
        if self._over:
            self._clean_up()
            return False
        if self._told[0] != self._epoch:
            self._regroup()
            return True
        try:
            whole = self._receive()
            if whole is not None:
                self._take(*whole)
        except Exception as error:
            if not self._over:
                self._end(self._failure(error), True)
        return True

    def _receive(self) -> tuple[int, list[memoryview], int, int] | None:
        """The next message: kind, frames, number, bytes. None: something has happened instead."""
        first = self._estimate.next
        self._provide(first)
        if not self._fill(0, first):
            return None
        kind, count, seq, total = _envelope.read_header(self._memory.data)
        if total > first:
            self._provide(total, keep=first)
            if not self._fill(first, total):
                return None
        self._estimate.add(total)
        self._bytes += max(first, total)
        frames = _envelope.unpack(self._memory.data, count, total)
        return kind, frames, seq, total

    def _take(self, kind: int, frames: list[memoryview], seq: int, total: int) -> None:
        if seq <= self._taken:
            return  # sent again, because another leader had not got it
        if kind == _envelope.CLOSE:
            with self._news:  # before the source is told so: it ends the connection then
                self._over = True
            self._writer.close()
            self._tell({"ack": seq, "closed": True})
            self._finish()
            return
        if seq != self._taken + 1:
            raise RuntimeError(f"message {seq} has come, {self._taken + 1} is missing")
        try:
            self._writer.publish(frames)
        except Closed:
            if not self._over:
                self._leave()
            return
        self._taken = seq
        self._messages += 1
        self._unacked_bytes += total
        if seq - self._acked >= ACK_MESSAGES or self._unacked_bytes >= ACK_BYTES:
            self._ack()

    def _ack(self, **more: Any) -> None:
        self._acked, self._unacked_bytes = self._taken, 0
        self._tell({"ack": self._taken, **more})

    def _provide(self, size: int, keep: int = 0) -> None:
        """Makes the buffer large enough; it keeps its first `keep` bytes."""
        if self._memory.nbytes < size:
            old = self._memory
            self._memory = np.empty(max(size, 2 * old.nbytes), np.uint8)
            self._memory[:keep] = old[:keep]
            self._tensor = torch.from_numpy(self._memory)

    def _fill(self, start: int, end: int) -> bool:
        """Receives into the buffer. False: it was given up for something that has happened."""
        group = self._group
        assert group is not None  # noqa: S101 (join() and _regroup() come first)
        try:
            work = group.broadcast(self._tensor[start:end])
            while not group.wait(work):
                if self._has_news():
                    # gloo may still write there: it keeps the memory, this relay gets another.
                    self._clean_up()
                    self._memory = np.empty(_FIRST_BUFFER, np.uint8)
                    self._tensor = torch.from_numpy(self._memory)
                    return False
        except RuntimeError as error:
            self._clean_up()
            self._await_news(error)
            return False
        return True

    def _has_news(self) -> bool:
        return self._over or self._told[0] != self._epoch

    def _await_news(self, error: RuntimeError) -> None:
        """Gloo has failed: the control connection soon tells why."""
        seconds = _control.KEEPALIVE.seconds + 2
        with self._news:
            known = self._news.wait_for(self._has_news, seconds)
        if not known:
            text = f"{self._source_node} can't be reached through gloo any more: {error}"
            self._end(Verdict("NodeLost", text, node=self._source_node.index), True)

    def _regroup(self) -> None:
        """The source goes on with fewer nodes, in a new group."""
        epoch, rank, size = self._told
        self._clean_up()
        self._ack(at=epoch)
        self._epoch = epoch
        self._estimate.restart()
        try:
            self._group = RelayGroup(f"{self._key}/{epoch}", rank, size)
        except RuntimeError as error:
            self._await_news(error)

    def _clean_up(self) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.bury()

    # What ends it, in whichever thread.

    def _failure(self, error: Exception) -> Verdict:
        if isinstance(error, ShmcastError):
            return Verdict.of(error, self._label)
        return Verdict("Closed", f"{self._name} can't relay any more: {error!r}")

    def _look(self) -> None:
        """Somebody of this node has died (called by the sentry)."""
        try:
            self._writer.check_peers()
        except PeerDied as error:
            self._end(Verdict.of(error, self._label), True)

    def _leave(self) -> None:
        """All readers of this node have closed."""
        with self._news:
            self._over = True
            self._news.notify_all()
        self._writer.close()
        self._tell({"left": True})
        self._finish()

    def _end(self, verdict: Verdict, tell: bool) -> None:
        with self._news:
            if self._over:
                return
            self._over = True
            self._news.notify_all()
        self._words.write(verdict)
        self._writer.close()
        if tell:
            self._tell({"verdict": verdict.plain()})
        self._finish()

    def _finish(self) -> None:
        if self._link is not None:
            self._link.finish()

    def _tell(self, message: dict[str, Any]) -> None:
        if self._link is not None:
            self._link.send(message)

    # What the control connection says.

    def _hear(self, message: dict[str, Any]) -> None:
        if "verdict" in message:
            self._end(Verdict(**message["verdict"]), False)
        elif "ask" in message:
            self._tell({"ack": self._taken, "answer": message["ask"]})
        elif "regroup" in message:
            with self._news:
                self._told = (message["regroup"], message["rank"], message["size"])
                self._news.notify_all()

    def _lost_source(self, error: OSError | None) -> None:
        if self._over:
            return
        if error is None:
            who = f"{self._source} (pid {self._source_pid}), the source"
            verdict = Verdict(
                "PeerDied", f"{who}, has died, or ended without close()", self._source,
                self._source_pid,
            )  # fmt: skip
        else:
            verdict = Verdict(
                "NodeLost",
                f"{self._source_node}, with the source {self._source}, can't be reached from "
                f"{self._name} any more: {error}",
                node=self._source_node.index,
            )
        self._end(verdict, False)

    def leave_at_exit(self) -> None:
        """The interpreter exits: who still receives from this process is told.

        Its thread must end before the interpreter does, which would throw it out of C++.
        """
        if os.getpid() != self._pid:
            return  # a fork's: all of it is its parent's
        if not self._over:
            cut_off = len(self._writer.present_readers())
            self._tell({"left": True, "cut_off": cut_off})
            ended = f"{self._name}, which relays to this node, has ended before the source"
            self._end(Verdict("Closed", ended), False)
        if self.thread is not None:
            self.thread.join(_EXIT_SECONDS)


_open: set[LeaderRelay] = set()
_registered: list[Callable[[], object]] = []


def _leave_all() -> None:
    for relay in [*_open]:
        relay.leave_at_exit()
    keep_for_ever()

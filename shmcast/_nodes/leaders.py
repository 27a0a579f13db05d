"""The leaders of the other nodes, as the source knows them: how far each is, who is slow or lost.

What they say over their control connections is noted here and reported upwards, where it is decided
what it means for the group. All of it happens in the control thread, unless said otherwise.
"""

from __future__ import annotations

import functools
import logging
import math
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shmcast._host.log import tell
from shmcast._nodes.addresses import Address, local_addresses
from shmcast._nodes.control import Link, Listener
from shmcast._nodes.failure import Failure
from shmcast._nodes.topology import Node


@dataclass
class Flow:
    """What is known of the gloo flow to a leader, for `Heartbeat`; times of `time.monotonic`."""

    asked_at: float | None = None
    """When it was asked what it has not answered yet; None: nothing."""
    asked_seq: int = 0
    """The last message then."""
    answered_at: float = -math.inf
    taken: int = -1
    """How far it was when it answered last."""
    is_stalled: bool = False
    """It got nothing between its last two answers."""
    stalled_since: float = 0.0
    """Since when it has got nothing, by its answers."""


@dataclass(eq=False)
class Leader:
    """The leader of another node."""

    node: Node
    pid: int = 0
    link: Link | None = None
    taken: int = 0
    """Sequence number of the last message that is in its node's ring."""
    epoch: int = 0
    """Of the group that it is in, or ready for."""
    answered: int = 0
    """The last question that it has answered."""
    flow: Flow = field(default_factory=Flow)
    is_live: bool = True
    """It has neither left, nor been lost, nor received everything up to the source's CLOSE."""

    def send(self, message: dict[str, Any]) -> None:
        """Send a message to it, if it is connected."""
        if self.link is not None:
            self.link.send(message)

    def send_eof(self) -> None:
        """Send no further message to it."""
        if self.link is not None:
            self.link.send_eof()

    def __str__(self) -> str:
        others = ", ".join(map(str, self.node.ranks))
        return f"{self.node} (leader rank {self.node.leader} of ranks {others})"


class Callbacks(NamedTuple):
    """What `Leaders` reports."""

    on_progress: Callable[[], None]
    """A leader has said how far it is."""
    on_left: Callable[[Leader], None]
    """All readers of a node have closed."""
    on_lost: Callable[[Leader, Failure], None]
    """A leader's connection has ended: its process has died, or its node is out of reach."""
    on_flow: Callable[[Leader, bool], None]
    """A leader has said whether it waits for gloo."""
    on_failure: Callable[[Failure], None]
    """A leader can't go on, and says why."""


class Leaders:
    """The source's connections to the leaders.

    Args:
        nodes: all but the source's own.
        label: how the log names the source.
        key: what a leader must know to be connected.
        callbacks: called without any lock held, until `disconnect`.
    """

    def __init__(self, nodes: Iterable[Node], label: str, key: str, callbacks: Callbacks) -> None:
        self._leaders = [Leader(node) for node in nodes]
        self._label = label
        self._callbacks: Callbacks | None = callbacks
        self._asked = 0
        self._listener = Listener(key, self._on_link)
        self.addresses: list[Address] = local_addresses(self._listener.port)
        """Where the leaders find the source."""
        self.lost: dict[int, Failure] = {}
        """How the nodes were lost that are dropped, by index."""

    def __len__(self) -> int:
        """Return the number of other nodes, the lost ones included."""
        return len(self._leaders)

    def stop_listening(self) -> None:
        """Accept no further connection. Idempotent, from any thread."""
        self._listener.close()

    def set_pids(self, pids: dict[int, int]) -> None:
        """Note the leaders' processes, by global rank."""
        for leader in self._leaders:
            leader.pid = pids[leader.node.leader]

    def live(self) -> list[Leader]:
        """Return those that still receive. From any thread."""
        return [leader for leader in self._leaders if leader.is_live]

    def least_taken(self, default: int) -> int:
        """Return the sequence number up to which all live leaders have everything.

        Args:
            default: what to return when no leader is left.
        """
        return min((leader.taken for leader in self.live()), default=default)

    def slowest(self, seq: int) -> str:
        """Describe the live leader that is furthest behind message `seq`. From any thread."""
        leader = min(self.live(), key=lambda leader: (leader.answered, leader.taken), default=None)
        if leader is None:
            return "no other node is left"
        silent = "" if leader.answered == self._asked else ", and does not answer"
        return f"{leader} has taken {leader.taken} of {seq}{silent}"

    def ask(self) -> None:
        """Ask the leaders how far they are, to learn who answers. In the sending thread."""
        self._asked += 1
        for leader in self.live():
            leader.send({"ask": self._asked})

    def regroup(self, live: Sequence[Leader], epoch: int) -> None:
        """Tell these leaders to get ready for the group of `epoch`. In the sending thread."""
        for rank, leader in enumerate(live, 1):
            leader.send({"regroup": epoch, "rank": rank, "size": 1 + len(live)})

    def connect(self, live: Sequence[Leader], epoch: int) -> None:
        """Tell these leaders, which all are ready, to make that group. In the sending thread."""
        for leader in live:
            leader.send({"connect": epoch})

    def note_lost(self, leader: Leader, failure: Failure) -> None:
        """Note that the others will go on without a leader's node, and log it."""
        self.lost[leader.node.index] = failure
        tell(logging.WARNING, "%s: %s; it is dropped, the others go on", self._label, failure.text)

    def drop(self, leader: Leader) -> None:
        """Go on without a leader. Under the caller's lock."""
        leader.is_live = False
        leader.send_eof()

    def disconnect(self, failure: Failure | None) -> None:
        """End the connections, and report no more. From any thread.

        Args:
            failure: what those are told that have not ended by themselves; None: nothing.
        """
        self.stop_listening()
        self._callbacks = None  # (in a cycle, the source's memory would wait for the collector)
        for leader in self._leaders:
            if failure is not None:
                leader.send({"failure": failure.plain()})
            leader.send_eof()

    def _on_link(self, rank: int, connection: socket.socket) -> None:
        for leader in self._leaders:
            if leader.node.leader == rank and leader.link is None:
                on_message = functools.partial(self._on_message, leader)
                on_end = functools.partial(self._on_end, leader)
                leader.link = Link(connection, on_message, on_end)
                return
        connection.close()

    def _on_message(self, leader: Leader, message: dict[str, Any]) -> None:
        callbacks = self._callbacks
        if callbacks is None:
            return
        if "ack" in message:
            leader.taken = message["ack"]
            leader.epoch = message.get("at", leader.epoch)
            leader.answered = message.get("answer", leader.answered)
            if message.get("closed"):
                leader.is_live = False  # it ends its connection
            callbacks.on_progress()
        if "receiving" in message:
            callbacks.on_flow(leader, message["receiving"])
        if "left" in message:
            if message.get("cut_off"):
                tell(
                    logging.WARNING,
                    "%s: rank %s has ended, %s of the ranks of %s can't receive any more",
                    self._label, leader.node.leader, message["cut_off"], leader.node,
                )  # fmt: skip
            callbacks.on_left(leader)
        if "failure" in message:
            callbacks.on_failure(Failure(**message["failure"]))

    def _on_end(self, leader: Leader, error: OSError | None) -> None:
        callbacks = self._callbacks
        if callbacks is None or not leader.is_live:
            return
        name = f"rank {leader.node.leader} on {leader.node}"
        if error is None:
            text = f"{name} (pid {leader.pid}), the leader of its node, has died"
            failure = Failure("PeerDied", text, name, leader.pid)
        else:
            text = f"{leader} can't be reached any more: {error}"
            failure = Failure("NodeLost", text, node=leader.node.index)
        callbacks.on_lost(leader, failure)

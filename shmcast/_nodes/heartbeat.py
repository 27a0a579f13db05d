"""Keeps the gloo flows alive while nothing is sent, and finds out which of them is dead.

gloo's connections have no keepalive: a firewall forgets one that is idle, and drops what comes then
without a word, while the control connection lives. So the source sends an empty message now and
then, and while messages are on their way it asks each leader whether it still waits for them.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from shmcast._nodes.envelope import HEARTBEAT
from shmcast._nodes.failure import Failure
from shmcast._nodes.leaders import Leader, Leaders
from shmcast._nodes.outbox import Outbox


@dataclass(frozen=True)
class Pulse:
    """How often the flows are looked at, and when one is given up."""

    interval: float = 2.0
    """Seconds between two looks. After two without a message, one is sent."""
    patience: float = 10.0
    """Seconds without a message that is on its way, by a leader that waits for it and says so."""
    bytes_per_second: float = 1e6
    """What the slowest network carries: large messages have as much more time."""


PULSE = Pulse()


class Heartbeat:
    """The source's, in a thread of its own.

    Args:
        outbox: sends the empty messages.
        leaders: are asked.
        turn: held by the thread that sends.
        is_closed: whether no message may be sent any more.
        on_silent: called in the control thread with a leader that gets nothing, and the failure.
    """

    def __init__(
        self,
        outbox: Outbox,
        leaders: Leaders,
        turn: threading.Lock,
        is_closed: Callable[[], bool],
        on_silent: Callable[[Leader, Failure], None],
    ) -> None:
        self.sending = threading.Lock()
        """Held while this takes the turn: who finds that taken asks again, holding it."""
        self._outbox = outbox
        self._leaders = leaders
        self._turn = turn
        self._is_closed = is_closed
        self._on_silent = on_silent
        self._pulse = PULSE
        self._seen_seq = 0
        self._idle_looks = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shmcast-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin, once the leaders are connected."""
        self._thread.start()

    def stop(self) -> None:
        """End it. Idempotent, from any thread."""
        self._stopped.set()
        self._on_silent = _ignore  # (in a cycle, its owner's memory would wait for the collector)
        self._is_closed = _closed

    def _run(self) -> None:
        while not self._stopped.wait(self._pulse.interval):
            self._beat()
            if len(self._outbox):
                self._probe()

    def _beat(self) -> None:
        """Send an empty message if there was none for a while."""
        self._idle_looks = self._idle_looks + 1 if self._outbox.seq == self._seen_seq else 0
        if self._idle_looks >= 2 and not len(self._outbox):
            with self.sending:
                if self._turn.acquire(blocking=False):
                    try:
                        is_ready = self._outbox.is_connected and not self._outbox.is_blocked()
                        if is_ready and not self._is_closed():
                            self._outbox.send([], HEARTBEAT)
                    finally:
                        self._turn.release()
        self._seen_seq = self._outbox.seq

    def _probe(self) -> None:
        """Ask the leaders that have answered what they were asked before."""
        for leader in self._leaders.live():
            if leader.flow.asked_at is None:
                leader.flow.asked_at = time.monotonic()
                leader.flow.asked_seq = self._outbox.seq
                leader.send({"probe": True})

    def on_answer(self, leader: Leader, is_receiving: bool) -> None:
        """Note a leader's answer; in the control thread.

        Only what it says itself counts, and only answers in a row: a process that was stopped, this
        one or the leader's, must not be taken for one that gets nothing.

        Args:
            leader: how far it is was noted before.
            is_receiving: it waits for gloo, and for nothing else.
        """
        flow, pulse, now = leader.flow, self._pulse, time.monotonic()
        asked_at, flow.asked_at = flow.asked_at, None
        if asked_at is None:
            return
        is_stalled = is_receiving and leader.taken == flow.taken and leader.taken < flow.asked_seq
        is_in_a_row = now - flow.answered_at < 3 * pulse.interval
        if not (is_stalled and is_in_a_row):
            flow.stalled_since = now
        flow.is_stalled = is_stalled
        flow.taken, flow.answered_at = leader.taken, now
        patience = pulse.patience + self._outbox.nbytes / pulse.bytes_per_second
        if is_stalled and asked_at - flow.stalled_since > patience and self._is_first(leader):
            text = (
                f"{leader} has taken nothing over gloo for {now - flow.stalled_since:.0f} s, while "
                "its control connection answers: a firewall may have forgotten gloo's connection"
            )
            for other in self._leaders.live():
                other.flow.answered_at = -math.inf  # it may be well without this one
            self._on_silent(leader, Failure("NodeLost", text, node=leader.node.index))

    def _is_first(self, leader: Leader) -> bool:
        """Return whether no other silent leader may be what this one waits for.

        In gloo's tree a member has its messages from one of a lower rank.
        """
        stalled = (other for other in self._leaders.live() if other.flow.is_stalled)
        return next(stalled, leader) is leader


def _ignore(_leader: Leader, _failure: Failure) -> None:
    pass


def _closed() -> bool:
    return True

"""All other nodes of a group, as the source sends to them: in order, to whoever is left.

It stands between the outbox, which has the messages and the gloo group, and the leaders, whose
reports tell when there is room, who has left and who is lost. One thread at a time sends; what
happens elsewhere comes in other threads, changes state under a lock and wakes the one that waits.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from shmcast._endpoints.arguments import check_seconds, check_timeout
from shmcast._endpoints.statistics import Statistics
from shmcast._host.log import tell
from shmcast._host.signals import wait_for
from shmcast._nodes import control
from shmcast._nodes.addresses import Address
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.envelope import CLOSE
from shmcast._nodes.failure import CLOSED, Failure
from shmcast._nodes.heartbeat import Heartbeat
from shmcast._nodes.leaders import Callbacks, Leader, Leaders
from shmcast._nodes.outbox import Outbox
from shmcast._nodes.topology import Node
from shmcast.errors import Closed, ShmcastError, Timeout

ASK_SECONDS = 0.5
"""How often a wait for room asks the leaders how far they are, for its time-out's message."""

CLOSE_SECONDS = 5.0
"""How long `close` may wait for a group without those that were lost just before."""


class RemoteNodes:
    """Sends the source's messages to the other nodes, until they or the source are gone.

    Args:
        nodes: all but the source's own.
        label: how errors name the source.
        key: of the relay's groups; also what a leader must know.
        drops: go on without nodes that are lost.
        warn_after: seconds of a wait until the log says who is slow; None: never.
        turn: held by the thread that sends.
        on_failure: called once, in any thread, when all nodes must end, before they are told.
        on_finish: called once, in any thread, when the connections have ended.
    """

    def __init__(
        self,
        nodes: Iterable[Node],
        *,
        label: str,
        key: str,
        drops: bool,
        warn_after: float | None,
        turn: threading.Lock,
        on_failure: Callable[[Failure], None],
        on_finish: Callable[[], None],
    ) -> None:
        self._label = label
        self._drops = drops
        warn_after = check_seconds("warn_after", warn_after, label)
        self._warn_after = math.inf if warn_after is None else warn_after
        self._turn = turn
        self._on_failure = on_failure
        self._on_finish = on_finish
        self._outbox = Outbox(key)
        callbacks = Callbacks(
            self._on_progress,
            self._go_on_without,
            self._on_lost,
            lambda leader, flows: self._heartbeat.on_answer(leader, flows),
            self.fail,
        )
        self._leaders = Leaders(nodes, label, key, callbacks)
        self._heartbeat = Heartbeat(
            self._outbox, self._leaders, turn, lambda: self.closed, self._on_silent
        )
        self.on_node_dropped: Callable[[Node], object] = _ignore  # (in another thread)
        self.interlude: threading.Lock = self._heartbeat.sending
        """Who finds the turn taken asks again, holding this: it may be a heartbeat's."""
        self.addresses: list[Address] = self._leaders.addresses
        """Where leaders find the source."""
        self.store_port: int = self._outbox.store_port
        """Where they find its store, on the same host."""
        self.lost: dict[int, Failure] = self._leaders.lost
        """How the nodes were lost that are dropped, by index."""
        self.failure: Failure | None = None
        """Why everything has ended; None: it has not, or in order."""
        self.closed: bool = False
        """Whether no message is accepted any more."""
        self._ending = CLOSED  # what the leaders are told behind all messages
        self._is_interrupted = False
        self._epoch = 0  # of the outbox's group
        self._has_sent_close = False  # the leaders will hear of the end, behind all messages
        self._is_finished = False  # the connections end
        self._has_ended = False  # they have
        self._ask_at = 0.0  # when to ask how far the leaders are
        # Notified of what happens in other threads, which is counted. Re-entrant: a signal's
        # handler may close the source while its thread holds it.
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._changes = 0

    def join(self, pids: dict[int, int]) -> None:
        """Make the gloo group, with all leaders.

        Args:
            pids: the leaders' processes by global rank.

        Raises:
            RuntimeError: gloo could not connect them all.
        """
        self._leaders.stop_listening()
        self._leaders.set_pids(pids)
        self._outbox.connect(self._epoch, 1 + len(self._leaders))
        self._heartbeat.start()

    @property
    def is_connected(self) -> bool:
        """Whether there is any node to send to."""
        return self._outbox.is_connected

    @property
    def messages(self) -> int:
        """How many messages were sent."""
        return self._outbox.messages

    @property
    def payload_bytes(self) -> int:
        """How many bytes their frames had."""
        return self._outbox.payload_bytes

    def statistics(self, base: Statistics) -> Statistics:
        """Return `base` with the relay's figures."""
        return self._outbox.statistics(base)

    # Sending, by one thread at a time.

    def is_ready(self) -> bool:
        """Return whether a message can be sent without waiting for anything."""
        is_held_up = self._outbox.is_blocked() or self._is_interrupted
        return not (is_held_up or self.closed or self.failure is not None)

    def interrupt(self) -> None:
        """End the wait for room in another thread, or the next one."""
        self._is_interrupted = True
        self._notify()

    def take_interrupt(self) -> bool:
        """Return whether `interrupt` was called since the last time."""
        is_interrupted, self._is_interrupted = self._is_interrupted, False
        return is_interrupted

    def send(self, frames: Sequence[memoryview]) -> None:
        """Begin to send a message; `frames` as `envelope.flat_views` returns them."""
        self._outbox.send(frames)

    def wait_for_room(self, timeout: float | None) -> float | None:
        """Wait until a message may be sent; return what is left of `timeout`.

        Raises:
            Timeout: some node has not taken enough.
            PeerDied, NodeLost, Closed: no message can be sent any more.
        """
        timeout = check_timeout(timeout, self._label)
        deadline = Deadline.after(timeout)
        begin = time.monotonic()
        warn_at = begin + self._warn_after
        self._ask_at = begin + ASK_SECONDS / 4
        while True:
            seen = self._changes
            self.raise_failure()
            if self._is_interrupted:
                return deadline.left()
            if self.closed:
                raise Closed(f"{self._label}: send after close(); make a new endpoint")
            if self._outbox.must_regroup:
                self._regroup(deadline)
            elif self._outbox.error is not None:
                self._wait_for_cause(seen, deadline)
            elif self._outbox.is_full():
                self._wait(seen, deadline)
            else:
                return deadline.left()
            if time.monotonic() > warn_at:
                warn_at = math.inf
                tell(logging.WARNING, "%s: waits for %s", self._label, self.backlog())

    def _wait(self, seen: int, deadline: Deadline) -> None:
        """Wait until something has changed since there were `seen` changes, or for a moment."""
        now = time.monotonic()
        if now >= deadline.at:
            raise Timeout(
                f"{self._label}: send timed out after {deadline.timeout} s: {self.backlog()}"
            )
        if now >= self._ask_at:
            self._ask_at = now + ASK_SECONDS
            if self._outbox.is_full():
                self._leaders.ask()
        with self._lock:
            patience = min(deadline.at, self._ask_at) - now
            wait_for(self._changed, lambda: self._changes != seen, patience)
        self._outbox.check_oldest()

    def _wait_for_cause(self, seen: int, deadline: Deadline) -> None:
        """Wait after an error of gloo: a control connection soon tells why."""
        error = self._outbox.error
        assert error is not None  # noqa: S101 (the caller has looked)
        if time.monotonic() < error.since + control.KEEPALIVE.seconds + 2:
            self._wait(seen, deadline)
            return
        nodes = ", ".join(map(str, self._leaders.live()))
        self.fail(Failure("NodeLost", f"gloo can't reach {nodes} any more: {error.text}"))

    def _regroup(self, deadline: Deadline) -> None:
        """Go on with the nodes that are left, in a new group.

        When one more is lost meanwhile, return with `must_regroup` set, to be called again.

        Raises:
            Timeout: some of them did not come in time; the next call tries again.
        """
        with self._lock:
            self._outbox.begin_regroup()
            self._epoch += 1
            live = self._leaders.live()
            self._forget_acknowledged()
        self._outbox.disconnect()
        self._leaders.regroup(live, self._epoch)
        try:
            while True:
                seen = self._changes
                self.raise_failure()
                if self._outbox.must_regroup or self._is_finished:
                    return
                if not all(leader.is_live for leader in live):
                    self._outbox.require_regroup()  # some had all messages, and need no group
                    return
                if all(leader.epoch == self._epoch for leader in live):
                    break
                self._wait(seen, deadline)
            if live:  # (not under the lock: it waits for the leaders)
                self._leaders.connect(live, self._epoch)
                self._outbox.reconnect(self._epoch, 1 + len(live))
        except BaseException:
            self._outbox.require_regroup()
            raise

    def backlog(self) -> str:
        """Describe what is in flight and who holds it up. From any thread."""
        outbox = self._outbox
        flight = f"{len(outbox)} messages of {outbox.nbytes} bytes are on their way"
        return f"{flight}; {self._leaders.slowest(outbox.seq)}"

    # The end.

    def refuse_messages(self) -> bool:
        """Accept no further message; return False if that was so before."""
        with self._lock:
            if self.closed:
                return False
            self.closed = True
            self._notify()
        self._leaders.stop_listening()
        return True

    def close(self, may_send: bool, ending: Failure = CLOSED) -> None:
        """End the connections; what was sent still arrives while this process lives.

        Args:
            may_send: False if another thread is sending: the nodes then end at once.
            ending: what all nodes are told, behind what was sent.
        """
        self._ending = ending
        try:
            if not may_send or self.failure is not None or not self._send_close():
                self._finish(self.failure or ending)
        except (ShmcastError, RuntimeError) as error:
            self._give_up(error)
        finally:
            self._finish_if_done()

    def _send_close(self) -> bool:
        """Send the last message; return whether there is any node to acknowledge it."""
        if self._outbox.is_connected:
            self._regroup_while_needed()
        if not self._outbox.is_connected:
            return False
        self._outbox.send(self._ending.frames(), CLOSE)
        self._has_sent_close = True
        self._regroup_while_needed()  # somebody may have left just now
        return True

    def _regroup_after_close(self) -> None:
        """Send again what some leader lacks, in a thread of its own: there is no next send."""
        with self._turn:
            try:
                self._regroup_while_needed()
            except (ShmcastError, RuntimeError) as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        text = "%s: closed before all nodes had what was sent: %s"
        tell(logging.WARNING, text, self._label, error)
        self._finish(self.failure or self._ending)

    def _regroup_while_needed(self) -> None:
        deadline = Deadline.after(CLOSE_SECONDS)
        while self._outbox.must_regroup and not self._is_finished:
            self._regroup(deadline)

    def wait_finished(self, timeout: float) -> bool:
        """Wait until the connections have ended; return whether they have."""
        with self._lock:
            return wait_for(self._changed, lambda: self._has_ended, timeout)

    def raise_failure(self) -> None:
        """Raise why everything has ended, if it has."""
        if self.failure is not None:
            raise self.failure.error(self._label)

    def fail(self, failure: Failure) -> None:
        """End everything, on all nodes. From any thread; the first failure counts."""
        with self._lock:
            if self.failure is not None or self._is_finished:
                return
            self.failure = failure
            on_failure = self._on_failure
            self._notify()
        on_failure(failure)
        self._finish(failure)

    def _finish_if_done(self) -> None:
        """Finish after `close`, once everybody has taken everything."""
        if self._has_sent_close and not len(self._outbox):
            self._finish(None)

    def _finish(self, failure: Failure | None) -> None:
        """End the connections; tell the failure to whoever has not ended by itself."""
        with self._lock:
            if self._is_finished:
                return
            self._is_finished = True
        self._heartbeat.stop()
        self._leaders.disconnect(failure)
        self._outbox.close()
        self._on_finish()
        with self._lock:
            # (In a cycle, their owner's memory would wait for the collector.)
            self._on_failure = self._on_finish = self.on_node_dropped = _ignore
            self._has_ended = True
            self._notify()

    # What the leaders report, in the control thread.

    def _on_progress(self) -> None:
        with self._lock:
            self._forget_acknowledged()
            self._notify()
        self._finish_if_done()

    def _on_lost(self, leader: Leader, failure: Failure) -> None:
        if not self._drops:
            self.fail(failure)
        elif self.failure is None:
            self._leaders.note_lost(leader, failure)
            self._go_on_without(leader)
            self.on_node_dropped(leader.node)

    def _on_silent(self, leader: Leader, failure: Failure) -> None:
        if self._drops and self.failure is None:
            leader.send({"failure": failure.plain()})
        self._on_lost(leader, failure)

    def _go_on_without(self, leader: Leader) -> None:
        with self._lock:
            self._leaders.drop(leader)
            self._outbox.require_regroup()
            self._forget_acknowledged()
            self._notify()
        self._finish_if_done()
        if self._has_sent_close and not self._is_finished:  # (this thread must not wait)
            name, target = "shmcast-regroup", self._regroup_after_close
            threading.Thread(target=target, name=name, daemon=True).start()

    def _forget_acknowledged(self) -> None:
        """Forget the messages that every leader has taken; without any leader, all."""
        self._outbox.acknowledge(self._leaders.least_taken(default=self._outbox.seq))

    def _notify(self) -> None:
        with self._lock:
            self._changes += 1
            self._changed.notify_all()


def _ignore(*_what: object) -> None:
    pass

"""Who died, and who is slow: a member's watch over its peers of the same node.

It knows processes, not slots or bytes. The core's watcher, a native thread, raises the alarm of an
endpoint when a peer's process ends or its lock is dropped; the endpoint's next call, or the one
that waits, asks here; as it does when somebody has come or gone.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from shmcast import _core
from shmcast._endpoints.deaths import Deaths
from shmcast._endpoints.long_waits import LongWaits
from shmcast._endpoints.members import LIVING, check_pid, has_ended, is_written, never_came
from shmcast._endpoints.watched import Watched
from shmcast._endpoints.watched_ring import Ring
from shmcast._host.places import Places
from shmcast._host.process import Pidfd, pid_namespace
from shmcast._host.signals import pass_on
from shmcast._host.words import counted
from shmcast.errors import PeerDied, ShmcastError, ShmcastWarning

if TYPE_CHECKING:
    from shmcast._endpoints.slow_peers import Wait

ENDED_WITHOUT_CLOSE = "ended without close()"
"""How an endpoint has ended whose process lives on."""

_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)


class Watch:
    """Watches the peers of one endpoint.

    A peer is watched from its attachment on, by a pidfd: a stopped process is not dead, and a later
    process of the same pid is not taken for it. And by the lock on its place, which the kernel
    drops at the end of a process of any namespace, and at exec.

    Args:
        me: this endpoint among the peers: a reader's index; their number for the writer.
        label: how errors name this endpoint.
        names: how errors name the others.
        readers: the number of readers, which is the writer's place among the peers.
        drops: the writer goes on without readers that have died.
        warn_after: seconds of a wait after which it is told who is slow; None: never.
        on_death: called for each reader that is dropped.
        slots: of the ring; 0: not known, so that a reader can't tell what its writer waits for.
    """

    def __init__(
        self,
        me: int,
        label: str,
        names: Callable[[int], str],
        readers: int,
        drops: bool,
        warn_after: float | None,
        on_death: Callable[[PeerDied], object] | None = None,
        slots: int = 0,
    ) -> None:
        self.long_waits = LongWaits(label, warn_after)
        self._deaths = Deaths(label, on_death)
        self.dropped: dict[int, PeerDied] = self._deaths.last
        """How the readers have died that were dropped, by index; also those replaced since."""
        self.must_look = False
        """Somebody's end raises no alarm: `observe` is to be called once a second."""
        self.calls: str | None = None
        """What the log calls who waits; None: "send" or "recv"."""
        self.excused: dict[int, PeerDied] = {}
        """How readers have died that had not attached: on the writer, which drops them then."""
        self.stand_ins: Collection[int] = ()
        """Whose processes are not those of whom they stand for: they tell nothing of them."""
        self.check_elsewhere: Callable[[], object] | None = None
        """Raises why a wait is to end of which this segment does not tell."""
        self._me = me
        self._label = label
        self._names = names
        self._writer = readers
        self._drops = drops
        self._pid_namespace = pid_namespace()
        self._watched: dict[int, Watched] = {}
        self._ends: dict[int, tuple[int, str]] = {}  # whose, of the last one of each index
        self._ring: Ring | None = None
        self._places: Places
        self._generation = 0
        self._slots = slots
        self._owner_pid = os.getpid()
        self._warned: set[str] = set()
        self._closed = False
        self._lock = threading.RLock()  # close() may come from another thread than the rest

    @property
    def patience(self) -> float:
        """Seconds of a wait until the first `report_slow`."""
        return self.long_waits.patience

    def begin(self, ring: Ring, places: Places) -> None:
        """Set whose alarm is raised, and the places of its segment, until `close`."""
        self._ring = ring
        self._places = places

    def close(self) -> None:
        """Stop watching."""
        if os.getpid() != self._owner_pid:
            return  # a fork's: the thread, and whom it watches, are its parent's
        with self._lock:
            self._closed = True
            for index in [*self._watched]:
                self._forget(index)
            self._ring = None

    def observe(self, peers: Sequence[_core.Peer]) -> bool:
        """Watch who has come since the last time; return whether a watched process has ended."""
        with self._lock:
            if self._closed or self._ring is None:
                return False
            for peer in peers:
                if peer.index != self._me:
                    self._observe_peer(peer)
            self.find_dead()
            self.must_look = any(w.must_look and w.gone is None for w in self._watched.values())
            is_any_gone = any(watched.gone is not None for watched in self._watched.values())
            if is_any_gone or not self._deaths.are_told:
                return True
        return self._has_ended_elsewhere()

    def _has_ended_elsewhere(self) -> bool:
        try:
            if self.check_elsewhere is not None:
                self.check_elsewhere()
        except ShmcastError:  # `attribute_deaths` raises it
            return True
        return False

    def _observe_peer(self, peer: _core.Peer) -> None:
        self._note_takeovers(peer)
        known = self._watched.get(peer.index)
        if peer.state == "failed":
            self._forget(peer.index)
            self._watched[peer.index] = Watched(peer.pid, 0, gone=ENDED_WITHOUT_CLOSE)
        elif peer.state not in LIVING:
            self._forget(peer.index)
        elif not is_written(peer):  # about to tell who it is, or dead
            if has_ended(peer, self._places):
                self._forget(peer.index)
                self._watched[peer.index] = Watched(peer.pid, 0, gone="")
        elif known is None or not known.is_still(peer):
            self._forget(peer.index)
            try:
                self._open(peer)
            except BaseException:  # a signal's handler, say: begin anew the next time
                self._forget(peer.index)
                raise

    def find_dead(self) -> None:
        """Find out whose process has ended, before `attribute_deaths` is given their seats."""
        with self._lock:
            if _core.watch_generation() != self._generation:  # no alarm is raised any more
                for watched in self._watched.values():
                    watched.must_look = self.must_look = True
            for index, watched in self._watched.items():
                if watched.gone is None:
                    watched.gone = watched.end(index, self._places)

    def attribute_deaths(self, peers: Sequence[_core.Peer]) -> list[int]:
        """Tell who died from who left before its process ended, of those that `find_dead` found.

        Args:
            peers: as they are now.

        Returns:
            The readers to drop, by index.

        Raises:
            PeerDied: this endpoint can't go on without somebody.
            ShmcastError: what `check_elsewhere` raises.
        """
        if self.check_elsewhere is not None:
            self.check_elsewhere()
        with self._lock:
            return self._attribute_deaths(peers)

    def _attribute_deaths(self, peers: Sequence[_core.Peer]) -> list[int]:
        for peer in peers:
            self._note_takeovers(peer)
        dropped = []
        fatal: dict[int, PeerDied] = {}
        told = self._told_before_the_writer_left(peers)
        for index, watched in sorted(self._watched.items(), key=lambda item: item[0]):
            peer = peers[index]  # (the writer last: it may have ended because of a reader)
            if peer.state == "claimed" and peer.pid != watched.pid:
                continue  # soon there is a count that says so
            if peer.state not in (*LIVING, "failed") or peer.pid != watched.pid:
                self._forget(index)  # it closed before it ended, or its place was taken
                continue
            how = ENDED_WITHOUT_CLOSE if peer.state == "failed" else watched.gone
            if how is None or told not in (None, index):
                continue
            if index == self._writer or not self._drops:
                fatal[index] = self.died(peer, how)
            elif self._me == self._writer:
                self._deaths.note_drop(peer, self.died(peer, how))
                self._forget(index)  # (not before: whoever interrupts this must not lose the death)
                dropped.append(index)
            else:
                self._forget(index)
                self._watched[index] = Watched(peer.pid, peer.start_time)  # the writer's business
        if fatal:
            raise self._first_of(fatal, peers)
        for index, death in self.excused.items():
            if peers[index].state == "vacant":
                self._deaths.note_drop(peers[index], death)
                dropped.append(index)
        return dropped

    def _told_before_the_writer_left(self, peers: Sequence[_core.Peer]) -> int | None:
        """Return whose death may have made the writer leave, or a place of nobody; None: it stays.

        (Of others nobody is told then: all that was sent has been received.)
        """
        if peers[self._writer].state != "left":
            return None
        return len(peers) if self._ring is None else self._ring.told_death()

    def _first_of(self, fatal: dict[int, PeerDied], peers: Sequence[_core.Peer]) -> PeerDied:
        """Return the death of which the others may be the consequence.

        Whoever ends because of a death has told of it before: as this one does now, of whichever it
        has seen (of the writer last: that may have ended because of a reader).
        """
        seen = min(fatal)
        first = seen if self._ring is None else self._ring.tell_death(seen)
        if first not in fatal and first in self._watched:  # it died while this one looked at others
            how = self._watched[first].end(first, self._places)
            if how is not None:
                return self.died(peers[first], how)
        return fatal.get(first, fatal[seen])

    def tell_deaths(self) -> None:
        """Call `on_death` for the readers that were dropped; to be called once they are.

        What it raises passes, and the rest is told by the next call.
        """
        self._deaths.tell()

    def _note_takeovers(self, peer: _core.Peer) -> None:
        """Note who has died, if others have taken his seat before the writer could drop him."""
        if self._me != self._writer or peer.index == self._me:
            return
        count = self._deaths.unnoted(peer)
        if not count:
            return
        last = (peer.predecessor_pid, "")
        if peer.predecessor_state == "failed":
            last = (peer.predecessor_pid, ENDED_WITHOUT_CLOSE)
        ends = [*[(0, "")] * (count - 1), last]
        watched = self._watched.get(peer.index)
        if watched is not None:  # the first of them
            ends[0] = (watched.pid, ends[0][1] or watched.end_of_replaced())
        self._deaths.note_takeovers(peer, [self._replaced(peer.index, *end) for end in ends])
        self._forget(peer.index)

    def _replaced(self, index: int, pid: int, how: str) -> PeerDied:
        name = self._names(index)
        who = f"{name} (pid {pid})" if pid else f"another {name}, which came after that one,"
        text = f"{self._label}: {who} has died: {how or 'unknown how'}; its place was taken again"
        return PeerDied(text, name, pid, how)

    def exited(self, peers: Sequence[_core.Peer]) -> list[int]:
        """Return the readers whose processes have ended, by index; also those that left first."""
        return [p.index for p in peers[:-1] if not never_came(p) and has_ended(p, self._places)]

    def departed(self, peers: Callable[[], Sequence[_core.Peer]]) -> dict[int, str]:
        """Return who is no more there, by index: "left" for one that has closed, else "dropped".

        That is, too, who will be dropped once the writer sees to it: who has failed, or died.
        `peers` looks at all.
        """
        before = peers()
        ended = [(i, before[i].pid) for i in self.exited(before) if i != self._me]
        states = {}
        for peer in peers():  # only now: who has left before its process ended has not died
            is_dead = peer.state in ("dropped", "failed") or (peer.index, peer.pid) in ended
            if peer.state == "left":
                states[peer.index] = "left"
            elif is_dead:
                states[peer.index] = "dropped"
        return states

    def report_slow(self, seconds: float, is_first: bool, peers: Sequence[_core.Peer]) -> float:
        """Log who is slow, when a wait lasts long; return when to call again, in its seconds."""
        return self.long_waits.report(seconds, is_first, self.wait_of(peers), self.slow)

    def wait_of(self, peers: Sequence[_core.Peer]) -> Wait:
        """Return what this endpoint waits for."""
        from shmcast._endpoints.slow_peers import wait_of  # rarely needed

        return wait_of(self._me, peers, self._slots, self._names(self._writer), self.calls)

    def resumed(self, seconds: float) -> None:
        """Log that such a wait went on."""
        self.long_waits.resumed(seconds)

    def slow(self, wait: Wait) -> list[tuple[str, int | None, str]]:
        """Return whom a wait waits for: the fields of a `SlowPeer`."""
        return [(self._names(p.index), self._pid(p), behind) for p, behind in wait.peers]

    def died(self, peer: _core.Peer, how: str) -> PeerDied:
        """Make the error for the end of a peer."""
        name = self._names(peer.index)
        behind = f", {counted(peer.behind, 'fragment')} behind" if peer.behind else ""
        return PeerDied(
            f"{self._label}: {name} (pid {peer.pid}) has died{behind}: {how or 'unknown how'}",
            name,
            peer.pid,
            how,
        )

    def death_of(self, peer: _core.Peer) -> PeerDied:
        """Return how a peer has died, as far as is known here."""
        watched = self._watched.get(peer.index)
        if watched is not None and watched.pid == peer.pid:
            self._note_end(
                peer.index, watched, watched.gone or watched.end(peer.index, self._places)
            )
        pid, how = self._ends.get(peer.index, (peer.pid, ""))
        return self.died(peer, how if pid == peer.pid else "")

    def _note_end(self, index: int, watched: Watched, how: str | None) -> None:
        """Note how a peer has ended: soon nobody can tell it any more, if somebody reaps it."""
        if how:
            self._ends[index] = watched.pid, how

    def _pid(self, peer: _core.Peer) -> int | None:
        if not peer.pid or peer.index in self.stand_ins:
            return None
        return peer.pid if peer.pid_namespace == self._pid_namespace else None

    def _open(self, peer: _core.Peer) -> None:
        """Watch a peer by all that there is."""
        check_pid(peer)
        is_here = peer.pid_namespace == self._pid_namespace
        watched = Watched(peer.pid, peer.start_time, peer.holds_lock, is_here=is_here)
        self._watched[peer.index] = watched
        is_own = is_here and peer.pid == self._owner_pid
        if is_here and not is_own:
            self._open_pidfd(peer, watched)
        if watched.gone is not None or (is_own and not watched.holds_lock):
            return
        if watched.holds_lock:
            fd = self._places.fileno()
            self._raise_alarm(watched, lambda ring: ring.watch_lock(fd, peer.index))
        elif watched.pidfd is None:
            watched.must_look = is_here
            if not is_here:
                self._warn_unwatched(peer, "it is in another pid namespace, and holds no lock")

    def _open_pidfd(self, peer: _core.Peer, watched: Watched) -> None:
        try:
            watched.pidfd = pidfd = Pidfd(peer.pid, peer.start_time)
        except ProcessLookupError as error:
            pass_on(error)
            # (The lock's word counts more: clocks differ between time namespaces.)
            if not (peer.holds_lock and self._places.is_held(peer.index)):
                watched.gone = str(error).partition(": ")[2]
        except OSError as error:  # no pidfds here; or no room for one at this moment
            pass_on(error)
            watched.must_look = error.errno in _PASSING
        else:
            self._raise_alarm(watched, lambda ring: ring.watch_process(pidfd.fileno()))

    def _raise_alarm(self, watched: Watched, add: Callable[[Ring], int]) -> None:
        assert self._ring is not None  # noqa: S101 (observe() has looked)
        self._generation = _core.watch_generation()
        try:
            watched.alarms.append(add(self._ring))
        except OSError as error:
            pass_on(error)
            watched.must_look = True
            self._warn(
                "thread",
                f"{self._label}: nothing tells at once when a peer dies: {error}. It is looked "
                "after once a second",
            )

    def _forget(self, index: int) -> None:
        watched = self._watched.get(index)
        if watched is None:
            return
        self._note_end(index, watched, watched.known_end())
        del self._watched[index]
        if self._ring is not None:
            for alarm in watched.alarms:
                self._ring.unwatch(alarm)
        if watched.pidfd is not None:
            watched.pidfd.close()

    def _warn_unwatched(self, peer: _core.Peer, why: str) -> None:
        self._warn(
            "peer",
            f"{self._label}: can't watch {self._names(peer.index)} (pid {peer.pid}): {why}. "
            "Its death will not be noticed: pass timeouts",
        )

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, ShmcastWarning, stacklevel=3)

"""Who died, and who is slow: a member's watch over its peers of the same node.

It knows processes, not slots or bytes. One thread sleeps on the pidfds of all peers and raises the
alarm of an endpoint, whose core ends its wait and asks here; as it does when somebody has come.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shmcast import _core
from shmcast._endpoints.slow_peers import SlownessReport, SlowPeer, wait_of
from shmcast._host.epoll_thread import epoll_thread
from shmcast._host.log import tell
from shmcast._host.process import Pidfd, is_alive, pid_namespace, start_time, state_of
from shmcast.errors import PeerDied, ShmcastWarning

LIVING = ("attached", "claimed", "rejoining")
"""States of a seat whose owner should be alive."""

_MOST_PID = 4 * 1024 * 1024  # PID_MAX_LIMIT of the kernel

_THREAD = "shmcast-sentry"


def identity() -> _core.Identity:
    """Return who this process is, for its peers."""
    return _core.Identity(start_time(os.getpid()) or 0, pid_namespace())


def has_ended(peer: _core.Peer) -> bool:
    """Return whether a member's process has ended, as far as can be seen from here.

    Raises:
        SegmentCorrupted: it is nobody's pid.
    """
    _check_pid(peer)
    if peer.state == "claimed" or not peer.start_time:  # it has yet to tell who it is
        state = state_of(peer.pid)
        return state is None or state.name == "zombie"
    return peer.pid_namespace == pid_namespace() and not is_alive(peer.pid, peer.start_time)


def _check_pid(peer: _core.Peer) -> None:
    if not 0 < peer.pid <= _MOST_PID:
        raise _core.SegmentCorrupted(f"member {peer.index} has pid {peer.pid}")


@dataclass
class _Watched:
    """A peer as it was first observed."""

    pid: int
    start_time: int
    pidfd: Pidfd | None = None  # None: it can't be watched, or need not be any more
    gone: str | None = None  # it has ended: how, where known


class Watch:
    """Watches the peers of one endpoint.

    A peer is watched from the first time that this endpoint waits while it is attached, by a pidfd:
    a stopped process is not dead, and a later process of the same pid is not taken for it.

    Args:
        me: this endpoint among the peers: a reader's index; their number for the writer.
        label: how errors name this endpoint.
        names: how errors name the others.
        readers: the number of readers, which is the writer's place among the peers.
        drops: the writer goes on without readers that have died.
        warn_after: seconds of a wait after which it is told who is slow; None: never.
        alarm: called when a watched peer has ended, in another thread.
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
        alarm: Callable[[], None],
        slots: int = 0,
    ) -> None:
        self._report = SlownessReport(label, math.inf if warn_after is None else warn_after)
        self.patience: float = self._report.first_look
        """Seconds of a wait until the first `report_slow`."""
        self._me = me
        self._label = label
        self._names = names
        self._writer = readers
        self._drops = drops
        self._pid_namespace = pid_namespace()
        self._watched: dict[int, _Watched] = {}
        self._alarm = alarm
        self._slots = slots
        self._owner_pid = os.getpid()
        self._has_warned = False
        self._closed = False
        self._lock = threading.RLock()  # close() may come from another thread than the rest

    def _on_exit(self, _events: int) -> None:
        self._alarm()

    def close(self) -> None:
        """Stop watching."""
        if os.getpid() != self._owner_pid:
            return  # a fork's: the thread, and whom it watches, are its parent's
        with self._lock:
            self._closed = True
            for index in [*self._watched]:
                self._forget(index)

    def observe(self, peers: Sequence[_core.Peer]) -> bool:
        """Watch who has come since the last time; return whether a watched process has ended."""
        with self._lock:
            if self._closed:
                return False
            for peer in peers:
                if peer.index != self._me and peer.pid != os.getpid():
                    self._observe_peer(peer)
            self.find_dead()  # where no thread could be started
            return any(watched.gone is not None for watched in self._watched.values())

    def _observe_peer(self, peer: _core.Peer) -> None:
        if peer.state not in LIVING:
            self._forget(peer.index)
        elif peer.state == "claimed" or not peer.start_time:  # about to tell who it is, or dead
            if has_ended(peer):
                self._forget(peer.index)
                self._watched[peer.index] = _Watched(peer.pid, 0, gone="")
        else:
            known = self._watched.get(peer.index)
            if known is None or (known.pid, known.start_time) != (peer.pid, peer.start_time):
                self._forget(peer.index)
                self._watched[peer.index] = self._open(peer)

    def find_dead(self) -> None:
        """Find out whose process has ended, before `attribute_deaths` is given their seats."""
        with self._lock:
            for watched in self._watched.values():
                if watched.gone is None and watched.pidfd is not None and watched.pidfd.is_dead():
                    watched.gone = watched.pidfd.how()

    def attribute_deaths(self, peers: Sequence[_core.Peer]) -> list[int]:
        """Tell who died from who left before its process ended, of those that `find_dead` found.

        Args:
            peers: as they are now.

        Returns:
            The readers to drop, by index.

        Raises:
            PeerDied: this endpoint can't go on without somebody.
        """
        with self._lock:
            return self._attribute_deaths(peers)

    def _attribute_deaths(self, peers: Sequence[_core.Peer]) -> list[int]:
        dropped = []
        for index, watched in [*self._watched.items()]:
            peer = peers[index]
            if peer.state not in LIVING or peer.pid != watched.pid:
                self._forget(index)  # it closed before it ended, or its place was taken
                continue
            how = watched.gone
            if how is None:
                continue
            if index == self._writer or not self._drops:
                raise self._died(peer, how)
            self._forget(index)
            if self._me == self._writer:
                tell(logging.WARNING, "%s; it is dropped, the others go on", self._died(peer, how))
                dropped.append(index)
            else:
                self._watched[index] = _Watched(peer.pid, peer.start_time)  # the writer's business
        return dropped

    def exited(self, peers: Sequence[_core.Peer]) -> list[int]:
        """Return the readers whose processes have ended, by index; also those that left first."""
        return [p.index for p in peers[:-1] if p.state != "vacant" and has_ended(p)]

    def report_slow(self, seconds: float, is_first: bool, peers: Sequence[_core.Peer]) -> float:
        """Log who is slow, when a wait lasts long.

        Returns:
            When to call again, in seconds of the wait.
        """
        wait = wait_of(self._me, peers, self._slots, self._names(self._writer))
        who = [SlowPeer(self._names(p.index), self._pid(p), behind) for p, behind in wait.peers]
        return self._report.look(seconds, is_first, wait.action, wait.goal, who, wait.is_usual)

    def resumed(self, seconds: float) -> None:
        """Log that such a wait went on."""
        self._report.end(seconds)

    def _pid(self, peer: _core.Peer) -> int | None:
        return peer.pid if peer.pid and peer.pid_namespace == self._pid_namespace else None

    def _open(self, peer: _core.Peer) -> _Watched:
        _check_pid(peer)
        watched = _Watched(peer.pid, peer.start_time)
        if peer.pid_namespace != self._pid_namespace:
            self._warn(peer, "it is in another pid namespace")
            return watched
        try:
            watched.pidfd = Pidfd(peer.pid, peer.start_time)
            epoll_thread(_THREAD).add(watched.pidfd.fileno(), self._on_exit, once=True)
        except ProcessLookupError as error:
            watched.gone = str(error).partition(": ")[2]
        except OSError as error:
            self._warn(peer, str(error))
        return watched

    def _forget(self, index: int) -> None:
        watched = self._watched.pop(index, None)
        if watched is not None and watched.pidfd is not None:
            epoll_thread(_THREAD).remove(watched.pidfd.fileno())
            watched.pidfd.close()

    def _warn(self, peer: _core.Peer, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"{self._label}: can't watch {self._names(peer.index)} (pid {peer.pid}): {why}. "
                "Its death will not be noticed: pass timeouts",
                ShmcastWarning,
                stacklevel=2,
            )

    def _died(self, peer: _core.Peer, how: str) -> PeerDied:
        name = self._names(peer.index)
        behind = f", {peer.behind} fragments behind" if peer.behind else ""
        return PeerDied(
            f"{self._label}: {name} (pid {peer.pid}) has died{behind}: {how or 'unknown how'}",
            name,
            peer.pid,
            how,
        )

"""Logs long waits: who is waited for, and what they are doing."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic

from shmcast._host.process import State, stack_of, state_of

_log = logging.getLogger("shmcast")

# For the stacks of all peers of a report together: the wait may be over in the meantime.
_STACK_SECONDS = 0.9


@dataclass(frozen=True, slots=True)
class SlowPeer:
    """A peer that a wait waits for."""

    name: str
    """As errors name it: rank 3, say."""
    pid: int | None = None
    """None where it is unknown, or of another pid namespace."""
    behind: str = ""
    """How far behind it is, "5 fragments behind" say; "" where that means nothing."""


class SlownessReport:
    """Logs whom a wait waits for, ever more rarely the longer it lasts.

    The first report comes `warn_after` seconds into a wait, the next ones when the wait is twice,
    four times, eight times, ... as long. For one thread at a time.

        while waiting:
            if waited >= due:
                due = report.look(waited, is_first, "send", "room", peers)
        report.end(waited)

    A wait that ends with an error needs no `end`: the error tells.

    Args:
        label: who waits.
        warn_after: seconds.
    """

    def __init__(self, label: str, warn_after: float) -> None:
        self.first_look: float = warn_after / 2
        """Seconds into a wait when CPU times are noted, to tell later who has been computing."""
        self._label = label
        self._warn_after = warn_after
        self._told = ""  # the action, once a wait was reported
        self._looked = 0.0  # how long the wait was then
        self._next_report = warn_after
        self._cpu_seconds: dict[int | None, float] = {}  # by pid, when looked

    def look(
        self, waited: float, is_first: bool, action: str, goal: str, peers: Iterable[SlowPeer]
    ) -> float:
        """Look at the peers, and report the wait if that is due.

        Args:
            waited: seconds, as of now.
            is_first: this is the first look of this wait.
            action: what waits, "send" say.
            goal: what it waits for, "room" say.
            peers: whom it waits for.

        Returns:
            When to look again, in seconds of the wait.
        """
        if is_first:
            self._told = ""
            self._next_report = self._warn_after
            self._cpu_seconds = {}
        seen = [(peer, _state(peer)) for peer in peers]
        if waited >= self._next_report:
            self._next_report = 2 * waited
            self._told = action
            lines = [f"{self._label}: {action} has waited {_seconds(waited)} for {goal}"]
            give_up = monotonic() + _STACK_SECONDS
            for peer, state in seen:
                lines.append(f"  {self._line(waited, peer, state)}")
                left = give_up - monotonic()
                if state is not None and peer.pid is not None and left > 0:
                    lines += textwrap.indent(stack_of(peer.pid, left), "    ").splitlines()
            _log.warning("%s", "\n".join(lines))
        self._looked = waited
        self._cpu_seconds = {peer.pid: state.cpu_seconds for peer, state in seen if state}
        return self._next_report

    def end(self, waited: float) -> None:
        """Report that a wait went on, if it was reported before."""
        if self._told:
            _log.info("%s: %s went on after %s", self._label, self._told, _seconds(waited))
            self._told = ""

    def _line(self, waited: float, peer: SlowPeer, state: State | None) -> str:
        who = [peer.name] if peer.pid is None else [peer.name, f"pid {peer.pid}"]
        if peer.behind:
            who.append(peer.behind)
        what = []
        if state is not None:
            what = [state.name, f"{state.threads} thread{'' if state.threads == 1 else 's'}"]
            if peer.pid in self._cpu_seconds:
                used = state.cpu_seconds - self._cpu_seconds[peer.pid]
                what.append(
                    f"{used:.2f} s of CPU time in the last {_seconds(waited - self._looked)}"
                )
        elif peer.pid is not None:
            what = ["not in /proc"]
        return ", ".join(who) + (f": {', '.join(what)}" if what else "")


def _state(peer: SlowPeer) -> State | None:
    if peer.pid is not None:
        try:
            return state_of(peer.pid)
        except TimeoutError:  # not of /proc, but of a signal handler
            raise
        except OSError:  # /proc may hide it
            return None
    return None


def _seconds(duration: float) -> str:
    return f"{duration:.0f} s" if duration >= 10 else f"{duration:.1f} s"

"""Logs long waits: who is waited for, and what they are doing."""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import monotonic

from shmcast import _core
from shmcast._host.log import is_on, tell
from shmcast._host.process import State, stack_of, state_of
from shmcast._host.signals import pass_on
from shmcast._host.words import counted

STACK_SECONDS = 0.9
"""For the stacks of all peers of a report together: the wait may be over in the meantime."""


# Of a thread that is itself making such a report: what is above the wait that it reports.
_REPORT = re.compile(
    r"(?:^    .*\n)*^    stack_of \(.*\n(?:^    .*\n)*?^    report_slow \(.*\n", re.M
)

_STUCK = ("stopped", "traced (at a breakpoint)", "zombie")


@dataclass(frozen=True, slots=True)
class SlowPeer:
    """A peer that a wait waits for."""

    name: str
    """As errors name it: rank 3, say."""
    pid: int | None = None
    """None where it is unknown, or of another pid namespace."""
    behind: str = ""
    """How far behind it is, "5 fragments behind" say; "" where that means nothing."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What waits, for what, and on whom it depends in the end."""

    action: str
    """What waits, "send" say."""
    goal: str
    """What it waits for, "room" say."""
    peers: list[tuple[_core.Peer, str]]
    """Whom it waits for, each with how far behind it is."""
    is_usual: bool = False
    """However long, it says nothing of anybody's slowness: there may be nothing to send."""


def wait_of(
    me: int, peers: Sequence[_core.Peer], slots: int, writer_name: str, action: str | None = None
) -> Wait:
    """Find out what a member waits for, and follow that to the member that moves last.

    Args:
        me: the member: a reader's index; their number for the writer.
        peers: all members.
        slots: of the ring; 0: not known.
        writer_name: how to name the writer.
        action: how to call what waits; None: "send" or "recv".
    """
    *readers, writer = peers
    behind = [(p, f"{counted(p.behind, 'fragment')} behind") for p in readers if p.behind]
    if me == writer.index:
        if behind:
            return Wait(action or "send", "room", behind)
        vacant = [(p, "not attached") for p in peers if p.state == "vacant"]
        return Wait("wait_ready", "all to attach", vacant)
    full = [(p, text) for p, text in behind if slots and p.behind >= slots and p.index != me]
    if full:
        return Wait(action or "recv", f"a message, as {writer_name} waits for room", full)
    return Wait(action or "recv", "a message", [(writer, "")], is_usual=True)


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
        stack_seconds: so long a report may look for stacks; 0: it has none.
    """

    def __init__(self, label: str, warn_after: float, stack_seconds: float = STACK_SECONDS) -> None:
        self._label = label
        self._stack_seconds = stack_seconds
        self._warn_after = warn_after
        self._told = ""  # the action, once a wait was reported
        self._looked = 0.0  # how long the wait was then
        self._next_report = warn_after
        self._cpu_seconds: dict[int | None, float] = {}  # by pid, when looked

    def look(
        self,
        waited: float,
        is_first: bool,
        action: str,
        goal: str,
        peers: Iterable[SlowPeer],
        is_usual: bool = False,
    ) -> float:
        """Look at the peers, and report the wait if that is due.

        Args:
            waited: seconds, as of now.
            is_first: this is the first look of this wait.
            action: what waits, "send" say.
            goal: what it waits for, "room" say.
            peers: whom it waits for.
            is_usual: it is for debugging only, unless one of them can't go on.

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
            is_stuck = any(state is not None and state.name in _STUCK for _, state in seen)
            level = logging.DEBUG if is_usual and not is_stuck else logging.WARNING
            self._told = action if level == logging.WARNING else self._told
            lines = [f"{self._label}: {action} has waited {_seconds(waited)} for {goal}"]
            give_up = monotonic() + self._stack_seconds
            for peer, state in seen:
                lines.append(f"  {self._line(waited, peer, state)}")
                left = give_up - monotonic()
                if state is not None and peer.pid is not None and left > 0 and is_on(level):
                    stack = _REPORT.sub("", stack_of(peer.pid, left))
                    lines += textwrap.indent(stack, "    ").splitlines()
            tell(level, "%s", "\n".join(lines))
        self._looked = waited
        self._cpu_seconds = {peer.pid: state.cpu_seconds for peer, state in seen if state}
        return self._next_report

    def end(self, waited: float) -> None:
        """Report that a wait went on, if it was reported before."""
        if self._told:
            tell(logging.INFO, "%s: %s went on after %s", self._label, self._told, _seconds(waited))
            self._told = ""

    def _line(self, waited: float, peer: SlowPeer, state: State | None) -> str:
        who = [peer.name] if peer.pid is None else [peer.name, f"pid {peer.pid}"]
        if peer.behind:
            who.append(peer.behind)
        what = []
        if state is not None:
            what = [state.name, counted(state.threads, "thread")]
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
        except OSError as error:  # /proc may hide it
            pass_on(error)
    return None


def _seconds(duration: float) -> str:
    return f"{duration:.0f} s" if duration >= 10 else f"{duration:.1f} s"

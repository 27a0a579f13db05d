"""Who holds everybody up, in a segment that was looked at twice: for people and for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shmcast._endpoints.description import receiver_of
from shmcast._operators.formats import duration
from shmcast._operators.snapshot import ELSEWHERE, Member, Snapshot, all_snapshots, chosen
from shmcast._operators.stacks import NO_STACKS, Stacks
from shmcast._operators.wait_chain import Chain, follow

LOOK_SECONDS = 0.2
"""Between the two looks: what has not moved meanwhile does not move."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found out about a segment.

    Attributes:
        snapshot: the second look.
        chain: who waits for whom; None: the segment can't be read.
        stacks: what the root's threads do, where it holds others up or was asked for.
        told_under: the label under which people have read that already; "": not yet.
    """

    snapshot: Snapshot
    chain: Chain | None
    stacks: Stacks = NO_STACKS
    told_under: str = ""

    @property
    def is_stuck(self) -> bool:
        """Whether somebody holds the others up."""
        return self.chain is not None and self.chain.is_stuck

    def as_json(self) -> dict[str, Any]:
        """Return what programs read."""
        row: dict[str, Any] = {"label": self.snapshot.label, "name": self.snapshot.name}
        if self.chain is None:
            return {**row, "error": self.snapshot.error, "root_pid": None, "root_state": None,
                    "is_stuck": False, "verdict": None, "chain": []}  # fmt: skip
        root = self.chain.root
        return {
            **row,
            "root_pid": root.pid,
            "root_state": root.state,
            "root_name": _name(self.snapshot, root),
            "is_stuck": self.chain.is_stuck,
            "verdict": self.chain.verdict,
            "quiet_seconds": self.snapshot.quiet,
            "chain": [
                {
                    "does": link.does,
                    "members": [
                        {
                            "name": _name(self.snapshot, m),
                            "pid": m.pid,
                            "state": m.state,
                            "lag": m.lag,
                        }
                        for m in link.members
                    ],
                }
                for link in self.chain.links
            ],
            "stack": self.stacks.text,
        }

    def as_text(self) -> str:
        """Return what people read."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        if self.chain is None:
            yield f"{self.snapshot.name}: {self.snapshot.error}"
            return
        yield f"{self.snapshot.label}: {self._verdict(self.chain)}"
        for link in self.chain.links:
            who = [_described(self.snapshot, m) for m in link.members[:_MOST_NAMED]]
            if len(link.members) > _MOST_NAMED:
                who.append(f"{len(link.members) - _MOST_NAMED} more")
            yield f"  {', '.join(who)}: {link.does}"
        nodes = self.snapshot.nodes
        if nodes > 1 and self.chain.waits and self.chain.root is self.snapshot.writer:
            yield f"    its group spans {nodes} nodes: run this on the hosts of the others, too"
        if self.told_under:
            yield f"    its threads: see above, {self.told_under}"
            return
        for line in (self.stacks.text or self.stacks.why_none).splitlines():
            yield f"    {line}"

    def _verdict(self, chain: Chain) -> str:
        if chain.verdict != "waits":
            return _VERDICTS[chain.verdict]
        quiet = self.snapshot.quiet
        return "waits" if quiet is None else f"waits, nothing was sent for {duration(quiet)}"


_MOST_NAMED = 8
_VERDICTS = {"stuck": "STUCK", "moves": "moves, or has nothing to do"}


def diagnose(what: str | None, stacks_of: Callable[[Member], Stacks]) -> list[Diagnosis]:
    """Find out who holds whom up in this user's segments.

    Args:
        what: a pid, or a part of a label; None: all segments that are not over.
        stacks_of: returns what the threads of a member's process do.
    """
    before = {snapshot.name: snapshot for snapshot in chosen(all_snapshots(), what)}
    if not before:
        return []
    time.sleep(LOOK_SECONDS)
    asked = _Asked(stacks_of)
    found = []
    for now in all_snapshots():
        if now.name not in before or (now.is_over and what is None):
            continue
        if now.error:
            found.append(Diagnosis(now, None))
            continue
        chain = follow(before[now.name], now)
        is_due = what is not None or chain.verdict != "moves"
        stacks, told_under = asked.of(chain.root, now.label) if is_due else (NO_STACKS, "")
        found.append(Diagnosis(now, chain, stacks, told_under))
    return found


class _Asked:
    """Asks each process once: one that does not answer takes its time.

    Args:
        stacks_of: returns what the threads of a member's process do.
    """

    def __init__(self, stacks_of: Callable[[Member], Stacks]) -> None:
        self._stacks_of = stacks_of
        self._answers: dict[int, tuple[Stacks, str]] = {}  # with the label that asked, by pid

    def of(self, member: Member, label: str) -> tuple[Stacks, str]:
        """Return the stacks of a member, and the label of whoever has told them already."""
        if member.pid is None or member.state == ELSEWHERE:  # (pids of another namespace)
            return self._stacks_of(member), ""
        if member.pid in self._answers:
            return self._answers[member.pid]
        stacks = self._stacks_of(member)
        if stacks != NO_STACKS:
            self._answers[member.pid] = (stacks, label)
        return stacks, ""


def _name(snapshot: Snapshot, member: Member) -> str:
    """Return how errors name a member, or its place where it has not come."""
    if member.name:
        return f"relay of {member.name}" if _is_relay(snapshot, member) else member.name
    if snapshot.is_between_two and member is not snapshot.writer:
        return receiver_of(snapshot.label)
    if member is snapshot.writer:
        return "hub" if snapshot.is_hub else "writer"
    return f"{'member' if snapshot.is_hub else 'reader'} {member.index}"


def _is_relay(snapshot: Snapshot, member: Member) -> bool:
    """Return whether it is the thread by which a node's leader passes on what another node sends.

    It has the leader's name, as the leader's own end has.
    """
    if member is not snapshot.writer or snapshot.nodes == 1:
        return False
    return any((r.name, r.pid) == (member.name, member.pid) for r in snapshot.readers)


def _described(snapshot: Snapshot, member: Member) -> str:
    pid = "" if member.pid is None else f"pid {member.pid}, "
    return f"{_name(snapshot, member)} ({pid}{member.state})"

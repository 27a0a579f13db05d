"""Who holds everybody up, in a segment that was looked at twice: for people and for programs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from shmcast._operators.snapshot import Member, Snapshot, all_snapshots, chosen
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
        stacks: what the root's threads do, where it holds the others up.
    """

    snapshot: Snapshot
    chain: Chain | None
    stacks: Stacks = NO_STACKS

    @property
    def is_stuck(self) -> bool:
        """Whether somebody holds the others up."""
        return self.chain is not None and self.chain.is_stuck

    def as_json(self) -> dict[str, Any]:
        """Return what programs read."""
        row: dict[str, Any] = {"label": self.snapshot.label, "name": self.snapshot.name}
        if self.chain is None:
            return {**row, "error": self.snapshot.error, "root_pid": None, "root_state": None,
                    "is_stuck": False, "chain": []}  # fmt: skip
        root = self.chain.root
        return {
            **row,
            "root_pid": root.pid,
            "root_state": root.state,
            "root_name": _name(self.snapshot, root),
            "is_stuck": self.chain.is_stuck,
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
        verdict = "STUCK" if self.is_stuck else "moves, or has nothing to do"
        yield f"{self.snapshot.label}: {verdict}"
        for link in self.chain.links:
            who = [_described(self.snapshot, m) for m in link.members[:_MOST_NAMED]]
            if len(link.members) > _MOST_NAMED:
                who.append(f"{len(link.members) - _MOST_NAMED} more")
            yield f"  {', '.join(who)}: {link.does}"
        for line in (self.stacks.text or self.stacks.why_none).splitlines():
            yield f"    {line}"


_MOST_NAMED = 8


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
    found = []
    for now in all_snapshots():
        if now.name not in before or (now.is_over and what is None):
            continue
        if now.error:
            found.append(Diagnosis(now, None))
            continue
        chain = follow(before[now.name], now)
        found.append(Diagnosis(now, chain, stacks_of(chain.root) if chain.is_stuck else NO_STACKS))
    return found


def _name(snapshot: Snapshot, member: Member) -> str:
    """Return how errors name a member, or its place where it has not come."""
    if member.name:
        return member.name
    if member is snapshot.writer:
        return "hub" if snapshot.is_hub else "writer"
    return f"{'member' if snapshot.is_hub else 'reader'} {member.index}"


def _described(snapshot: Snapshot, member: Member) -> str:
    pid = "" if member.pid is None else f"pid {member.pid}, "
    return f"{_name(snapshot, member)} ({pid}{member.state})"

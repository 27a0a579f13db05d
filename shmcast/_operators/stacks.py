"""What the threads of a member's process do, as it tells itself or py-spy sees."""

from __future__ import annotations

from dataclasses import dataclass

from shmcast._endpoints.members import LIVING
from shmcast._host import reports
from shmcast._host.process import py_spy, stack_of
from shmcast._operators.snapshot import DEAD, ELSEWHERE, Member

_SECONDS = 0.5  # for each way to them


@dataclass(frozen=True)
class Stacks:
    """What the threads of a process do.

    Attributes:
        text: line by line, as py-spy shows it; "": that is not known.
        why_none: why it is not; "": there is nothing to be known, of the dead for instance.
    """

    text: str = ""
    why_none: str = ""


NO_STACKS = Stacks()


def stacks_of(member: Member) -> Stacks:
    """Return what the threads of a member's process do."""
    if member.pid is None or member.state == DEAD or member.seat not in LIVING:
        return NO_STACKS
    if member.state == ELSEWHERE:
        return Stacks(why_none="its threads are not seen from this pid namespace")
    told = None if member.is_stuck else reports.ask(member.pid, _SECONDS)
    text = told or stack_of(member.pid, _SECONDS)
    if text:
        return Stacks(text)
    silence = (
        f"{member.state}, it can't answer"
        if member.is_stuck
        else f"it does not answer ({reports.VARIABLE}=1 in its environment lets it)"
    )
    spy = "there is no py-spy" if py_spy() is None else "py-spy does not see them"
    return Stacks(why_none=f"its threads are not told: {silence}, and {spy}")

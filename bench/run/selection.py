"""What a command line asks for, checked before anything is measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeVar

from bench.run import job
from bench.run.case import Case
from bench.run.suites import SUITES
from bench.transports import registry

_T = TypeVar("_T", str, int, float)


class NoSuchName(ValueError):
    """Something asked for is not there; says what is."""


@dataclass(frozen=True)
class Chosen:
    """A suite, and what of it to run."""

    suite: str
    transports: list[str]
    cases: list[Case]
    """None of the suite "job", which has its own."""


def choose(
    suites: Sequence[str],
    transports: Collection[str],
    workloads: Collection[str],
    readers: Collection[int],
    gaps: Collection[float],
    scale: float,
) -> list[Chosen]:
    """Return what to run. Of each collection, an empty one stands for all.

    Raises:
        NoSuchName: there is no such suite, transport or case.
    """
    every = [*SUITES, job.SUITE]
    _check("suite", suites, every)
    _check("transport", transports, [*registry.peers()])
    wanted = [*suites] or every
    cases = {name: SUITES[name].cases(scale) for name in wanted if name in SUITES}
    known = [case for own in cases.values() for case in own]
    _check("workload", workloads, [case.workload for case in known])
    _check("number of readers", readers, [case.readers for case in known])
    _check("gap", gaps, [case.gap_ms for case in known])
    chosen = []
    for name in wanted:
        own = [
            case
            for case in cases.get(name, [])
            if (not workloads or case.workload in workloads)
            and (not readers or case.readers in readers)
            and (not gaps or case.gap_ms in gaps)
        ]
        is_narrowed = bool(workloads or readers or gaps)
        if name == job.SUITE:
            if not is_narrowed or len(wanted) == 1:
                names = [t for t in job.TRANSPORTS if not transports or t in transports]
                chosen.append(Chosen(name, names, []))
        elif own:
            chosen.append(Chosen(name, [*transports] or [*SUITES[name].transports], own))
    if not chosen:
        raise NoSuchName("no case has all that was asked for: see `python -m bench list`")
    return chosen


def _check(what: str, asked: Collection[_T], known: Collection[_T]) -> None:
    unknown = [value for value in asked if value not in known]
    if unknown:
        there = "; ".join(map(str, dict.fromkeys(sorted(known))))  # names have commas
        raise NoSuchName(f"{what} {unknown[0]!r} is none of {there}")

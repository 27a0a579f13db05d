"""The regression guard: ratios between transports of one run, held against committed bounds.

A time says more about the machine than about the code; a ratio between two ways in one run says
whether something got slower. A bound that is missed is measured again, twice.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench import transports
from bench.run.case import Case
from bench.run.harness import Harness, Row

BOUNDS = Path(__file__).with_name("bounds.json")
TRIES = 3
TURNS = 3


@dataclass(frozen=True)
class Bound:
    """In a case, `transport` takes at most `at_most` times as long as `peer`.

    Of a case without gaps, it is `peer`'s rate over `transport`'s.
    """

    case: Case
    transport: str
    peer: str
    at_most: float

    @classmethod
    def read(cls, written: dict[str, Any]) -> Bound:
        """A bound as it is in bounds.json."""
        case = Case(**written["case"])
        return cls(case, written["transport"], written["peer"], written["at_most"])

    def ratio(self, rows: list[Row]) -> float:
        """What was measured, from the rows of its case."""
        ours, theirs = (
            next(row for row in rows if row["transport"] == name)
            for name in (self.transport, self.peer)
        )
        if self.case.is_rate:
            return float(theirs["rate_per_s"] / ours["rate_per_s"])
        return float(ours["p50_us"] / theirs["p50_us"])


def read(path: Path) -> list[Bound]:
    """The bounds of a file."""
    return [Bound.read(written) for written in json.loads(path.read_text())]


def broken(console: Console, bounds: list[Bound]) -> list[Bound]:
    """Measures; prints a line for each bound, and returns those that were missed."""
    names = list(dict.fromkeys(name for b in bounds for name in (b.transport, b.peer)))
    by_case: dict[Case, list[Bound]] = {}
    for case in sorted(dict.fromkeys(b.case for b in bounds), key=lambda case: case.readers):
        own = [bound for bound in bounds if bound.case == case]
        taking_part = {name for bound in own for name in (bound.transport, bound.peer)}
        by_case[dataclasses.replace(case, transports=tuple(taking_part))] = own
    table = Table("case", "ratio", "at most", "measured")
    missed = []
    with Harness([*map(transports.peer, names)], TURNS) as harness:
        for case, rows in harness.run([*by_case]):
            if harness.skipped:
                raise RuntimeError(f"what has a bound must run: {harness.skipped}")
            for bound in by_case[case]:
                ratio = bound.ratio(rows)
                if ratio > bound.at_most:
                    missed.append(bound)
                what = f"{bound.transport} / {bound.peer}"
                style = "red" if ratio > bound.at_most else ""
                figures = (f"{bound.at_most:.3g}", f"{ratio:.3g}")
                table.add_row(str(case), what, *figures, style=style)
    console.print(table)
    return missed


def main(
    bounds: Annotated[Path, typer.Option(help="the bounds")] = BOUNDS,
) -> None:
    """Fails if shmcast has become slower, against peers of the same run, than the bounds say."""
    console = Console()
    left = read(bounds)
    for _ in range(TRIES):
        left = broken(console, left)
        if not left:
            return
    for bound in left:
        console.print(
            f"{bound.case}: {bound.transport} takes more than {bound.at_most:g} times what "
            f"{bound.peer} takes, in {TRIES} tries",
            style="red",
        )
    raise typer.Exit(1)

"""The regression guard: ratios between transports of one run, held against committed bounds.

A time says more about the machine than about the code; a ratio between two transports in one run
says whether something got slower. A bound that is missed is measured again, twice.
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

from bench import terminal
from bench.run import codec_smoke
from bench.run.case import Case
from bench.run.harness import Harness, Row
from bench.transports import registry

BOUNDS = Path(__file__).with_name("bounds.json")
TRIES = 3
TURNS = 3


@dataclass(frozen=True)
class Bound:
    """In a case, `transport` takes at most `at_most` times as long as `peer`.

    In a case without gaps, the ratio is that of `peer`'s rate to `transport`'s.
    """

    case: Case
    transport: str
    peer: str
    at_most: float

    @classmethod
    def read(cls, written: dict[str, Any]) -> Bound:
        """Make a bound from an entry of bounds.json."""
        case = Case(**written["case"])
        return cls(case, written["transport"], written["peer"], written["at_most"])

    def ratio(self, rows: list[Row]) -> float:
        """Return what was measured, from the rows of its case."""
        ours, theirs = (
            next(row for row in rows if row["transport"] == name)
            for name in (self.transport, self.peer)
        )
        if self.case.is_rate:
            return float(theirs["rate_per_s"] / ours["rate_per_s"])
        return float(ours["p50_us"] / theirs["p50_us"])


def read(path: Path) -> list[Bound]:
    """Return the bounds of a file."""
    return [Bound.read(written) for written in json.loads(path.read_text())]


def broken(console: Console, bounds: list[Bound]) -> list[Bound]:
    """Measure, print a line for each bound, and return the bounds that were missed."""
    names = list(dict.fromkeys(name for b in bounds for name in (b.transport, b.peer)))
    by_case: dict[Case, list[Bound]] = {}
    for case in sorted(dict.fromkeys(b.case for b in bounds), key=lambda case: case.readers):
        own = [bound for bound in bounds if bound.case == case]
        taking_part = {name for bound in own for name in (bound.transport, bound.peer)}
        by_case[dataclasses.replace(case, transports=tuple(taking_part))] = own
    shown = table()
    missed = []
    with Harness([*map(registry.peer, names)], TURNS) as harness:
        for case, rows in harness.run([*by_case]):
            if harness.skipped:
                raise RuntimeError(f"every transport with a bound must run: {harness.skipped}")
            for bound in by_case[case]:
                ratio = bound.ratio(rows)
                if ratio > bound.at_most:
                    missed.append(bound)
                add(shown, bound, ratio)
    console.print(shown)
    return missed


def table() -> Table:
    """Return a table of bounds, for a terminal."""
    return terminal.table("case", "ratio of", "at most", "is")


def add(shown: Table, bound: Bound, ratio: float) -> None:
    """Add a bound and what was measured to a table, in red if the bound was missed."""
    what = f"{bound.transport} / {bound.peer}"
    style = "red" if ratio > bound.at_most else ""
    shown.add_row(str(bound.case), what, f"{bound.at_most:.3g}", f"{ratio:.3g}", style=style)


def main(
    bounds: Annotated[Path, typer.Option(help="the bounds of transports")] = BOUNDS,
    codec_bounds: Annotated[Path, typer.Option(help="those of the codec")] = codec_smoke.BOUNDS,
) -> None:
    """Fail if shmcast has become slower, against peers of the same run, than the bounds say."""
    console = terminal.console()
    codec_failures = codec_smoke.missed(console, codec_smoke.read(codec_bounds))
    for sentence in codec_failures:
        console.print(sentence, style="red")
    left = read(bounds)
    for _ in range(TRIES):
        left = broken(console, left)
        if not left:
            break
    for bound in left:
        console.print(
            f"{bound.case}: {bound.transport} takes more than {bound.at_most:g} times what "
            f"{bound.peer} takes, in {TRIES} tries",
            style="red",
        )
    if left or codec_failures:
        raise typer.Exit(1)

"""The codec's part of the regression guard: how many times as fast as pickle it must be.

Both run in turns in one process, so that a noisy machine slows both.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import terminal
from bench.run import codecs
from bench.run.codecs import BASELINE, OURS, USERS, CodecCase, Row

BOUNDS = Path(__file__).with_name("codec_bounds.json")
TRIES = 3
TURNS = 3


@dataclass(frozen=True)
class CodecBound:
    """In each case, shmcast's codec is at least `at_least` times as fast as pickle."""

    cases: tuple[CodecCase, ...]
    at_least: float


def read(path: Path) -> list[CodecBound]:
    """Return the bounds of a file: of named workloads, or of all objects of users."""
    return [_bound(written) for written in json.loads(path.read_text())]


def _bound(written: dict[str, Any]) -> CodecBound:
    if written["workloads"] == USERS:
        names = [name for name, (kind, _) in codecs.workloads().items() if kind == USERS]
    else:
        names = written["workloads"]
    cases = codecs.cases(names, [written["evicted_mib"]])
    return CodecBound(tuple(cases), written["at_least"])


def ratio(rows: Sequence[Row]) -> float:
    """Return how many times as fast as pickle shmcast's codec encodes and decodes, in one case."""
    found = {row["codec"]: row["both_p50_us"] for row in rows}
    return float(found[BASELINE] / found[OURS])


def missed(console: Console, bounds: Sequence[CodecBound], scale: float = 1.0) -> list[str]:
    """Measure, and print the slowest case of each bound; return a sentence for each one missed.

    A case that misses its bound is measured again, twice.
    """
    shown = terminal.table("encode and decode", "slowest", "at least", "is")
    sentences = []
    for bound in bounds:
        ratios = {case: _measured(case, bound.at_least, scale) for case in bound.cases}
        slowest = min(ratios, key=lambda case: ratios[case])
        found = ratios[slowest]
        what = f"{len(bound.cases)} cases, {OURS} / {BASELINE}"
        style = "red" if found < bound.at_least else ""
        figures = f"{bound.at_least:.3g}", f"{found:.3g}"
        shown.add_row(what, str(slowest), *figures, style=style)
        sentences += [
            f"{case}: {OURS} is {each:.3g} times as fast as {BASELINE}, not {bound.at_least:g}, in "
            f"{TRIES} tries"
            for case, each in ratios.items()
            if each < bound.at_least
        ]
    console.print(shown)
    return sentences


def _measured(case: CodecCase, at_least: float, scale: float) -> float:
    best = 0.0
    for _ in range(TRIES):
        rows, skipped = codecs.measure(case, [OURS, BASELINE], TURNS, scale)
        if skipped:
            raise RuntimeError(f"{case}: both must run: {skipped}")
        best = max(best, ratio(rows))
        if best >= at_least:
            break
    return best

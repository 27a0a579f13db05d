"""One table of every case, of all suites, in which shmcast as it comes is not the fastest.

It is never empty because something was left out: what was not measured has a line, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from bench.report.losses import LESS
from bench.report.results import (
    ORDER,
    OURS,
    ByTransport,
    Interval,
    JobRow,
    Results,
    Row,
    SuiteResults,
    by_case,
    family,
    is_rate,
    time_of,
)
from bench.report.tables import markdown, ratio, short

_OTHER_KINDS = {
    "codec": "its own tables",
    "deaths": "nothing to compare with",
    "engines": "its own tables",
    "replies": "its own tables",
}
_HEAD = ("suite", "case", "figure", "fastest", "its", OURS, "times as fast, with 95 % interval")

Line = tuple[str, str, str, str, str, str, str]


def table(results: Results) -> str:
    """Return the table, with a line for each suite that has no such case or was not run."""
    return markdown(_HEAD, [line for name in ORDER for line in _suite(name, results)], rule="---")


def _suite(name: str, results: Results) -> list[Line]:
    suite = results.suites.get(name)
    if suite is None:
        return [_note(name, "", "not run")]
    if name in _OTHER_KINDS:
        return [_note(name, "", _OTHER_KINDS[name])]
    lines, count = [], 0
    for case, figures in _figures(suite):
        count += 1
        lines += figures or []
        if figures is None:
            lines.append(_note(name, case, f"no peer beside {OURS}, or no {OURS}"))
    if not lines:
        what = "nowhere" if count else "no case was measured"
        lines = [_note(name, f"all {count} cases", what)]
    skipped = [
        (what, " ".join(why.replace("|", "/").split())) for what, why in suite.skipped.items()
    ]
    return [*lines, *(_note(name, what, f"not measured: {why}") for what, why in skipped)]


def _figures(suite: SuiteResults) -> Iterator[tuple[str, list[Line] | None]]:
    """Yield each case with the figures that a peer has the better of; None: it has no peer."""
    for case, all_rows in by_case(suite.rows).items():
        own = {name: row for name, row in all_rows.items() if not name.startswith(LESS)}
        yield str(case), _of_case(suite.name, str(case), own)
    by_ranks: dict[int, list[JobRow]] = {}
    for row in suite.job:
        by_ranks.setdefault(row["ranks"], []).append(row)
    for ranks, rows in by_ranks.items():
        yield f"{ranks} ranks", _of_job(suite.name, f"{ranks} ranks", rows)


def _of_case(suite: str, case: str, own: ByTransport) -> list[Line] | None:
    peers = [row for name, row in own.items() if family(name) != OURS]
    ours = own.get(OURS)
    if ours is None:  # a suite that compares transports of ours has no default
        variants = [row for name, row in own.items() if family(name) == OURS]
        ours = min(variants, key=lambda row: time_of(row).value, default=None)
    if ours is None or not peers:
        return None
    lines = _loss(suite, case, "rate" if is_rate(ours) else "p50", time_of, ours, peers)
    if not is_rate(ours):
        for name in ("p99", "p999"):
            measured = [row for row in peers if f"{name}_us" in row]
            if measured and f"{name}_us" in ours:
                figure = "p99.9" if name == "p999" else name
                lines += _loss(suite, case, figure, _Percentile(name), ours, measured)
    return lines


class _Percentile:
    """Returns a percentile of a row, with its interval."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, row: Row) -> Interval:
        found: dict[str, float] = {**row}  # type: ignore[dict-item]
        low, value, high = (found[f"{self._name}{end}_us"] for end in ("_low", "", "_high"))
        return Interval(low, value, high)


def _loss(
    suite: str,
    case: str,
    figure: str,
    of: Callable[[Row], Interval],
    ours: Row,
    peers: Iterable[Row],
) -> list[Line]:
    peer = min(peers, key=lambda row: of(row).value)
    mine, theirs = of(ours), of(peer)
    if mine.value <= theirs.value:
        return []
    low, value, high = mine.over(theirs)
    return [
        (
            suite,
            case,
            figure,
            peer["transport"],
            _with_unit(figure, theirs.value),
            _with_unit(figure, mine.value),
            f"{ratio(value)} ({ratio(low)} to {ratio(high)})",
        )
    ]


def _with_unit(figure: str, microseconds: float) -> str:
    return f"{1e6 / microseconds:,.0f} /s" if figure == "rate" else f"{short(microseconds)} µs"


def _of_job(suite: str, case: str, rows: list[JobRow]) -> list[Line] | None:
    peers = [row for row in rows if family(row["transport"]) != OURS]
    ours = next((row for row in rows if row["transport"] == OURS), None)
    if ours is None or not peers:
        return None
    peer = max(peers, key=lambda row: row["tokens_per_s"])
    if peer["tokens_per_s"] <= ours["tokens_per_s"]:
        return []
    theirs, mine = peer["tokens_per_s"], ours["tokens_per_s"]
    low = peer["tokens_per_s_low"] / ours["tokens_per_s_high"]
    high = peer["tokens_per_s_high"] / ours["tokens_per_s_low"]
    how = f"{ratio(theirs / mine)} ({ratio(low)} to {ratio(high)})"
    name = peer["transport"]
    return [(suite, case, "tokens/s", name, f"{theirs:,.0f}", f"{mine:,.0f}", how)]


def _note(suite: str, case: str, what: str) -> Line:
    return (suite, case, what, "", "", "", "")

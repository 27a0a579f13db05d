"""Results as Markdown tables: a line for each case, a column for each transport."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from bench.report.results import (
    OURS,
    ByTransport,
    DeathRow,
    JobRow,
    Machine,
    Results,
    Row,
    by_case,
    case_of,
    fastest,
    is_rate,
    time_of,
)

CaseRow = TypeVar("CaseRow", bound=Mapping[str, Any])

Cell = Callable[[Row, ByTransport], str]
"""Makes a cell of a row and of all rows of the same case, by transport."""


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]], rule: str = "---:") -> str:
    """Return a table whose first column has words; `rule` aligns the others.

    Raises:
        LookupError: there are no lines.
    """
    lines = list(lines)
    if not lines:
        raise LookupError(f"nothing for the table {' | '.join(head)}")
    rules = ["---", *[rule] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rules, *lines))


def with_notes(
    rows: Sequence[CaseRow], cases: Mapping[str, tuple[str, Callable[[Sequence[CaseRow]], str]]]
) -> Iterator[str]:
    """Yield the tables of the cases that were measured, each with what it shows before it.

    Args:
        rows: of all cases, which "case" tells.
        cases: by that: what the table shows, and what makes it.
    """
    for case, (note, table) in cases.items():
        its = [row for row in rows if row["case"] == case]
        if its:
            yield note
            yield table(its)


def short(figure: float) -> str:
    """Return a figure with as many digits as one reads: 6.3, 99.9, 100, 12,345."""
    return f"{figure:.1f}" if figure < 99.95 else f"{figure:,.0f}"


def ratio(value: float) -> str:
    """Return a factor with as many digits as one reads: 1.04, 9.99, 10.0, 123."""
    return f"{value:.2f}" if value < 9.995 else short(value)


def latency(row: Row, _own: ByTransport) -> str:
    """Return p50 / p99 in µs or, back to back, messages per second."""
    if is_rate(row):
        return f"{row['rate_per_s']:,.0f} /s"
    return f"{short(row['p50_us'])} / {short(row['p99_us'])}"


def three_percentiles(row: Row, _own: ByTransport) -> str:
    """Return p50 / p90 / p99 in µs, where the rare messages are the point."""
    figures = (row["p50_us"], row["quantiles_us"][90], row["p99_us"])
    return " / ".join(map(short, figures))


def tail(row: Row, _own: ByTransport) -> str:
    """Return p99 and p99.9 in µs, each with its interval; "" where they were not measured."""
    if "p999_us" not in row:
        return ""
    figures = []
    for name in ("p99", "p999"):
        low, value, high = (float(row[f"{name}{end}_us"]) for end in ("_low", "", "_high"))  # type: ignore[literal-required]
        figures.append(f"{short(value)} ({short(low)} to {short(high)})")
    return " / ".join(figures)


def lines(rows: Iterable[Row]) -> str:
    """Return, for each case, how far apart the CPUs were before and after; "" if nobody looked."""
    found = [
        (str(case), row["line"], short(row["line_before_ns"]), short(row["line_after_ns"]))
        for case, own in by_case(rows).items()
        if "line" in (row := next(iter(own.values())))
    ]
    if not found:
        return ""
    return markdown(("case", "the CPUs are", "before, ns", "after, ns"), found)


def steps(row: Row, _own: ByTransport) -> str:
    """Return the steps that an engine made in a second, with the interval."""
    low, high = row["steps_low_per_s"], row["steps_high_per_s"]
    return f"{row['steps_per_s']:.1f} ({low:.1f} to {high:.1f})"


def median(row: Row) -> str:
    """Return p50 or the rate, with its unit."""
    return f"{row['rate_per_s']:,.0f} /s" if is_rate(row) else f"{short(row['p50_us'])} µs"


def latency_and_cpu(row: Row, own: ByTransport) -> str:
    """Return p50 / p99 in µs, and the CPU time of a reader over wall time."""
    return f"{latency(row, own)}, {row['reader_cpu']:.1%}"


def times_less_than(baseline: str) -> Cell:
    """Return a cell of p50 / p99 in µs, and how many times faster p50 is than a baseline's."""

    def cell(row: Row, own: ByTransport) -> str:
        figures = latency(row, own)
        if row["transport"] == baseline or baseline not in own:
            return figures
        return f"{figures}, {time_of(own[baseline]).over(time_of(row)).value:.1f}x"

    return cell


def slowdown(row: Row, own: ByTransport) -> str:
    """Return how many times the time of shmcast it takes, with the interval."""
    if OURS not in own or row["transport"] == OURS:
        return ""
    low, value, high = time_of(row).over(time_of(own[OURS]))
    return f"{ratio(value)} ({ratio(low)} to {ratio(high)})"


def cpu_time(row: Row, _own: ByTransport) -> str:
    """Return the CPU time of a message in µs, on the source and on a reader."""
    return f"{short(row['source_cpu_us'])} + {short(row['reader_cpu_us'])}"


def memory(row: Row, _own: ByTransport) -> str:
    """Return by how much all processes together have grown, in MiB."""
    return f"{row['memory_mib']:.1f}"


def reading_time(row: Row, _own: ByTransport) -> str:
    """Return how long a reader takes to sum the array, in µs."""
    return short(row["read_p50_us"]) if "read_p50_us" in row else ""


def copies(row: Row, _own: ByTransport) -> str:
    """Return the bytes of a message that reached the other host, over its size."""
    return f"{row['extra']['bytes_in'] / row['bytes']:.2f}"


def compare(
    rows: Iterable[Row],
    cell: Cell = latency,
    columns: Sequence[str] | None = None,
    bold: bool = True,
) -> str:
    """Return a table of `columns`, or of all transports; what was not measured is empty.

    Args:
        rows: of any cases; those that have no row in the columns are left out.
        cell: makes the text of a row.
        columns: names of transports.
        bold: whether to mark the fastest of a line.
    """
    cases = by_case(rows)
    columns = columns or list(dict.fromkeys(name for own in cases.values() for name in own))
    lines = []
    for case, own in cases.items():
        shown = {name: row for name, row in own.items() if name in columns}
        cells = {name: cell(row, own) for name, row in shown.items()}
        if bold and (best := fastest(shown.values())):
            cells[best["transport"]] = f"**{cells[best['transport']]}**"
        if cells:
            lines.append([str(case), *(cells.get(name, "") for name in columns)])
    return markdown(["message, readers, gap", *columns], lines)


def groups(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Group rows by the heading of their table: the number of readers, or back to back."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: math.inf if is_rate(row) else row["readers"]):
        plural = "s" if row["readers"] > 1 else ""
        title = "Back to back" if is_rate(row) else f"{row['readers']} reader{plural}"
        found.setdefault(title, []).append(row)
    return found


def extras(rows: Iterable[Row]) -> str:
    """Return the figures that only some transports have, or an empty string."""
    lines = [
        f"- {case_of(row)}, {row['transport']}: "
        + ", ".join(f"{name} {value:g}" for name, value in row.get("extra", {}).items())
        for row in rows
        if row.get("extra")
    ]
    return "\n".join(lines)


def job(rows: Iterable[JobRow]) -> str:
    """Return a table with a line for each number of ranks and transport of the whole job."""
    head = ["ranks, transport", "tokens/s", "TTFT, ms", "broadcast, µs", "of the time", "passes"]
    lines = [
        [
            f"{row['ranks']}, {row['transport']}",
            f"{short(row['tokens_per_s'])} "
            f"({short(row['tokens_per_s_low'])} to {short(row['tokens_per_s_high'])})",
            f"{short(row['ttft_p50_ms'])} / {short(row['ttft_p99_ms'])}",
            f"{short(row['broadcast_p50_us'])} / {short(row['broadcast_p99_us'])}",
            f"{row['broadcast_share']:.1%}",
            str(row["passes"]),
        ]
        for row in rows
    ]
    return markdown(head, lines)


def deaths(rows: Iterable[DeathRow]) -> str:
    """Return a table with a line for each cadence and for who is told of a kill."""
    head = ["messages, who is told", "p50, ms", "p99, ms", "worst, ms", "kills"]
    lines = [
        [
            f"{cadence(row['gap_ms'])}, {row['who']}",
            *(short(row[name]) for name in ("p50_ms", "p99_ms", "max_ms")),
            str(row["kills"]),
        ]
        for row in rows
    ]
    return markdown(head, lines)


def cadence(gap_ms: float) -> str:
    """Return in words how often messages come; below 0 there are none."""
    if gap_ms < 0:
        return "none"
    return f"{gap_ms:g} ms apart" if gap_ms else "back to back"


def where(machine: Machine) -> str:
    """Return the machine and the day, for the note below a table."""
    return (
        f"{machine['cpu']}, {machine['usable_cpus']:g} of {machine['cores']} CPUs, "
        f"Python {machine['python']}, torch {machine['torch']}, {machine['date'][:10]}"
    )


def where_in_full(machine: Machine) -> str:
    """Return everything that is known of the machine."""
    return (
        f"{where(machine)} ({machine['name']}, {machine['date']}). Kernel {machine['kernel']}, "
        f"governor {machine['governor']}, load average {machine['load_average']:.2f}, CPU time "
        f"stolen {machine['steal']:.1%}. shmcast {machine['shmcast']}, commit {machine['commit']}."
    )


def settings(results: Results) -> str:
    """Return all transports of all suites with version and settings."""
    found = {
        (name, peer["version"], peer["settings"].replace("|", "\\|")): None
        for suite in results.suites.values()
        for name, peer in suite.peers.items()
    }
    return markdown(["transport", "version", "settings"], found, rule="---")


def skipped(results: Results) -> str:
    """Return what did not run in which suite, and why."""
    lines = [
        f"- {suite.name}: {name}: {why}"
        for suite in results.suites.values()
        for name, why in suite.skipped.items()
    ]
    return "\n".join(lines) or "Nothing."

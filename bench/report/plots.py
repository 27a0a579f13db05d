"""Results as pictures, the same bytes from the same results.

Of shmcast every policy is drawn, of a peer in each case the fastest of its variants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from bench.report.plot_style import WARMED, Label, look, write_right
from bench.report.results import (
    OURS,
    ByTransport,
    Results,
    Row,
    by_case,
    case_of,
    family,
    representative,
    transports_of,
)
from bench.report.tables import short
from bench.run.case import Case

WIDTH, DPI = 8.4, 120  # about 1000 pixels, a README's width

CASES = (
    Case("49 B", 1, 0.3),
    Case("49 B", 1, 1.0),
    Case("49 B", 1, 10.0),
    Case("49 B", 8, 1.0),
)
SCALE = Case("49 B", 1, 1.0)
"""What the pictures by size and by number of readers start from."""

MARKERS = {"steady": "o", "jitter": "s", "poisson": "^", "bursts": "*"}
IDLE_MS = 1000
"""Who waits that long is idle, and has no latency to speak of."""
LEAST_CPU = 1e-3
"""Of a core: who uses less is drawn there."""

_PERCENTILES: tuple[Literal["p50_us", "p99_us"], ...] = ("p50_us", "p99_us")
_PLAIN = FuncFormatter(lambda value, _position: f"{value:,g}")  # 1,000 and not 10 to the 3rd
_PER_CENT = FuncFormatter(lambda value, _position: f"{100 * value:g}")


def cdf(rows: list[Row]) -> Figure | None:
    """Latency distributions up to p99."""
    figure, panels = _case_panels(rows, height=3)
    for axes, own in panels:
        found = [(name, row) for name in contenders(rows) if (row := representative(own, name))]
        found.sort(key=lambda pair: pair[1]["p50_us"])
        for name, row in found:
            label = f"{name}  {short(row['p50_us'])}"
            axes.plot(row["quantiles_us"][:100], _SLOWER, label=label, **look(name)._asdict())
        axes.set(xscale="log", yscale="log", xlabel="µs", ylim=(100, 1))
        axes.yaxis.set_ticks([100, 50, 10, 1], ["fastest", "p50", "p90", "p99"])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(_PLAIN)
        axes.grid(alpha=0.3)
        legend = axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="p50, µs")
        legend.set_alignment("left")
    return figure


_SLOWER = range(100, 0, -1)  # per cent of the messages: beside the quantiles of 0 to 99 %


def sizes(rows: list[Row]) -> Figure | None:
    """Latency by size of the message, to one reader."""
    return _series(
        [row for row in rows if replace(case_of(row), workload=SCALE.workload) == SCALE],
        lambda row: (row["bytes"], row["workload"]),
        "message",
    )


def readers(rows: list[Row]) -> Figure | None:
    """Latency by number of readers."""
    return _series(
        [row for row in rows if replace(case_of(row), readers=SCALE.readers) == SCALE],
        lambda row: (row["readers"], str(row["readers"])),
        "readers",
    )


def _series(rows: list[Row], tick: Callable[[Row], tuple[int, str]], title: str) -> Figure | None:
    """A panel for p50 and one for p99, a line for each contender; `tick` gives place and name."""
    ticks = dict(sorted(map(tick, rows)))
    if len(ticks) < 2:
        return None
    figure = _figure(3.9)
    panels = figure.subplots(1, 2, sharey=True)
    labels: dict[Axes, list[Label]] = {axes: [] for axes in panels}
    for axes, percentile in zip(panels, _PERCENTILES, strict=True):
        for name in contenders(rows):
            found = [row for own in by_case(rows).values() if (row := representative(own, name))]
            points = sorted((tick(row)[0], row[percentile]) for row in found)
            axes.plot(*zip(*points, strict=True), marker=".", **look(name)._asdict())
            labels[axes].append(Label(name, *points[-1], look(name).color))
        axes.set_title(percentile.removesuffix("_us"))
        axes.set(xscale="log", yscale="log", xlabel=title)
        axes.xaxis.set_ticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(_PLAIN)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("µs")
    figure.draw_without_rendering()  # from here on the limits and the layout are known
    for axes, beside in labels.items():
        write_right(axes, beside)
    return figure


def cost(rows: list[Row]) -> Figure | None:
    """Latency against CPU time of a reader, a point for each transport."""
    figure, panels = _case_panels(rows, height=3.7)
    for axes, own in panels:
        for row in own.values():
            _point(axes, row, "o")
        _cost_axes(axes)
        axes.margins(y=0.1)
        axes.set_ylabel("p50, µs")
    if figure:
        figure.supxlabel(_CPU, fontsize="medium")
        figure.draw_without_rendering()  # from here on the limits and the layout are known
    for axes, own in panels:
        write_right(axes, [_label(row) for row in own.values()])
    return figure


def _case_panels(
    rows: list[Row], height: float
) -> tuple[Figure | None, list[tuple[Axes, ByTransport]]]:
    """A panel for each of `CASES` that was measured, two in a line; no figure if none was."""
    cases = {case: own for case, own in by_case(rows).items() if case in CASES}
    if not cases:
        return None, []
    lines = (len(cases) + 1) // 2
    figure = _figure(height * lines)
    panels = []
    for place, (case, own) in enumerate(cases.items(), 1):
        axes = figure.add_subplot(lines, 2, place)
        axes.set_title(str(case))
        panels.append((axes, own))
    return figure, panels


def waiting(rows: list[Row]) -> Figure | None:
    """Latency against CPU time, by gap and number of readers; a point a policy and pattern."""
    rows = [row for row in rows if 0 < row["gap_ms"] < IDLE_MS and row["pattern"] in MARKERS]
    if not rows:
        return None
    counts = sorted({row["readers"] for row in rows})
    gaps = sorted({row["gap_ms"] for row in rows})
    figure = _figure(1.9 * len(counts) + 0.8)
    grid = figure.subplots(len(counts), len(gaps), sharex=True, sharey="row", squeeze=False)
    for line, count in zip(grid, counts, strict=True):
        for axes, gap in zip(line, gaps, strict=True):
            for row in rows:
                if (row["readers"], row["gap_ms"]) == (count, gap):
                    _point(axes, row, MARKERS[row["pattern"]])
            _cost_axes(axes)
        line[0].set_ylabel(f"{count} reader{'s' if count > 1 else ''}\np50, µs")
    for axes, gap in zip(grid[0], gaps, strict=True):
        axes.set_title(f"every {gap:g} ms")
    figure.supxlabel(_CPU, fontsize="medium")
    policies = [_key(name, "o", look(name).color, WARMED in name) for name in transports_of(rows)]
    patterns = [_key(name, marker, "grey") for name, marker in MARKERS.items()]
    wide = len(patterns)
    lines = [policies[i : i + wide] for i in range(0, len(policies), wide)]
    columns = zip_longest(*lines, patterns, fillvalue=_key("", "", "none"))
    figure.legend(handles=list(chain(*columns)), loc="outside upper left", ncols=wide)
    return figure


_CPU = "CPU time of a reader, % of wall time (left and low is better)"


def _point(axes: Axes, row: Row, marker: str) -> None:
    color = look(row["transport"]).color
    axes.plot(
        max(row["reader_cpu"], LEAST_CPU),
        row["p50_us"],
        marker,
        color=color,
        markerfacecolor="none" if WARMED in row["transport"] else color,
        markersize=7 if marker == "*" else 5,
        alpha=0.85,
    )


def _cost_axes(axes: Axes) -> None:
    axes.set(xscale="log", yscale="log", xlim=(LEAST_CPU / 1.5, 1.5))
    axes.xaxis.set_major_formatter(_PER_CENT)
    axes.yaxis.set_major_formatter(_PLAIN)
    axes.grid(alpha=0.3)


def _label(row: Row) -> Label:
    cpu = max(row["reader_cpu"], LEAST_CPU)
    return Label(row["transport"], cpu, row["p50_us"], look(row["transport"]).color)


def _key(text: str, marker: str, color: str, hollow: bool = False) -> Line2D:
    fill = "none" if hollow else color
    return Line2D([], [], marker=marker, ls="", color=color, markerfacecolor=fill, label=text)


def contenders(rows: Iterable[Row]) -> list[str]:
    """Whom the lines compare: each policy of shmcast, each family of the others."""
    names = [name for name in transports_of(rows) if not name.endswith(WARMED)]
    return list(dict.fromkeys(name if family(name) == OURS else family(name) for name in names))


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained")


@dataclass(frozen=True)
class Picture:
    """A picture of a suite: its file's name, its title, and who draws it (or can't)."""

    name: str
    suite: str
    title: str
    draw: Callable[[list[Row]], Figure | None]


PICTURES = (
    Picture("latency", "peers", "Latency of all messages, by transport", cdf),
    Picture("sizes", "peers", "Latency by size of the message", sizes),
    Picture("readers", "peers", "Latency by number of readers", readers),
    Picture("cost", "peers", "Latency against CPU time of a reader", cost),
    Picture("waiting", "waiting", "Latency against CPU time, by policy and cadence", waiting),
)


def _set_style() -> None:
    mpl.rcdefaults()  # the user's own settings would give other bytes
    mpl.rc("svg", hashsalt="shmcast")
    mpl.rc("font", size=8)
    mpl.rc("axes", titlesize=9, titleweight="bold", titlelocation="left")
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("legend", frameon=False, labelcolor="linecolor", labelspacing=0.25, handlelength=1.8)


def write(results: Results) -> list[Picture]:
    """Writes what the results have pictures of, PNG and SVG, into their folder; returns which."""
    drawn = []
    with mpl.rc_context():
        _set_style()
        for picture in PICTURES:
            suite = results.suites.get(picture.suite)
            if suite and (figure := picture.draw(suite.rows)):
                path = results.folder / picture.name
                figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
                figure.savefig(path.with_suffix(".png"), dpi=DPI, metadata={"Software": None})
                drawn.append(picture)
    return drawn

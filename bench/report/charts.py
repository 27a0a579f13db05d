"""Draw panels as bars, dots and lines.

Knows: points and themes. Does not know: where the points come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from bench.report.plot_style import WIDTH_INCHES, Theme, color, look
from bench.report.results import OURS

_BARS_SHARE = 0.6  # of a panel's width for the longest bar; the figures are beside it
_ROW_SHARE = 0.84  # of a line of dots, over which its labels spread
_CUT_FROM = 2.0  # times the longest of the other bars: one longer than that is cut
_CUT_LENGTH = 1.12  # times the longest of the other bars


@dataclass(frozen=True)
class Point:
    """A value at a place on the x axis (or, in `dots`, on the y axis).

    Attributes:
        place: a number, or the name of a category.
        value: what was measured.
        note: what is written beside it.
    """

    place: float | str
    value: float
    note: str = ""

    def __str__(self) -> str:
        place = self.place if isinstance(self.place, str) else f"{self.place:g}"
        return " ".join(filter(None, (place, f"{self.value:.4g}", self.note)))


@dataclass(frozen=True)
class Panel:
    """What one pair of axes shows.

    Attributes:
        title: what is sent, how often, and to how many.
        series: the points of each label.
        places: the name of the x axis.
        values: the name of the values, with their unit.
        is_log: whether the values are on a logarithmic axis.
        say: returns a value as one says it.
        are_pairs: whether the labels are compared place by place, each place by itself.
    """

    title: str
    series: dict[str, list[Point]]
    places: str = ""
    values: str = ""
    is_log: bool = True
    say: Callable[[float], str] = field(default=lambda value: duration(value), repr=False)
    are_pairs: bool = False

    def figures(self) -> str:
        """Return the values in a sentence, if they are few: one of each label, or pairs."""
        if self.are_pairs:
            said = [
                f"{place}: {' and '.join(self.say(value) for value in values.values())}"
                for place, values in self.by_place().items()
            ]
            return f"{self.title}, {' and '.join(self.series)}: {'; '.join(said)}"
        if any(len(points) != 1 for points in self.series.values()):
            return ""
        values = [f"{label} {self.say(points[0].value)}" for label, points in self.series.items()]
        return f"{self.title}: {', '.join(values)}"

    def by_place(self) -> dict[str, dict[str, float]]:
        """Return the value of each label at each place."""
        found: dict[str, dict[str, float]] = {}
        for label, points in self.series.items():
            for point in points:
                found.setdefault(str(point.place), {})[label] = point.value
        return found

    def __str__(self) -> str:
        lines = [f"{self.title}: {self.values} by {self.places or 'transport'}"]
        for label, points in self.series.items():
            lines.append(f"{label}: {'; '.join(map(str, points))}")
        return "\n".join(lines)


def duration(microseconds: float, _position: object = None) -> str:
    """Return a duration as one says it: 4.6 µs, 135 µs, 1.2 ms, 0.3 s."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if microseconds >= size:
            return f"{microseconds / size:.3g} {unit}"
    return f"{microseconds:.2g} µs" if microseconds < 9.95 else f"{microseconds:.0f} µs"


def bars(panels: Sequence[Panel], note: str, theme: Theme) -> Figure:
    """Draw a panel beside another, a bar for each label, its value beside it."""
    figure, all_axes = _figure(2.9, 1, len(panels), sharey=True)
    figure.get_layout_engine().set(wspace=0.07)  # type: ignore[union-attr, call-arg]
    for axes, panel in zip(all_axes, panels, strict=True):
        _bars(axes, panel, theme)
    figure.supxlabel(note, fontsize=8.5, color=theme.muted, x=0.012, ha="left")
    return figure


def _bars(axes: Axes, panel: Panel, theme: Theme) -> None:
    labels = list(panel.series)
    limit = cut_at(point.value for (point,) in panel.series.values())
    for place, (label, (point,)) in enumerate(panel.series.items()):
        length = min(point.value, limit)
        axes.barh(place, length, height=0.68, color=color(label, theme))
        if length < point.value:
            _cut(axes, length, place, theme)
        value = axes.annotate(
            f" {duration(point.value)}",
            (length, place),
            va="center",
            fontsize=9.5,
            fontweight=_weight(label),
        )
        axes.annotate(
            f"  {point.note}",
            (1, 0.5),
            xycoords=value,
            va="center",
            color=theme.muted,
            fontsize=8.5,
        )
    axes.set_title(panel.title)
    axes.set(xlim=(0, limit / _BARS_SHARE), ylim=(len(labels) - 0.4, -0.6))
    axes.yaxis.set_ticks(range(len(labels)), labels, fontsize=9.5)
    for tick in axes.get_yticklabels():
        tick.set_fontweight(_weight(tick.get_text()))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    axes.spines[["bottom", "left"]].set_visible(False)


def pairs(panels: Sequence[Panel], note: str, theme: Theme) -> Figure:
    """Draw a panel beside another; at each place a bar for each label, relative to the longest."""
    figure, all_axes = _figure(3.1, 1, len(panels))
    figure.get_layout_engine().set(wspace=0.05)  # type: ignore[union-attr, call-arg]
    for axes, panel in zip(all_axes, panels, strict=True):
        _pairs(axes, panel, theme)
    figure.supxlabel(note, fontsize=8.5, color=theme.muted, x=0.012, ha="left")
    return figure


def _pairs(axes: Axes, panel: Panel, theme: Theme) -> None:
    height = _ROW_SHARE / len(panel.series)
    by_place = panel.by_place()
    for row, values in enumerate(by_place.values()):
        for number, (label, value) in enumerate(values.items()):
            place = row + (number - (len(values) - 1) / 2) * height
            length = value / max(values.values())
            axes.barh(place, length, height=0.9 * height, color=color(label, theme))
            axes.annotate(
                f" {panel.say(value)}",
                (length, place),
                va="center",
                fontsize=8.5,
                fontweight=_weight(label),
            )
    axes.set_title(panel.title)
    axes.set(xlim=(0, 1 / _BARS_SHARE), ylim=(len(by_place) - 0.5, -0.5))
    axes.yaxis.set_ticks(range(len(by_place)), list(by_place))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    axes.spines[["bottom", "left"]].set_visible(False)


def cut_at(values: Iterable[float]) -> float:
    """Return the length of the longest bar: one that would dwarf all others is cut."""
    *others, longest = sorted(values)
    if others and longest > _CUT_FROM * others[-1]:
        return _CUT_LENGTH * others[-1]
    return longest


def _cut(axes: Axes, length: float, place: int, theme: Theme) -> None:
    """Show that a bar goes on: two gaps across it."""
    for at in (0.84, 0.89):
        gap = ([length * (at - 0.012), length * (at + 0.012)], [place + 0.42, place - 0.42])
        axes.plot(*gap, color=theme.background, linewidth=2.5, zorder=4)


def _weight(label: str) -> str:
    return "bold" if label.startswith(OURS) else "normal"


def dots(panel: Panel, theme: Theme, height: float) -> Figure:
    """Draw a line for each category, and on it a dot for each label."""
    figure, (axes,) = _figure(height)
    names = list(dict.fromkeys(str(p.place) for points in panel.series.values() for p in points))
    step = _ROW_SHARE / len(panel.series)
    for number, (label, points) in enumerate(panel.series.items()):
        shift = (number - (len(panel.series) - 1) / 2) * step  # equal values stay apart
        axes.plot(
            [point.value for point in points],
            [names.index(str(point.place)) + shift for point in points],
            color=color(label, theme),
            marker=look(label).marker,
            markersize=6.5 if label.startswith(OURS) else 5.2,
            markeredgecolor=theme.background,
            markeredgewidth=0.4,
            linestyle="",
            zorder=4 if label.startswith(OURS) else 3,
            label=label,
        )
    for place in range(1, len(names), 2):
        axes.axhspan(place - 0.5, place + 0.5, color=theme.band, zorder=0)
    axes.set(xscale="log", xlabel=panel.values, ylim=(len(names) - 0.5, -0.5))
    axes.set_title(panel.title)
    axes.yaxis.set_ticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    _durations(axes, "x")
    axes.grid(visible=False, axis="y")
    _legend(figure, axes)
    return figure


def lines(panels: Sequence[Panel], columns: int, height: float, theme: Theme) -> Figure:
    """Draw panels in rows of `columns`, a line for each label, with one legend above them."""
    figure, all_axes = _figure(height, len(panels) // columns, columns)
    for axes, panel in zip(all_axes, panels, strict=True):
        places = sorted({float(p.place) for points in panel.series.values() for p in points})
        for label, points in panel.series.items():
            axes.plot(
                [float(point.place) for point in points],
                [point.value for point in points],
                color=color(label, theme),
                marker=look(label).marker,
                markersize=6,
                markeredgecolor=theme.background,
                markeredgewidth=0.5,
                linewidth=2.4 if label.startswith(OURS) else 1.6,
                linestyle="-" if look(label).marker else "--",
                zorder=4 if label.startswith(OURS) else 3,
                label=label,
            )
        names = {p.place: p.note for points in panel.series.values() for p in points}
        axes.set_title(panel.title)
        axes.set(xscale="log", ylabel=panel.values)
        axes.xaxis.set_ticks(places, [names[place] for place in places])
        axes.xaxis.set_minor_locator(NullLocator())
        if panel.is_log:
            axes.set_yscale("log")
            _durations(axes, "y")
        else:
            axes.set_ylim(0, 105)
    for axes, panel in list(zip(all_axes, panels, strict=True))[-columns:]:
        axes.set_xlabel(panel.places)
    _legend(figure, all_axes[0])
    return figure


def _durations(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(10, subs=(1.0,), numticks=12))
    axis.set_minor_locator(LogLocator(10, subs=(2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(duration))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), columnspacing=1.4)


def _figure(
    height: float, rows: int = 1, columns: int = 1, *, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.07, wspace=0.03, hspace=0.04)  # type: ignore[union-attr, call-arg]
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    return figure, list(grid.flat)

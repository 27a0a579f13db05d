"""How a transport looks in every picture, and how labels keep out of each other's way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes

from bench.report.results import OURS, family

# People with any kind of colour vision tell these apart (after Okabe, Ito and Tol). shmcast has the
# one warm hue, in a tint for each policy.
_COLOURS = {
    "kickmsg": "#0072B2",
    "kickmsg blocking": "#003A70",  # beside the other in the picture of the wait policies
    "MPI": "#CC79A7",
    "iceoryx2": "#009E73",
    "vLLM": "#56B4E9",
    "SGLang": "#7B5EA7",
    "pyzmq": "#A89200",
    "pipe": "#7F7F7F",
    "Ray": "#882255",
    "queue": "#B8B8B8",
    "NCCL": "#332288",
    "gloo": "#000000",
}
_OTHER = "#D0C0A0"
_POLICIES = {OURS: ("#D55E00", "-"), "shmcast spin": ("#8A3A00", "--")}
_OTHER_POLICY = ("#F2A766", "-")

WARMED = ", warmed"
"""How the name of a transport ends whose source practises sending: its points are hollow."""

_LINE_HEIGHT = 1.3  # of the font's size


class Look(NamedTuple):
    """What a line of a transport looks like, in matplotlib's words."""

    color: str
    linestyle: str
    linewidth: float
    zorder: float


def look(transport: str) -> Look:
    """A colour for each family; shmcast's lines are the wide ones, a tint for each policy."""
    if family(transport) == OURS:
        return Look(*_POLICIES.get(transport.removesuffix(WARMED), _OTHER_POLICY), 2.2, 3)
    color = _COLOURS.get(transport) or _COLOURS.get(family(transport), _OTHER)
    return Look(color, "-", 1.2, 2)


class Label(NamedTuple):
    """What is written beside a point of a picture."""

    text: str
    x: float
    y: float
    color: str


def write_right(axes: Axes, labels: Sequence[Label]) -> None:
    """Writes labels in a column right of the axes, each as near to its point's height as it can be.

    The y axis must be logarithmic, and the layout final but for these labels.
    """
    line = _LINE_HEIGHT * mpl.rcParams["font.size"] * axes.figure.dpi / 72 / axes.bbox.height
    heights = spread(_fractions(axes.get_ylim(), [label.y for label in labels]), line)
    for label, height in zip(labels, heights, strict=True):
        axes.annotate(
            label.text,
            (label.x, label.y),
            (1.04, height),
            textcoords=axes.transAxes,
            color=label.color,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": label.color, "lw": 0.5, "relpos": (0, 0.5)},
        )


def _fractions(limits: tuple[float, float], values: Sequence[float]) -> list[float]:
    """Where values are on a logarithmic axis: from 0 to 1."""
    low, high = (math.log(limit) for limit in limits)
    return [(math.log(value) - low) / (high - low) for value in values]


def spread(wanted: Sequence[float], least: float) -> list[float]:
    """Places at least `least` apart in the order of those wanted, moved in groups to stay close."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    clusters: list[list[int]] = []
    starts: list[float] = []
    for i in order:
        cluster = [i]
        start = wanted[i]
        while clusters and starts[-1] + least * len(clusters[-1]) > start:
            cluster = clusters.pop() + cluster
            starts.pop()
            middle = sum(wanted[k] for k in cluster) / len(cluster)
            start = middle - least * (len(cluster) - 1) / 2
        clusters.append(cluster)
        starts.append(start)
    places = list(wanted)
    for cluster, start in zip(clusters, starts, strict=True):
        for step, i in enumerate(cluster):
            places[i] = start + least * step
    return places

"""How pictures look: a light and a dark theme, and a colour and a marker for each transport."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl

from bench.report.results import OURS, family

WIDTH_INCHES = 8.3
WIDTH_PIXELS = 830
"""The width of a README: a point of a font is 1.39 pixels there."""


@dataclass(frozen=True)
class Theme:
    """The colours of everything but the data.

    Attributes:
        name: the end of the file's name.
        background: opaque, because a reader's theme may differ from the page's.
        text: titles and labels.
        muted: notes and axes.
        grid: lines behind the data.
        band: every second row of a table-like picture.
    """

    name: str
    background: str
    text: str
    muted: str
    grid: str
    band: str


LIGHT = Theme("light", "#ffffff", "#1f2328", "#59636e", "#d9dee3", "#f4f6f8")
DARK = Theme("dark", "#0d1117", "#f0f6fc", "#9198a1", "#2b3139", "#161b22")


class Look(NamedTuple):
    """The colours of a transport in the light and the dark theme, and its marker."""

    light: str
    dark: str
    marker: str


# After Okabe and Ito, whose colours are told apart with any kind of colour vision; brighter where
# the background is dark. Vermilion and orange are shmcast's own.
_LOOKS = {
    OURS: Look("#d55e00", "#f0752b", "o"),
    "msgspec": Look("#f0a04b", "#ffc078", "D"),
    "msgspec typed": Look("#009e73", "#2fc598", "^"),
    "msgspec untyped": Look("#b65a94", "#d98abb", "v"),
    "pickle": Look("#0072b2", "#4aa8e0", "s"),
    "cloudpickle": Look("#8a7a00", "#d6c431", "P"),
    "semaphore": Look("#7a3b10", "#c98b5f", "v"),
    "spin": Look("#8a0f3c", "#ff6b9d", "^"),
    "view": Look("#f0a04b", "#ffc078", "D"),
    "loan": Look("#7a3b10", "#c98b5f", "v"),
    "vLLM": Look("#0072b2", "#4aa8e0", "s"),
    "vLLM arena": Look("#3aa0d8", "#9ad4f5", "D"),
    "SGLang": Look("#009e73", "#2fc598", "^"),
    "kickmsg": Look("#0072b2", "#4aa8e0", "s"),
    "pipe": Look("#b65a94", "#d98abb", "v"),
    "pyzmq": Look("#8a7a00", "#d6c431", "P"),
    "gloo": Look("#7a828a", "#aab2ba", "X"),
    "memcpy": Look("#1f2328", "#f0f6fc", ""),
}


def look(transport: str) -> Look:
    """Return the look of a transport: of its variant, where that has one, or of its family."""
    if transport in _LOOKS:
        return _LOOKS[transport]
    variant = next((word for word in transport.split() if word in _LOOKS and word != OURS), "")
    return _LOOKS[variant or family(transport)]


def color(transport: str, theme: Theme) -> str:
    """Return the colour of a transport in a theme."""
    return look(transport).dark if theme is DARK else look(transport).light


def settings(theme: Theme) -> dict[str, Any]:
    """Return matplotlib's settings for a theme; text becomes paths, the same on every machine."""
    return {
        "axes.axisbelow": True,
        "axes.edgecolor": theme.muted,
        "axes.facecolor": theme.background,
        "axes.grid": True,
        "axes.labelcolor": theme.text,
        "axes.labelsize": 9,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": theme.text,
        "axes.titlelocation": "left",
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "figure.facecolor": theme.background,
        "font.family": "DejaVu Sans",  # comes with matplotlib
        "font.size": 9,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "legend.handlelength": 1.6,
        "legend.labelcolor": theme.text,
        "path.simplify": True,
        "savefig.facecolor": theme.background,
        "svg.fonttype": "path",
        "svg.hashsalt": "shmcast",
        "text.color": theme.text,
        "xtick.color": theme.muted,
        "xtick.labelcolor": theme.text,
        "ytick.color": theme.muted,
        "ytick.labelcolor": theme.text,
    }


@contextlib.contextmanager
def applied(theme: Theme) -> Iterator[None]:
    """Draw with a theme, whatever matplotlib's user has set."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings(theme))  # type: ignore[arg-type]
        yield

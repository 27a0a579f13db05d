"""Draws the results of waiting.py: latency against CPU time, one point a policy.

python bench/waiting_plot.py bench/results/waiting.json docs/waiting.svg
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

COLOURS = {"shmcast": "tab:green", "shmcast spin": "tab:red", "shmcast semaphore": "tab:blue"}
MARKERS = {"steady": "o", "jitter": "s", "poisson": "^", "bursts": "*"}
LEAST_CPU = 1e-3  # of a core: what is less is drawn there


def _panel(axes: Axes, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        axes.plot(
            max(row["reader_cpu"], LEAST_CPU),
            row["p50_us"],
            MARKERS[row["pattern"]],
            color=COLOURS[row["policy"]],
            markersize=9 if row["pattern"] == "bursts" else 6,
            alpha=0.8,
        )
    axes.set(xscale="log", yscale="log", xlim=(LEAST_CPU / 1.5, 1.5), ylim=(2, 50_000))
    axes.grid(alpha=0.3)


def main(
    results: Annotated[Path, typer.Argument(help="JSON from waiting.py --output")],
    output: Annotated[Path, typer.Argument(help="the picture: .svg or .png")],
) -> None:
    """One panel for each number of readers and each mean gap."""
    data = json.loads(results.read_text())
    rows = [row for row in data["rows"] if row["gap_ms"] and row["policy"] in COLOURS]
    counts = sorted({row["readers"] for row in rows})
    gaps = sorted({row["gap_ms"] for row in rows})
    mpl.rcParams["svg.hashsalt"] = "shmcast"  # the same picture from the same results
    figure, grid = plt.subplots(
        len(counts),
        len(gaps),
        figsize=(2.6 * len(gaps) + 0.4, 2.3 * len(counts) + 1.2),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for i, count in enumerate(counts):
        for j, gap in enumerate(gaps):
            chosen = [row for row in rows if (row["readers"], row["gap_ms"]) == (count, gap)]
            _panel(grid[i][j], chosen)
            if i == 0:
                grid[i][j].set_title(f"{gap:g} ms between messages", fontsize=9)
        grid[i][0].set_ylabel(f"{count} reader{'s' if count > 1 else ''}\np50 of the last, µs")
    figure.supxlabel("CPU of a reader, in cores (left and low is better)", fontsize=10)
    legend = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=policy)
        for policy, colour in COLOURS.items()
    ] + [
        Line2D([], [], marker=marker, linestyle="", color="grey", label=pattern)
        for pattern, marker in MARKERS.items()
    ]
    figure.legend(handles=legend, loc="outside upper center", ncols=len(legend), fontsize=8)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120, metadata={"Date": None} if output.suffix == ".svg" else None)


if __name__ == "__main__":
    typer.run(main)

"""`shmcast top`: how all segments do, now and again every second."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from shmcast._host.words import counted
from shmcast._operators import output
from shmcast._operators.formats import duration, rate
from shmcast._operators.listing import nobody
from shmcast._operators.observer import Observer, observed
from shmcast._operators.rates import SORT_KEYS, Rates, ordered
from shmcast.errors import MissingDependency

try:
    from rich.console import Console, Group
    from rich.table import Table
    from rich.text import Text

    from shmcast._operators.terminal import REDRAW, Terminal
except ImportError as error:
    raise MissingDependency(
        "shmcast top needs rich: pip install 'shmcast[top]'; shmcast top --json does without"
    ) from error

_KEYS = "q quit   sort: l label, m msg/s, b MB/s, p p99, g lag, c CPU"
# Each with the width of the terminal from which on there is room for it.
_COLUMNS = {
    "LABEL": 0,
    "MSG/S": 0,
    "MB/S": 58,
    "P50": 66,
    "P99": 50,
    "LAG": 36,
    "SPUN": 80,
    "PARK": 80,
    "CPU": 72,
    "WAITS FOR": 0,
}
_TEXTS = {"LABEL": {"ratio": 1, "min_width": 9}, "WAITS FOR": {"max_width": 18}}
# What is shown of a state; the first two are usual.
_SHORT = {": sleeping": "", ": running": "", ": not attached": ": absent"}
_LEAST_WIDTH = 80
_OTHER_LINES = 4  # beside the rows: what is drawn, the keys, an empty one, the heads


def picture(found: Sequence[Rates], width: int, seconds: float, height: int | None = None) -> Group:
    """Return what is drawn.

    Args:
        found: the rows, in their order.
        width: of the terminal, in columns.
        seconds: between two looks.
        height: of the terminal, in lines; how many rows have no room is told. None: all have.
    """
    room = len(found) if height is None else max(1, height - _OTHER_LINES)
    # (The line that tells it needs one, too.)
    rows = found if len(found) <= room else found[: max(1, room - 1)]
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        width=width,
        expand=True,
        header_style="bold",
    )
    shown = [name for name, least in _COLUMNS.items() if width >= least]
    for name in shown:
        options: dict[str, Any] = _TEXTS.get(name, {"justify": "right"})
        table.add_column(name, no_wrap=True, overflow="ellipsis", **options)
    for row in rows:
        cells = _cells(row)
        # (Text: a str is markup to rich, and what programs call themselves is none.)
        texts = [Text(cells[name]) for name in shown]
        table.add_row(*texts, style="bold red" if row.is_stuck else "")
    stuck = sum(row.is_stuck for row in found)
    head = Text(f"shmcast: {counted(len(found), 'broadcaster')}, {stuck} stuck", style="bold")
    head.append(f"   every {seconds:g} s", style="dim")
    lines = Text("\n").join([head, Text(_KEYS, style="dim"), Text()])
    lines.no_wrap, lines.overflow = True, "ellipsis"
    if not found:
        return Group(lines, Text(nobody(None)))
    cut = len(found) - len(rows)
    return Group(lines, table, Text(f"… {cut} more", style="dim")) if cut else Group(lines, table)


def _cells(row: Rates) -> dict[str, str]:
    return {
        "LABEL": row.label,
        "MSG/S": rate(row.messages),
        "MB/S": f"{row.nbytes / 1e6:.3f}" if row.nbytes < 1e6 else rate(row.nbytes / 1e6),
        "P50": duration(row.p50) if row.p50 else "-",
        "P99": duration(row.p99) if row.p99 else "-",
        "LAG": str(row.lag),
        "SPUN": f"{row.spun:.0%}",
        "PARK": f"{row.parked:.0%}",
        "CPU": f"{row.cpu:.0%}",
        "WAITS FOR": _shortened(row.waits_for),
    }


def _shortened(waits_for: str) -> str:
    for state, short in _SHORT.items():
        if waits_for.endswith(state):
            return waits_for.removesuffix(state) + short
    return waits_for


def run(once: bool, key: str, seconds: float) -> None:
    """Draw until somebody presses q, or once.

    Args:
        once: draw one picture, without taking the terminal.
        key: of SORT_KEYS, in which order.
        seconds: between two looks.

    Raises:
        HostError: there is no /proc.
    """
    output.escape("replace")
    console = Console()
    if once or not console.is_terminal:
        width = max(console.width, _LEAST_WIDTH)
        drawn = io.StringIO()
        page = Console(file=drawn, width=width, force_terminal=console.is_terminal)
        page.print(picture(next(observed(key, seconds)), width, seconds))
        output.write(drawn.getvalue().removesuffix("\n"))
        return
    observer = Observer()
    observer.look()
    found: list[Rates] = []
    with output.printing(), Terminal(console) as terminal:
        while True:
            terminal.draw(picture(found, console.width, seconds, console.height))
            event = terminal.wait(seconds)
            if event == "q":
                return
            if event in SORT_KEYS:
                key = event
            elif event != REDRAW:
                found = observer.look()
            found = ordered(found, key)

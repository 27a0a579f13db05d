"""`shmcast top`: how all segments do, now and again every second."""

from __future__ import annotations

import io
from collections.abc import Sequence

from shmcast._operators import output
from shmcast._operators.formats import duration, rate
from shmcast._operators.listing import nobody
from shmcast._operators.observer import Observer, observed
from shmcast._operators.rates import SORT_KEYS, Rates
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
_COLUMNS = ("LABEL", "MSG/S", "MB/S", "P50", "P99", "LAG", "SPUN", "PARK", "CPU", "WAITS FOR")
_LEAST_WIDTH = 80


def picture(found: Sequence[Rates], width: int, seconds: float) -> Group:
    """Return what is drawn.

    Args:
        found: the rows, in their order.
        width: of the terminal, in columns.
        seconds: between two looks.
    """
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        width=width,
        expand=True,
        header_style="bold",
    )
    for name in _COLUMNS:
        is_text = name in ("LABEL", "WAITS FOR")
        table.add_column(
            name,
            justify="left" if is_text else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio={"LABEL": 3, "WAITS FOR": 2}.get(name),
        )
    for row in found:
        table.add_row(*_cells(row), style="bold red" if row.is_stuck else "")
    stuck = sum(row.is_stuck for row in found)
    head = Text(f"shmcast: {len(found)} broadcasters, {stuck} stuck", style="bold")
    head.append(f"   every {seconds:g} s", style="dim")
    rows = table if found else Text(nobody(None))
    return Group(head, Text(_KEYS, style="dim"), Text(), rows)


def _cells(row: Rates) -> tuple[str, ...]:
    return (
        row.label,
        rate(row.messages),
        f"{row.nbytes / 1e6:.3f}" if row.nbytes < 1e6 else rate(row.nbytes / 1e6),
        duration(row.p50) if row.p50 else "-",
        duration(row.p99) if row.p99 else "-",
        str(row.lag),
        f"{row.spun:.0%}",
        f"{row.parked:.0%}",
        f"{row.cpu:.0%}",
        row.waits_for,
    )


def run(once: bool, key: str, seconds: float) -> None:
    """Draw until somebody presses q, or once.

    Args:
        once: draw one picture, without taking the terminal.
        key: of SORT_KEYS, in which order.
        seconds: between two looks.

    Raises:
        HostError: there is no /proc.
    """
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
            terminal.draw(picture(found, console.width, seconds))
            event = terminal.wait(seconds)
            if event == "q":
                return
            if event in SORT_KEYS:
                key = event
            elif event != REDRAW:
                found = observer.look()
            found = sorted(found, key=SORT_KEYS[key])

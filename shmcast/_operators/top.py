"""`shmcast top`: how all segments do, now and again every second."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence

from shmcast._operators.discovery import OpenSegment, open_segments
from shmcast._operators.formats import duration, rate
from shmcast._operators.listing import nobody
from shmcast._operators.rates import SORT_KEYS, Rates, rates
from shmcast._operators.snapshot import Snapshot, take
from shmcast.errors import MissingDependency

try:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise MissingDependency(
        "shmcast top needs rich: pip install 'shmcast[top]'; shmcast top --json does without"
    ) from error

_KEYS = "q quit   sort: l label, m msg/s, b MB/s, p p99, g lag, c CPU"
_COLUMNS = ("LABEL", "MSG/S", "MB/S", "P50", "P99", "LAG", "SPUN", "PARK", "CPU", "WAITS FOR")
_LEAST_WIDTH = 80


class Observer:
    """Looks at all segments again and again. It looks for new ones less often than at them."""

    _DISCOVER_SECONDS = 3.0

    def __init__(self) -> None:
        self._files: list[OpenSegment] = []
        self._discover_at = 0.0
        self._before: dict[str, Snapshot] = {}

    def look(self) -> list[Rates]:
        """Return how all segments did since the last look; those that are new come with the next.

        Raises:
            HostError: there is no /proc.
        """
        if time.monotonic() >= self._discover_at:
            self._files = open_segments()
            self._discover_at = time.monotonic() + self._DISCOVER_SECONDS
        now = {file.name: take(file) for file in self._files}
        if any(snapshot.error for snapshot in now.values()):
            self._discover_at = 0.0  # somebody has gone
        before, self._before = self._before, now
        return [
            rates(before[name], seen)
            for name, seen in now.items()
            if name in before and not seen.is_over
        ]


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


def run(once: bool, key: str, seconds: float) -> int:
    """Draw until somebody presses q, or once.

    Args:
        once: draw one picture, without taking the terminal.
        key: of SORT_KEYS, in which order.
        seconds: between two looks.

    Raises:
        HostError: there is no /proc.
    """
    console = Console()
    width = max(console.width, _LEAST_WIDTH)
    observer = Observer()
    observer.look()
    if once or not console.is_terminal:
        time.sleep(seconds)
        found = sorted(observer.look(), key=SORT_KEYS[key])
        Console(width=width).print(picture(found, width, seconds))
        return 0
    found = []
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(picture(found, console.width, seconds), refresh=True)
            pushed = pressed(seconds)
            if pushed == "q":
                return 0
            if pushed in SORT_KEYS:
                key = pushed
            else:
                found = observer.look()
            found = sorted(found, key=SORT_KEYS[key])


@contextlib.contextmanager
def _keys() -> Iterator[_Keys]:
    """Read single keys from the terminal in the block."""
    fd = sys.stdin.fileno() if sys.stdin is not None else -1
    if fd < 0 or not os.isatty(fd):
        yield _Keys(None)
        return
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield _Keys(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Keys:
    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self, seconds: float) -> str:
        """Return the key that is pressed within so many seconds; "": none."""
        if self._fd is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._fd], [], [], seconds)[0]:
            return ""
        return os.read(self._fd, 1).decode(errors="replace") or "q"  # (the terminal is gone)

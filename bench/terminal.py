"""How tables look in a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

WIDTH = 80


def console() -> Console:
    """Return the terminal. What looks like rich's markup, "[peers]" say, is text like any other."""
    return Console(markup=False)


def table(first: str, *figures: str, title: str = "") -> Table:
    """Return a table whose first column has words and whose others have figures.

    No cell is broken over lines: keep headings short, or break them with a newline.
    """
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title=title or None,
        title_justify="left",
        title_style="bold",
    )
    made.add_column(first, no_wrap=True, overflow="fold", vertical="bottom")
    for heading in figures:
        made.add_column(heading, justify="right", no_wrap=True, overflow="fold")
    return made


def definitions(pairs: Sequence[tuple[str, str]], title: str) -> Table:
    """Return a table of names and of sentences about them, which may take several lines."""
    made = Table.grid(padding=(0, 2))
    made.title, made.title_justify = title, "left"
    made.add_column(no_wrap=True, style="bold")
    made.add_column()
    for name, text in pairs:
        made.add_row(name, text)
    return made

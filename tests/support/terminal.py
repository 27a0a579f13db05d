"""What a terminal of 80 columns shows."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

WIDTH = 80


def drawn(shown: RenderableType, width: int) -> list[str]:
    """Return the lines of a terminal so wide."""
    console = Console(width=width, file=io.StringIO())
    console.print(shown, highlight=False)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    return lines


def rendered(shown: RenderableType) -> list[str]:
    """Return the lines, of which none is longer than the terminal is wide, nor cut."""
    lines = drawn(shown, WIDTH)
    assert "…" not in "".join(lines)
    return lines

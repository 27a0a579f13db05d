"""Numbers as people read them in a narrow table."""

from __future__ import annotations

from collections.abc import Sequence

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def size(nbytes: float) -> str:
    """Return a number of bytes in three digits or so."""
    units = ["B", "KiB", "MiB", "GiB"]
    while nbytes >= 1000 and len(units) > 1:
        nbytes /= 1024
        del units[0]
    return f"{nbytes:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """Return seconds in the unit in which they are few."""
    if seconds < 1e-6:
        return f"{seconds * 1e9:.0f} ns"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 2 * _MINUTE:
        return f"{seconds:.3g} s"
    if seconds < 2 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.0f} h"
    return f"{seconds / _DAY:.0f} d"


def rate(per_second: float) -> str:
    """Return a rate in three digits or so."""
    if per_second < 1000:
        return f"{per_second:.3g}"
    if per_second < 1e6:
        return f"{per_second / 1e3:.3g}k"
    return f"{per_second / 1e6:.3g}M"


def shortened(text: str, width: int) -> str:
    """Return a text of at most so many characters, without its middle if need be."""
    if len(text) <= width:
        return text
    end = (width - 1) // 3
    return text[: width - 1 - end] + "…" + (text[-end:] if end else "")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], most: Sequence[int]) -> str:
    """Return rows in columns, each no wider than `most` says, with two spaces between."""
    cut = [[shortened(c, w) for c, w in zip(row, most, strict=True)] for row in (heads, *rows)]
    widths = [max(len(row[i]) for row in cut) for i in range(len(heads))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cut
    )

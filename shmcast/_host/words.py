"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Return so many of something in words: "1 fragment", "2 fragments"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"

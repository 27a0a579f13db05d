"""The repository's documents."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""Of the checkout."""

_FENCES = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
_INCLUDED = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)


def text_of(page: Path) -> str:
    """Return a page without its programs, whose brackets are no links; with what it includes."""
    text = _FENCES.sub("", page.read_text())
    return _INCLUDED.sub(lambda found: (ROOT / found[1]).read_text(), text)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as the forge makes them, and of the reference's."""
    text = text_of(page)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    names = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    return {*(heading.replace(" ", "-") for heading in plain), *names}

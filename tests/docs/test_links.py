"""Links between the documents, and from them to other files of the repository, lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.pages import ROOT, anchors, text_of
from tests.support.permissions import needs_checkout

HOME = "https://github.com/shmcast/shmcast/"
_PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "models").glob("*.md"),
    ROOT / "bench" / "README.md",
]
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def _target(page: Path, link: str) -> Path | None:
    """Return the file that a link leads to; None: it leads out of the repository."""
    if link.startswith(HOME):
        kind, _, path = link.removeprefix(HOME).partition("/")
        return ROOT / path.partition("/")[2] if kind in ("blob", "tree") else None
    return None if link.startswith(("https://", "mailto:")) else page.parent / link


@needs_checkout
@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(text_of(page)):
        path, _, anchor = link.partition("#")
        target = _target(page, path) if path else page
        if target is not None:
            assert target.exists(), link
            assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def test_there_are_links() -> None:
    assert len(_PAGES) > 30
    assert sum(len(_LINK.findall(text_of(page))) for page in _PAGES) > 200

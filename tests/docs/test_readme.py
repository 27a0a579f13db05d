"""The README is short, its links lead somewhere, also on a package index, and its program runs."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from readme_renderer import markdown

from tests.support import quick_start
from tests.support.pages import ROOT, anchors
from tests.support.permissions import needs_checkout

README = ROOT / "README.md"
HOME = "https://github.com/shmcast/shmcast/blob/main/"
PICTURES = "https://raw.githubusercontent.com/shmcast/shmcast/main/"

_TARGETS = {("a", "href"), ("img", "src"), ("source", "srcset")}


class _Links(HTMLParser):
    """Collects what a page links to and shows."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in _TARGETS and value is not None:
                (self.links if tag == "a" else self.pictures).append(value)


def _links(html: str) -> _Links:
    found = _Links()
    found.feed(html)
    return found


@pytest.fixture(scope="module")
def rendered() -> str:
    """Return the README as a package index shows it."""
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "hatch_fancy_pypi_readme", str(ROOT / "pyproject.toml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=55,
        check=True,
    )
    html = markdown.render(ran.stdout, variant="GFM")
    assert html is not None, "the renderer refuses the README"
    return html


def test_it_is_shorter_than_150_lines() -> None:
    assert len(README.read_text().splitlines()) < 150


@needs_checkout
def test_on_the_forge_every_link_and_picture_is_there() -> None:
    html = markdown.render(README.read_text(), variant="GFM")
    assert html is not None
    found = _links(html)
    sources = re.findall(r'srcset="([^"]+)"', README.read_text())  # which the renderer drops
    relative = [*found.links, *found.pictures, *sources]
    assert len(relative) > 10
    for target in relative:
        if not target.startswith(("https://", "#")):
            path, _, anchor = target.partition("#")
            assert (ROOT / path).exists(), target
            assert not anchor or anchor in anchors(ROOT / path), target


@needs_checkout
def test_on_a_package_index_every_link_is_absolute_and_leads_to_the_repository(
    rendered: str,
) -> None:
    links = [link for link in _links(rendered).links if not link.startswith("#")]
    assert len(links) > 10
    for link in links:
        assert link.startswith("https://"), link
        if link.startswith(HOME):
            assert (ROOT / link.removeprefix(HOME).partition("#")[0]).exists(), link


def test_on_a_package_index_the_picture_is_shown(rendered: str) -> None:
    pictures = _links(rendered).pictures
    assert pictures
    for picture in pictures:
        assert picture.startswith(PICTURES), picture
        assert (ROOT / picture.removeprefix(PICTURES)).exists(), picture


def test_its_program_runs() -> None:
    quick_start.run(sys.executable)

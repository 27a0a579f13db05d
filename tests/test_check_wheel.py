"""What `make wheel` looks for in a wheel, each by a wheel that lacks it."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

from shmcast._version import __version__
from tests.support.check_wheel import LICENCES, ROOT, faults, main

CORE = "shmcast/_core.cpython-311-x86_64-linux-gnu.so"
ABOUT = f"shmcast-{__version__}.dist-info"


def whole() -> dict[str, str]:
    """Return the files of a wheel in which all is well, with their texts."""
    package = ROOT / "shmcast"
    sources = [*package.rglob("*.py"), package / "_core.pyi", package / "py.typed"]
    return {
        **{path.relative_to(ROOT).as_posix(): "" for path in sources},
        **{f"{ABOUT}/licenses/{name}": "" for name in LICENCES},
        CORE: "",
        f"{ABOUT}/METADATA": f"Name: shmcast\nVersion: {__version__}\n\n# shmcast\n",
    }


def wheel_of(files: dict[str, str], folder: Path) -> Path:
    wheel = folder / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


def test_a_whole_wheel_has_no_faults(tmp_path: Path) -> None:
    assert list(faults(wheel_of(whole(), tmp_path))) == []


@pytest.mark.parametrize(
    ("removed", "told"),
    [
        (CORE, "it has 0 cores"),
        ("shmcast/py.typed", "it lacks shmcast/py.typed"),
        ("shmcast/_host/proc.py", "it lacks shmcast/_host/proc.py"),
        (f"{ABOUT}/licenses/licenses/nanobind.txt", "it lacks the licence licenses/nanobind.txt"),
    ],
)
def test_what_is_missing_is_told(tmp_path: Path, removed: str, told: str) -> None:
    files = whole()
    del files[removed]
    assert list(faults(wheel_of(files, tmp_path))) == [told]


@pytest.mark.parametrize(
    "added", ["tests/conftest.py", "core/layout.hpp", "shmcast.libs/libm.so.6"]
)
def test_what_is_too_much_is_told(tmp_path: Path, added: str) -> None:
    wheel = wheel_of({**whole(), added: ""}, tmp_path)
    assert list(faults(wheel)) == [f"it should not have {added}"]


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ("Version: 9.8.7\n\n# shmcast", f"it says that it is version 9.8.7, not {__version__}"),
        (f"Version: {__version__}\n\n", "it has no description"),
    ],
)
def test_what_the_metadata_lack_is_told(tmp_path: Path, metadata: str, told: str) -> None:
    wheel = wheel_of({**whole(), f"{ABOUT}/METADATA": metadata}, tmp_path)
    assert list(faults(wheel)) == [told]


def test_no_wheel_is_a_fault() -> None:
    with pytest.raises(SystemExit, match="no wheels"):
        main([])


@pytest.mark.parametrize(("workflow", "tool"), [("ci.yml", "nox"), ("release.yml", "cibuildwheel")])
def test_hosted_tools_are_those_of_developers(workflow: str, tool: str) -> None:
    text = (ROOT / ".github" / "workflows" / workflow).read_text()
    [installed] = re.findall(r"pip install (.+)", text)
    assert installed.startswith(f"{tool}==")
    assert f'"{installed}"' in (ROOT / "pyproject.toml").read_text()

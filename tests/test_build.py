"""What a machine lacks for a build is told by name, with the way out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTHING = "/nonexistent"
COMPILERS = ("c++", "g++", "clang++")

# A compiler is as old as it says, to CMake.
_AGED = "-DCMAKE_CXX_FLAGS=-U__GNUC__ -D__GNUC__=10 -U__clang_major__ -D__clang_major__=14"

REFUSED: dict[str, tuple[list[str], str]] = {
    "another system": (
        ["-DCMAKE_SYSTEM_NAME=Darwin"],
        "shmcast needs Linux (futexes, /dev/shm), and this is Darwin",
    ),
    "no compiler": (
        [],
        "shmcast needs g++ 11 or clang 15, or newer, and no C++ compiler was found: install g++ ",
    ),
    "the compiler of Python": (  # (pip's builds have it in CXX)
        [],
        "shmcast needs g++ 11 or clang 15, or newer, and g++ was not found, which CXX names or "
        "Python was built with: install g++ ",
    ),
    "an old compiler": (
        [_AGED],
        "shmcast needs g++ 11 or clang 15, or newer, and found ",
    ),
    "a compiler of C": (
        ["-DCMAKE_CXX_COMPILER=gcc"],
        "shmcast needs a compiler that links the C++ library, and ",
    ),
    "no headers": (
        [f"-DPython_EXECUTABLE={sys.executable}", f"-DPython_INCLUDE_DIR={NOTHING}"],
        f"({sys.executable}): install python3-dev (Debian, Ubuntu) or python3-devel (Fedora, RHEL)",
    ),
}
NEED_A_COMPILER = ("an old compiler", "no headers")


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake here")
@pytest.mark.skipif(not (ROOT / "core").is_dir(), reason="not in a checkout")
@pytest.mark.parametrize("lack", REFUSED)
def test_what_a_build_lacks_is_told_by_name(
    lack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, error = REFUSED[lack]
    if (
        lack in NEED_A_COMPILER
        and "CXX" not in os.environ
        and not any(map(shutil.which, COMPILERS))
    ):
        pytest.skip("there is no C++ compiler here that CMake would find")
    if lack == "a compiler of C" and not shutil.which("gcc"):
        pytest.skip("there is no gcc here")
    if lack in ("no compiler", "the compiler of Python"):
        monkeypatch.delenv("CXX", raising=False)
        if lack != "no compiler":
            monkeypatch.setenv("CXX", "g++ -pthread")
        monkeypatch.setenv("PATH", str(alone(tmp_path / "bin", "cmake", "make", "ninja")))
    ran = subprocess.run(  # noqa: S603
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), *options],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    assert error in " ".join(ran.stderr.split()), ran.stderr  # CMake breaks its lines


def alone(folder: Path, *programs: str) -> Path:
    """Return a folder that has these programs, of those that are here, and no other."""
    folder.mkdir()
    for program in programs:
        if found := shutil.which(program):
            (folder / program).symlink_to(found)
    return folder

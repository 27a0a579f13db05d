"""Runs the codec's fuzzer on every Python of this machine, and with the core under sanitizers.

    python -m tests.support.fuzz_pythons --count 1000000        # make fuzz

Each Python gets an environment of its own in build/fuzz, with shmcast alone: the fuzzer needs no
more.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from tests.support.pythons import pythons
from tests.support.subprocess_programs import ROOT

SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g -O1"
FUZZER = "tests.support.codec_fuzz"


@dataclass(frozen=True)
class Environment:
    """A Python with shmcast, in build/fuzz/`name`."""

    name: str
    python: str
    flags: str = ""
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return ROOT / "build" / "fuzz" / self.name

    def make(self) -> None:
        """Install shmcast as it is now."""
        if not (self.folder / "bin").exists():
            subprocess.run([self.python, "-m", "venv", self.folder], check=True)  # noqa: S603
        options = [f"--config-settings=build-dir={self.folder}/build"]
        if self.flags:
            options.append(f"--config-settings=cmake.define.CMAKE_CXX_FLAGS={self.flags}")
        pip = [f"{self.folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        command = [*pip, "--no-deps", "--force-reinstall", *options, "--editable", "."]
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603

    def fuzz(self, *arguments: object) -> bool:
        """Run the fuzzer; return whether all went well."""
        command = [f"{self.folder}/bin/python", "-m", FUZZER, *map(str, arguments)]
        ran = subprocess.run(  # noqa: S603
            command, cwd=ROOT, env=os.environ | self.variables, check=False
        )
        return ran.returncode == 0


def sanitized(python: str) -> Environment:
    """Return an environment whose core is built with sanitizers."""
    libraries = [_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    variables = {
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONMALLOC": "malloc",  # so that each object has its own bounds
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2048",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return Environment(f"{Path(python).name}-sanitized", python, SANITIZERS, variables)


def _library(name: str) -> str:
    found = subprocess.run(  # noqa: S603
        ["g++", f"-print-file-name={name}"],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


def main(
    count: Annotated[int, typer.Option(help="graphs, and mutated messages, on each")] = 1_000_000,
    only: Annotated[list[str] | None, typer.Option(help="a part of a name, repeatable")] = None,
) -> None:
    """Fuzz on each Python, and on the newest with sanitizers. Status 1 if anything failed."""
    commands = [str(command) for command in pythons().values()] or [sys.executable]
    environments = [Environment(Path(command).name, command) for command in commands]
    environments.append(sanitized(commands[-1]))
    failed = []
    for environment in environments:
        if only and not any(part in environment.name for part in only):
            continue
        environment.make()
        print(environment.name, flush=True)  # noqa: T201
        if not environment.fuzz("all", count):
            failed.append(environment.name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    typer.run(main)

"""The Pythons of this machine that shmcast supports."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "3.13t", "3.14t", "3.15t")


def pythons() -> dict[str, Path]:
    """Return the commands of all that are here, pyenv's too, by version."""
    found = {}
    for version in VERSIONS:
        for command in _candidates(version):
            if _runs(command):
                found[version] = command
                break
    return found


def _candidates(version: str) -> list[Path]:
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    free_threaded = "t" if version.endswith("t") else ""
    of_pyenv = pyenv.glob(f"{version.rstrip('t')}.*{free_threaded}/bin/python{version}")
    in_path = shutil.which(f"python{version}")
    return [*([Path(in_path)] if in_path else []), *sorted(of_pyenv)]


def _runs(command: Path) -> bool:
    # (Pyenv puts commands into PATH that only say which version one should choose.)
    ran = subprocess.run([command, "-c", ""], capture_output=True, check=False)  # noqa: S603
    return ran.returncode == 0

"""Check wheels as their users meet them: `python -m tests.support.check_wheel WHEEL ...`.

Each holds what the checkout has and nothing else. In a fresh environment, without a compiler and
without torch, it installs and the README's program runs.
"""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from shmcast._version import __version__
from tests.support import quick_start

ROOT = Path(__file__).resolve().parents[2]
LICENCES = {"LICENSE", "licenses/nanobind.txt", "licenses/robin-map.txt"}


def faults(wheel: Path) -> Iterator[str]:
    """Yield what is wrong with a wheel's contents.

    Args:
        wheel: of this checkout's version.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
        about = f"shmcast-{__version__}.dist-info/"
        metadata = email.message_from_bytes(archive.read(f"{about}METADATA"))
    package = {name for name in names if not name.startswith(about)}
    cores = {name for name in package if name.startswith("shmcast/_core.") and name.endswith(".so")}
    if len(cores) != 1:
        yield f"it has {len(cores)} cores"
    sources = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.pyi", "py.typed")
        for path in (ROOT / "shmcast").rglob(pattern)
    }
    # (What auditwheel has grafted in would be in shmcast.libs.)
    yield from (f"it lacks {name}" for name in sorted(sources - package))
    yield from (f"it should not have {name}" for name in sorted(package - sources - cores))
    lacking = LICENCES - {name.removeprefix(f"{about}licenses/") for name in names}
    yield from (f"it lacks the licence {name}" for name in sorted(lacking))
    if metadata["Version"] != __version__:
        yield f"it says that it is version {metadata['Version']}, not {__version__}"
    if not str(metadata.get_payload()).strip():
        yield "it has no description"


def check_installed(wheel: Path) -> None:
    """Install a wheel into a fresh environment and run the README's program there.

    Raises:
        subprocess.CalledProcessError: it can't be installed without a compiler.
        RuntimeError: the program fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder, "venv")
        python = str(fresh / "bin" / "python")
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "CC", "CXX"))
        }
        subprocess.run([sys.executable, "-m", "venv", str(fresh)], check=True)  # noqa: S603
        environment["PATH"] = str(fresh / "bin")  # where there is no compiler, nor cmake
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, str(wheel)], env=environment, cwd=folder, check=True)  # noqa: S603
        quick_start.run(python, environment)
        told = subprocess.run(  # noqa: S603
            [str(fresh / "bin" / "shmcast"), "--version"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        if told != f"shmcast {__version__}\n":
            raise RuntimeError(f"`shmcast --version` says {told!r}")


def main(wheels: list[str]) -> None:
    """Check wheels; exit with what is wrong, if anything is, or if there is no wheel."""
    if not wheels:
        sys.exit("no wheels: run `make wheel`")
    for wheel in wheels:
        wrong = [f"{wheel}: {fault}" for fault in faults(Path(wheel))]
        if wrong:
            sys.exit("\n".join(wrong))
        check_installed(Path(wheel).resolve())
        sys.stdout.write(f"{wheel}: installs without a compiler, and the README's program runs\n")


if __name__ == "__main__":
    main(sys.argv[1:])

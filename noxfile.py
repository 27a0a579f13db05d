"""The tests on every Python that is here, with the lowest and the newest of what shmcast uses.

    make matrix                                      # all of it
    make matrix ONLY='tests-3.10(lowest)' TESTS=tests/codecs

Torch comes in a build for CPUs, or not at all: one for CUDA would bring gigabytes. Then the tests
run without it, and those that need it are skipped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import nox

from tests.support.pythons import VERSIONS, pythons

PROJECT = nox.project.load_toml("pyproject.toml")["project"]

# The lowest that have wheels for a Python; those of older Pythons are what pyproject.toml asks for.
LOWEST = {
    "3.10": ["torch==2.4.*", "numpy==1.24.*", "msgspec==0.19.*"],
    "3.11": ["torch==2.4.*", "numpy==1.24.*", "msgspec==0.19.*"],
    "3.12": ["torch==2.4.*", "numpy==1.26.*", "msgspec==0.19.*"],
    "3.13": ["torch==2.5.*", "numpy==2.1.*", "msgspec==0.19.*"],
    "3.14": ["torch==2.9.*", "numpy==2.3.*", "msgspec==0.20.*"],
    "3.15": ["torch==2.15.*", "numpy==2.5.*", "msgspec==0.22.*"],
}
NEWEST = ["--constraint=constraints.txt", "torch", "numpy", "msgspec"]

# (Nobody makes wheels for the first free-threaded one any more; msgspec can't even be built there.)
HERE = {version: path for version, path in pythons().items() if version != "3.13t"}

nox.options.error_on_missing_interpreters = False
os.environ["PATH"] = os.pathsep.join(
    [*(str(path.parent) for path in HERE.values()), os.environ["PATH"]]
)


def requirements(extra: str) -> Iterator[str]:
    """Yield what one of shmcast's extras asks for, those that it names itself included."""
    for each in PROJECT["optional-dependencies"][extra]:
        name, _, others = each.partition("[")
        if name == PROJECT["name"]:
            for other in others.rstrip("]").split(","):
                yield from requirements(other)
        else:
            yield each


def brings_cuda(session: nox.Session, versions: list[str]) -> bool:
    """Return whether these versions are of a torch for CUDA, or of none for this Python."""
    command = ["pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report=-"]
    told = session.run("python", "-m", *command, *versions, silent=True, success_codes=[0, 1])
    if not isinstance(told, str) or "{" not in told:
        return True
    report = json.loads(told[told.index("{") :])
    return any(each["metadata"]["name"].startswith("nvidia") for each in report["install"])


@nox.session(python=[version for version in VERSIONS if version in HERE], venv_backend="venv")
@nox.parametrize("which", [nox.param("lowest", id="lowest"), nox.param("newest", id="newest")])
def tests(session: nox.Session, which: str) -> None:
    """Run the tests; arguments go to pytest."""
    lowest = LOWEST.get(str(session.python).rstrip("t"), NEWEST)
    versions = NEWEST if which == "newest" else lowest
    if brings_cuda(session, versions):
        session.warn("torch's build for CPUs is not to be had for this Python: without torch")
        versions = [each for each in versions if not each.startswith("torch")]
    others = [*PROJECT["dependencies"], *requirements("test")]
    session.install(*(each for each in others if not each.startswith("torch")), *versions)
    session.install(
        "--no-deps", f"--config-settings=build-dir={session.virtualenv.location}/build", "-e", "."
    )
    without_gil = {"PYTHON_GIL": "0"} if str(session.python).endswith("t") else {}
    session.run("python", "-m", "pytest", *session.posargs, env=without_gil)

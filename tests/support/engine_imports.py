"""Imports what tests use of vLLM, where one is installed: for the server that forks workers.

It takes four seconds of a CPU: in each of three workers, on a busy machine, more than a test has.
Where only a part of vLLM is installed, so much is imported as can be.
"""

from __future__ import annotations

import contextlib
import importlib

for name in (
    "vllm.distributed.device_communicators.shm_broadcast",
    "vllm.distributed.parallel_state",
    "vllm.v1.executor.ray_executor_v2",
):
    with contextlib.suppress(Exception):  # whatever it lacks: the server must go on
        importlib.import_module(name)

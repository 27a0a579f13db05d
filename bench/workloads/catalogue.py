"""What is broadcast, by name: small objects, arrays, dicts of tensors, engines' steps, a trace."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.workloads import sglang_messages, steps, structs
from bench.workloads.simulation import Step, simulate
from bench.workloads.simulation import decode_steps as decode_steps
from bench.workloads.simulation import sizes as sizes
from bench.workloads.vllm_messages import MaskedStep, SchedulerOutput

KIB, MIB = 1 << 10, 1 << 20
ARRAYS = {
    "64 KiB array": 64 * KIB,
    "256 KiB array": 256 * KIB,
    "1 MiB array": MIB,
    "16 MiB array": 16 * MIB,
    "64 MiB array": 64 * MIB,
    "256 MiB array": 256 * MIB,
}
"""Arrays of float32, and their bytes."""

TENSOR_COUNTS = (1, 8, 64)
TENSOR_SIZES = {"1 KiB": KIB, "64 KiB": 64 * KIB, "4 MiB": 4 * MIB}
TENSOR_LAYOUTS = ("flat", "nested")
DEVICE_VARIABLE = "SHMCAST_BENCH_DEVICE"
"""The variable that names the device of the tensors, such as "cuda"; unset: "cpu"."""

DECODE_REQUESTS = (1, 8, 64, 128, 256)
TRACE_STEPS = 1000
FAST = 0.1
"""The factor on the gaps of "trace, fast"."""


@dataclass(frozen=True)
class Workload:
    """Messages of one kind.

    Attributes:
        name: as on the command line and in tables.
        what: a sentence for the report.
        make: makes the messages, the same in every process: one that is sent again and again, or
            the many messages of a trace.
        gaps_ms: returns a trace's own gaps, one for each of the first n messages; after its last
            message a trace begins anew. None: the case sets the gap.
        typed: returns the type for a typed codec, and a function that turns a message into one of
            that type; needs msgspec. None: the workload is not for typed codecs.
    """

    name: str
    what: str
    make: Callable[[], list[Any]]
    gaps_ms: Callable[[int], list[float]] | None = None
    typed: Callable[[], tuple[Any, Callable[[Any], Any]]] | None = None


def workload(name: str) -> Workload:
    """Return the workload of a name.

    Raises:
        ValueError: there is none; names those that there are.
    """
    if name not in WORKLOADS:
        known = "; ".join(WORKLOADS)  # names have commas
        raise ValueError(f"workload {name!r} is none of: {known}")
    return WORKLOADS[name]


def tiny() -> dict[str, Any]:
    """Return an object whose pickle has about 50 bytes."""
    return {"step": 1234, "ids": [1, 2, 3], "done": False}


def small() -> dict[str, Any]:
    """Return an object whose pickle has half a kilobyte."""
    return {
        "step": 1234,
        "new": [{"id": f"request-{i}", "blocks": [i, i + 1], "t": 0.5} for i in range(8)],
        "cached": {"ids": list(range(16)), "computed": {i: 17 * i for i in range(24)}},
    }


def tables() -> dict[str, Any]:
    """Return an object whose pickle has about 15 KB."""
    return {"tables": [[i * 64 + j for j in range(64)] for i in range(75)]}


def tensors(count: int, nbytes: int, layout: str) -> dict[str, Any]:
    """Return metadata and `count` tensors of float32, on the device that the environment names."""
    import torch

    device = os.environ.get(DEVICE_VARIABLE, "cpu")
    made = [torch.ones(nbytes // 4, device=device) for _ in range(count)]
    if layout == "flat":
        return tiny() | {f"tensor {i}": tensor for i, tensor in enumerate(made)}
    pairs = [made[i : i + 2] for i in range(0, count, 2)]
    return tiny() | {
        "layers": [{"name": str(i), "kv": tuple(pair)} for i, pair in enumerate(pairs)]
    }


@functools.cache
def _trace() -> tuple[Step, ...]:
    return tuple(simulate(TRACE_STEPS))


def _trace_messages() -> list[Any]:
    return [step.message for step in _trace()]


def _trace_gaps(factor: float, count: int) -> list[float]:
    trace = _trace()
    return [trace[i % len(trace)].gap_ms * factor for i in range(count)]


def _one(name: str, what: str, make: Callable[[], Any], typed_as: Any = None) -> Workload:
    """Make a workload of one message, with its type for a typed codec, if it has one."""
    typed = None if typed_as is None else functools.partial(structs.typed, typed_as)
    return Workload(name, what, lambda: [make()], typed=typed)


def _objects() -> list[Workload]:
    return [
        _one("49 B", "A dict of three entries.", tiny, dict[str, Any]),
        _one("0.5 KB", "A dict of lists and dicts.", small, dict[str, Any]),
        _one("16 KB", "75 lists of 64 integers.", tables, dict[str, Any]),
        _one("1 MiB", "An int32 array of 1 MiB.", lambda: np.arange(MIB // 4, dtype=np.int32)),
        _one("16 MiB", "An int32 array of 16 MiB.", lambda: np.arange(4 * MIB, dtype=np.int32)),
    ]


def _arrays() -> list[Workload]:
    return [
        _one(
            name,
            f"A float32 array of {name.removesuffix(' array')}.",
            functools.partial(np.ones, nbytes // 4, np.float32),
        )
        for name, nbytes in ARRAYS.items()
    ]


def _tensor_dicts() -> list[Workload]:
    metadata = _one("metadata only", "The dict of the tensor workloads without tensors.", tiny)
    return [
        _one(
            f"{count} x {size} tensors, {layout}",
            f"A dict with metadata and tensors of float32: {count} of {size}, {layout}.",
            functools.partial(tensors, count, nbytes, layout),
        )
        for count in TENSOR_COUNTS
        for size, nbytes in TENSOR_SIZES.items()
        for layout in TENSOR_LAYOUTS
    ] + [metadata]


def _engine_steps() -> list[Workload]:
    decodes = [
        _one(
            f"decode {count}",
            f"vLLM's SchedulerOutput of a decode step of {count} running requests.",
            functools.partial(steps.decode, count),
            SchedulerOutput,
        )
        for count in DECODE_REQUESTS
    ]
    return [
        *decodes,
        _one(
            f"decode 64, {steps.SPEC_TOKENS} spec tokens",
            f"The same of 64 requests, each with {steps.SPEC_TOKENS} drafted tokens.",
            functools.partial(steps.decode, 64, steps.SPEC_TOKENS),
            SchedulerOutput,
        ),
        _one(
            "decode 64, bitmask",
            "The same of 64 requests with a grammar bitmask: int32 [64, 4752].",
            functools.partial(steps.masked_decode, 64),
            MaskedStep,
        ),
        _one(
            "prefill chunk",
            "A step of 32 running requests and the first chunk of a prompt of 8192 tokens.",
            steps.prefill_chunk,
            SchedulerOutput,
        ),
        _one(
            "multimodal",
            "A step of 32 running requests and a new one with 23 MB of pixel values.",
            steps.multimodal,
            SchedulerOutput,
        ),
        _one(
            "sglang 64",
            "64 new requests as SGLang's scheduler broadcasts them, tokenized.",
            functools.partial(steps.sglang_requests, 64),
            list[sglang_messages.TokenizedGenerateReqInput],
        ),
    ]


def _traces() -> list[Workload]:
    typed = functools.partial(structs.typed, SchedulerOutput)
    what = f"The first {TRACE_STEPS} steps of a simulated vLLM engine, 18 requests a second"
    gaps, fast = (functools.partial(_trace_gaps, factor) for factor in (1.0, FAST))
    return [
        Workload("trace", f"{what}, in its own timing.", _trace_messages, gaps, typed),
        Workload("trace, fast", f"{what}, ten times as fast.", _trace_messages, fast, typed),
    ]


WORKLOADS: dict[str, Workload] = {
    each.name: each
    for group in (_objects, _arrays, _tensor_dicts, _engine_steps, _traces)
    for each in group()
}
"""All workloads, by name."""

"""The suites: the cases of each, and the transports that take part."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from bench.run.busy_thread import INTERVALS
from bench.run.case import ENGINE_PARTS, NEIGHBOURS, Case

OURS = ("shmcast", "shmcast spin", "shmcast semaphore")
POLICIES = (*OURS, "shmcast, warmed", "shmcast spin, warmed")
MSGSPEC = "shmcast msgspec"
PEERS = (
    "kickmsg polling",
    "kickmsg blocking",
    "SubEtha polling",
    "MPI bcast",
    "iceoryx2 polling",
    "iceoryx2 blocking",
    "vLLM",
    "vLLM spinloop",
    "SGLang",
    "SGLang broadcast_pyobj",
    "pipe",
    "queue",
    "pyzmq ipc",
    "pyzmq ipc polling",
    "gloo",
    "gloo, known size",
    "NCCL",
)
RAY = "Ray channel"


@dataclass(frozen=True)
class Suite:
    """A suite.

    Attributes:
        what: one sentence for the command line.
        transports: those that take part, unless told otherwise, in the order of tables.
        cases: makes the cases; the argument is a factor on how long they may take.
    """

    what: str
    transports: tuple[str, ...]
    cases: Callable[[float], list[Case]]


def _peers(scale: float) -> list[Case]:
    def case(workload: str, readers: int, gap_ms: float) -> Case:
        messages = int(scale * (200 if gap_ms <= 1 else 80))
        # (Transports that never block would queue up messages that take longer than the gap.)
        is_large = workload.endswith("MiB")
        return Case(workload, readers, gap_ms, messages=messages, seconds=scale, lockstep=is_large)

    def rate(readers: int) -> Case:
        return Case("49 B", readers, 0, seconds=0.5 * scale)

    return [
        *(case("49 B", 1, gap_ms) for gap_ms in (0.3, 1.0, 10.0)),
        *(case(size, 1, 1.0) for size in ("0.5 KB", "16 KB", "1 MiB", "16 MiB")),
        rate(1),
        case("49 B", 4, 1.0),
        *(case(size, 8, 1.0) for size in ("49 B", "16 KB")),
        rate(8),
    ]


def _ray(scale: float) -> list[Case]:
    return [case for case in _peers(scale) if case.workload in ("49 B", "16 KB")]


STEP_WORKLOADS = (
    "decode 1",
    "decode 8",
    "decode 64",
    "decode 64, 3 spec tokens",
    "decode 128",
    "decode 256",
    "decode 64, bitmask",
    "prefill chunk",
    "sglang 64",
    "multimodal",
)


def _steps(scale: float) -> list[Case]:
    def case(workload: str, readers: int) -> Case:
        return Case(workload, readers, 10.0, messages=int(40 * scale), seconds=scale, warm_up=10)

    trace = Case("trace", 1, pattern="trace", messages=int(100 * scale), seconds=5 * scale)
    fast = Case("trace, fast", 4, pattern="trace", messages=int(200 * scale), seconds=2 * scale)
    one = [case(workload, 1) for workload in STEP_WORKLOADS]
    return [*one, trace, case("decode 64", 4), fast]


def _waiting(scale: float) -> list[Case]:
    def case(readers: int, gap_ms: float, pattern: str) -> Case:
        messages = int(scale * (200 if gap_ms <= 1 else 64))
        return Case("49 B", readers, gap_ms, pattern, messages, scale, warm_up=16)

    patterns = ("steady", "jitter", "poisson", "bursts")
    cases = []
    for readers in (1, 8):
        cases += [case(readers, *each) for each in itertools.product((0.3, 1, 10, 50), patterns)]
    idle = Case("49 B", 8, 5000.0 * scale, messages=1, seconds=5 * scale, warm_up=1)
    return [*cases, dataclasses.replace(idle, transports=("shmcast", "shmcast semaphore"))]


def _neighbours(scale: float) -> list[Case]:
    def case(readers: int, gap_ms: float, beside: str) -> Case:
        messages = int(scale * (600 if gap_ms <= 1 else 100))
        return Case("49 B", readers, gap_ms, messages=messages, seconds=scale, beside=beside)

    who = ("", *NEIGHBOURS)
    few = [case(1, gap_ms, beside) for gap_ms in (0.3, 1.0, 10.0) for beside in who]
    return [*few, *(case(8, gap_ms, "") for gap_ms in (1.0, 10.0))]


def _engine(scale: float) -> list[Case]:
    return [
        Case("decode 64", readers, 0, messages=int(120 * scale), seconds=2 * scale, engine=part)
        for readers in (1, 2)
        for part in ENGINE_PARTS[1:]
    ]


def _gil(scale: float) -> list[Case]:
    return [
        Case("49 B", 1, gap_ms, messages=int(200 * scale), seconds=scale, inside=inside)
        for gap_ms in (1.0, 10.0)
        for inside in ("", *INTERVALS)
    ]


COPYING = (
    "memcpy",
    "streamed",
    "arena, copied",
    "arena, view",
    "vLLM",
    "vLLM arena",
    "gloo, known shape",
    "gloo",
    "pipe, known shape",
)
LOANS = ("loan, filled before", "loan, filled before, tensor")
REFILLED = ("loan, just filled", "loan, just filled, warmed")
ARRAY_SIZES = ("64 KiB", "256 KiB", "1 MiB", "16 MiB", "64 MiB", "256 MiB")


def _large(scale: float) -> list[Case]:
    """Return three cases of each size: loans are far faster than a copy by a socket."""

    def case(size: str, readers: int, transports: tuple[str, ...], seconds: float) -> Case:
        return Case(
            f"{size} array",
            readers,
            0.3,
            messages=100,
            seconds=seconds * scale,
            lockstep=True,
            reads=transports == COPYING and readers == 1,
            transports=transports,
        )

    return [
        case(size, readers, transports, seconds)
        for readers in (1, 4, 8)
        for size in ARRAY_SIZES
        for transports, seconds in ((COPYING, 0.5), (LOANS, 0.2), (REFILLED, 0.2))
        # (256 MiB to 8 readers by all transports needs more than 24 GiB of memory.)
        if readers == 1 or (size, readers) in (("16 MiB", 4), ("256 MiB", 4), ("16 MiB", 8))
    ]


TENSOR_TRANSPORTS = (
    "tensors over the device group",
    "tensors in the message",
    "tensors by broadcast_object",
    "tensors one by one",
)


def _tensors(scale: float) -> list[Case]:
    cases = [Case("metadata only", 1, 1.0, messages=int(400 * scale), seconds=scale)]
    for count, size, layout in itertools.product(
        (1, 8, 64), ("1 KiB", "64 KiB", "4 MiB"), ("flat", "nested")
    ):
        mebibytes = count * {"1 KiB": 2**-10, "64 KiB": 2**-4, "4 MiB": 4}[size]
        # The readers of one message must be through when the next one is sent.
        gap_ms = 1 + 2 * mebibytes
        workload = f"{count} x {size} tensors, {layout}"
        cases.append(Case(workload, 1, gap_ms, messages=int(40 * scale), seconds=scale))
    return cases


BETWEEN_HOSTS = (
    "gloo between hosts",
    "gloo between hosts, known size",
    "shmcast between hosts",
    "shmcast within the source's host",
)
RELAYED = ("shmcast between hosts",)


def _nodes(scale: float) -> list[Case]:
    """Return cases with the gaps of a decode loop: at 1 ms, messages of 1 MiB queue up."""
    cases = [
        Case(size, readers, 10.0, messages=int(60 * scale), seconds=scale, transports=BETWEEN_HOSTS)
        for readers in (3, 7)
        for size in ("0.5 KB", "16 KB", "1 MiB")
    ]
    trace = Case("trace, fast", 3, pattern="trace", messages=200, seconds=4, transports=RELAYED)
    busy = [
        Case("49 B", 3, 30.0, "uniform", int(30 * scale), scale, 2, busy=what, transports=RELAYED)
        for what in ("idle", "python", "torch")
    ]
    return [trace, *cases[:3], *busy, *cases[3:]]


SUITES = {
    "peers": Suite(
        "small and large messages at several cadences, all transports",
        (*POLICIES, MSGSPEC, *PEERS),
        _peers,
    ),
    "ray": Suite(
        "Ray's channel; by itself, as its cluster's daemons would disturb the others",
        ("shmcast", "shmcast spin", RAY),
        _ray,
    ),
    "steps": Suite(
        "what inference engines send: steps of a scheduler, requests, a trace",
        (
            *OURS,
            "shmcast, warmed",
            "shmcast pickle",
            MSGSPEC,
            "shmcast, Structs pickled",
            "shmcast arena, view",
            "kickmsg polling",
            "MPI bcast",
            "iceoryx2 polling",
            "vLLM",
            "vLLM spinloop",
            "SGLang",
            "SGLang broadcast_pyobj",
            "pipe",
            "pyzmq ipc",
            "gloo",
        ),
        _steps,
    ),
    "waiting": Suite(
        "wait policies: latency against CPU time, by cadence and by readers",
        (*POLICIES[:4], "kickmsg polling", "kickmsg blocking", "SubEtha polling"),
        _waiting,
    ),
    "neighbours": Suite(
        "wait policies where CPUs are few: 8 readers, idle and busy engines beside, a busy loop",
        (*OURS, "kickmsg polling", "kickmsg blocking", "SubEtha polling", "pipe"),
        _neighbours,
    ),
    "engine": Suite(
        "an engine's load: a step to workers that compute with all CPUs, and the first one's reply",
        (*OURS, "kickmsg polling", "kickmsg blocking", "vLLM", "vLLM spinloop", "SGLang"),
        _engine,
    ),
    "gil": Suite(
        "a busy Python thread in the reader, and how often it lets go of the GIL",
        (
            *OURS,
            "kickmsg polling",
            "kickmsg blocking",
            "MPI bcast",
            "vLLM",
            "pipe",
            "pyzmq ipc",
            "gloo",
        ),
        _gil,
    ),
    "large": Suite(
        "arrays of 64 KiB to 256 MiB: streamed, in the arena, as loans",
        (*COPYING, *LOANS, *REFILLED),
        _large,
    ),
    "tensors": Suite("dicts of tensors", TENSOR_TRANSPORTS, _tensors),
    "nodes": Suite("two hosts (network namespaces; needs root)", BETWEEN_HOSTS, _nodes),
}

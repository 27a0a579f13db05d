"""The shape of bench/results/<date>-<machine>/<suite>.json, and questions about its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

from bench.run.case import Case

OURS = "shmcast"
"""The transport that all others are compared with: shmcast as it comes."""


class Machine(TypedDict):
    """Where a suite ran."""

    name: str
    cpu: str
    cores: int
    usable_cpus: float
    governor: str
    kernel: str
    python: str
    torch: str
    shmcast: str
    commit: str
    load_average: float
    steal: float
    date: str


class Settings(TypedDict):
    """How a transport was set up, and its version."""

    settings: str
    version: str


class _Measured(TypedDict):
    workload: str
    bytes: int
    readers: int
    gap_ms: float
    pattern: str
    transport: str
    messages: int
    turns: int
    source_cpu_us: float
    reader_cpu_us: float
    source_cpu: float
    reader_cpu: float
    memory_mib: float


class Row(_Measured, total=False):
    """A transport in a case: its rate, if the case has no gaps; otherwise its latencies."""

    p50_us: float
    p50_low_us: float
    p50_high_us: float
    p99_us: float
    p99_low_us: float
    p99_high_us: float
    p999_us: float
    p999_low_us: float
    p999_high_us: float
    max_us: float
    send_p50_us: float
    read_p50_us: float
    quantiles_us: list[float]
    rate_per_s: float
    rate_low_per_s: float
    rate_high_per_s: float
    busy: str
    beside: str
    inside: str
    engine: str
    steps_per_s: float
    steps_low_per_s: float
    steps_high_per_s: float
    line: str
    line_before_ns: float
    line_after_ns: float
    extra: dict[str, float]


class JobRow(TypedDict):
    """A transport in a whole job: a model that generates tokens on several ranks."""

    ranks: int
    transport: str
    tokens_per_s: float
    tokens_per_s_low: float
    tokens_per_s_high: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    broadcast_p50_us: float
    broadcast_p99_us: float
    broadcast_share: float
    passes: int


class DeathRow(TypedDict):
    """How long it took from a kill until a member was told, over many kills at one cadence.

    `gap_ms`: between messages; 0: back to back; below 0: there were none. The source is then told
    by a call that it makes afterwards, and its time is from that call on.
    """

    gap_ms: float
    who: str
    kills: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class _EngineCase(TypedDict):
    case: str
    ranks: int
    transport: str


class EngineRow(_EngineCase, total=False):
    """An engine with its own queues or with shmcast's, in one case, which has some of the figures.

    `case`: "tokens" (generation), "waiting" (a worker's CPU with steps `gap_ms` apart, and that
    inside of `dequeue`; below 0: that of each process of an idle engine, and that without gloo's
    threads), "killed" (until a worker's death is told), "requests" (SGLang's broadcast of lists).
    `of_rounds`: of which the figures are the medians, by their names.
    """

    batch: int
    rounds: int
    of_rounds: dict[str, list[float]]
    tokens_per_s: float
    cpu_us_per_token: float
    rpc_p50_us: float
    rpc_p90_us: float
    rpc_p99_us: float
    enqueue_p50_us: float
    enqueue_p90_us: float
    enqueue_p99_us: float
    reply_p50_us: float
    reply_p90_us: float
    reply_p99_us: float
    gap_ms: float
    cpu: float
    waiting_cpu: float
    core_s: float
    user_s: float
    told: str
    what: str
    p50_us: float
    p99_us: float


class CodecRow(TypedDict):
    """A codec and the messages of a workload: the time to encode and decode one.

    `is_same`: whether what arrives has the types of what was sent. `evicted_mib`: how much other
    memory was written before each call; 0: caches stayed warm.
    """

    workload: str
    kind: str
    codec: str
    evicted_mib: int
    bytes: int
    is_same: bool
    messages: int
    turns: int
    encode_p50_us: float
    encode_p50_low_us: float
    encode_p50_high_us: float
    decode_p50_us: float
    decode_p50_low_us: float
    decode_p50_high_us: float
    both_p50_us: float
    both_p50_low_us: float
    both_p50_high_us: float


class ReplyRow(TypedDict):
    """A way to ask members and be answered, in one case; see `bench.run.replies`."""

    case: str
    who: str
    message: str
    members: int
    gap_ms: float
    calls: int
    p50_us: float
    p99_us: float


ByTransport = dict[str, Row]


@dataclass(frozen=True)
class SuiteResults:
    """One file of results.

    Attributes:
        name: the name of the suite and of the file.
        machine: where it ran.
        peers: the transports that ran.
        skipped: those that did not run, and why.
        rows: the results of every suite but the following.
        job: the results of "job".
        codec: the results of "codec".
        deaths: the results of "deaths".
        engines: the results of "engines".
        replies: the results of "replies".
    """

    name: str
    machine: Machine
    peers: dict[str, Settings]
    skipped: dict[str, str]
    rows: list[Row]
    job: list[JobRow]
    codec: list[CodecRow]
    deaths: list[DeathRow]
    engines: list[EngineRow]
    replies: list[ReplyRow]


@dataclass(frozen=True)
class Results:
    """The suites of a folder, by name, in the order of `ORDER`."""

    folder: Path
    suites: dict[str, SuiteResults]

    def __getitem__(self, name: str) -> SuiteResults:
        """Return a suite.

        Raises:
            LookupError: the folder does not have it; names those that it has.
        """
        if name not in self.suites:
            has = ", ".join(self.suites) or "none"
            raise LookupError(f"{self.folder} has no suite {name!r} (it has: {has})")
        return self.suites[name]


ORDER = (
    "peers",
    "ray",
    "steps",
    "waiting",
    "neighbours",
    "engine",
    "gil",
    "large",
    "tensors",
    "nodes",
    "job",
    "codec",
    "deaths",
    "engines",
    "replies",
)
_OF_THEIR_OWN = ("job", "codec", "deaths", "engines", "replies")  # kinds of rows


def load(folder: Path) -> Results:
    """Load all suites of a folder; it may have none.

    Raises:
        ValueError: a file is of a suite that is not in `ORDER`, or not named for its suite.
    """
    found = {}
    for path in folder.glob("*.json"):
        data = json.loads(path.read_text())
        name = data["suite"]
        if name not in ORDER or name != path.stem:
            raise ValueError(
                f"{path}: suite {name!r}, expected {path.stem!r} of {', '.join(ORDER)}"
            )
        found[name] = SuiteResults(
            name=name,
            machine=data["machine"],
            peers=data["peers"],
            skipped=data["skipped"],
            rows=[] if name in _OF_THEIR_OWN else data["rows"],
            job=data["rows"] if name == "job" else [],
            codec=data["rows"] if name == "codec" else [],
            deaths=data["rows"] if name == "deaths" else [],
            engines=data["rows"] if name == "engines" else [],
            replies=data["rows"] if name == "replies" else [],
        )
    return Results(folder, {name: found[name] for name in ORDER if name in found})


def case_of(row: Row) -> Case:
    """Return the case of a row."""
    return Case(
        row["workload"],
        row["readers"],
        row["gap_ms"],
        row["pattern"],
        busy=row.get("busy", ""),
        beside=row.get("beside", ""),
        inside=row.get("inside", ""),
        engine=row.get("engine", ""),
    )


def by_case(rows: Iterable[Row]) -> dict[Case, ByTransport]:
    """Group rows by case and transport, in their order."""
    cases: dict[Case, ByTransport] = {}
    for row in rows:
        cases.setdefault(case_of(row), {})[row["transport"]] = row
    return cases


def transports_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of all transports, in their order."""
    return list(dict.fromkeys(row["transport"] for row in rows))


def is_rate(row: Row) -> bool:
    """Return whether messages followed one another without a gap."""
    return "rate_per_s" in row


def family(transport: str) -> str:
    """Return what a transport is a variant of: "gloo" for "gloo, known size"."""
    return OURS if transport.startswith(_OURS_TOO) else transport.split()[0].rstrip(",")


# Transports of shmcast without its name, in the suites that compare them with one another.
_OURS_TOO = ("streamed", "arena, ", "loan, ", "tensors over", "tensors in", "tensors by")


class Interval(NamedTuple):
    """A figure with its 95 % interval."""

    low: float
    value: float
    high: float

    def over(self, other: Interval) -> Interval:
        """Return the ratio; its interval is at least as wide as one of 95 %."""
        return Interval(self.low / other.high, self.value / other.value, self.high / other.low)


def time_of(row: Row) -> Interval:
    """Return the microseconds of a message: the median latency, or the inverse of the rate."""
    if not is_rate(row):
        return Interval(row["p50_low_us"], row["p50_us"], row["p50_high_us"])
    rates = (row["rate_high_per_s"], row["rate_per_s"], row["rate_low_per_s"])
    return Interval(*(1e6 / rate for rate in rates))


def fastest(rows: Iterable[Row]) -> Row | None:
    """Return the row whose messages take the least time, or None if there are no rows."""
    return min(rows, key=lambda row: time_of(row).value, default=None)


def representative(own: ByTransport, name: str) -> Row | None:
    """Return the row for a column in a case: a transport of shmcast, or the fastest of a family.

    Leave out variants that know more than the others, whose names have a comma: "gloo, known size".
    """
    if family(name) == OURS:
        return own.get(name)
    return fastest(
        row for variant, row in own.items() if family(variant) == name and "," not in variant
    )

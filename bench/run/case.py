"""A case: what is sent, to how many, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from bench.run.busy_thread import INTERVALS

PATTERNS = ("steady", "jitter", "poisson", "uniform", "bursts", "trace")
"""How gaps vary around their mean: not; uniform within 10 %; exponential; uniform from 0 to twice
the mean; in bursts of `BURST` messages; as the workload says itself."""

NEIGHBOURS = ("two idle pairs", "a busy pair", "a busy loop")
"""What may run beside a case: a writer and a reader each of other engines, which sleep or exchange
a message every millisecond; a process that computes on one of the crew's CPUs."""

ENGINE_PARTS = ("", "rpc", "reply")
"""What of an engine's step counts: nothing, it is no engine; from the driver's call to the last
worker's return; from the call of the first worker, which replies, to the driver's return."""

BURST = 8


@dataclass(frozen=True)
class Case:
    """Messages of one kind, sent at one cadence.

    Attributes:
        workload: what is sent: a name of `workloads.WORKLOADS`.
        readers: how many receive it.
        gap_ms: the time between the return of one send and the call of the next. If it is 0, the
            rate is measured instead of the latency. The pattern "trace" ignores it.
        pattern: one of PATTERNS.
        messages: how many messages of a transport count in a turn, at most.
        seconds: how long a turn may take: slow transports send fewer messages.
        warm_up: how many messages at the start of each turn do not count, at most.
        lockstep: whether a gap begins only when all readers have dropped the message.
        reads: whether readers sum what has arrived; that is timed by itself.
        busy: what the leader of the second host computes after each message, "python" or "torch"
            (or "idle"); what counts is when its neighbour has the message. Empty: it just receives.
        beside: what runs beside the crew, one of NEIGHBOURS; empty: nothing.
        engine: which part of an engine's step counts, one of "rpc" and "reply" (see engine.py);
            empty: it is no engine, and messages go one way.
        inside: what runs in each reader, a key of `busy_thread.INTERVALS`; empty: nothing.
        transports: the names of those that take part; empty: all that are asked for.
    """

    workload: str
    readers: int = 1
    gap_ms: float = 1.0
    pattern: str = "steady"
    messages: int = 100
    seconds: float = 1.0
    warm_up: int = 20
    lockstep: bool = False
    reads: bool = False
    busy: str = ""
    beside: str = ""
    inside: str = ""
    engine: str = ""
    transports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern {self.pattern!r} is none of {', '.join(PATTERNS)}")
        if self.beside and self.beside not in NEIGHBOURS:
            raise ValueError(f"neighbour {self.beside!r} is none of {', '.join(NEIGHBOURS)}")

        if self.engine not in ENGINE_PARTS:
            raise ValueError(f"engine {self.engine!r} is none of {', '.join(ENGINE_PARTS[1:])}")
        if self.inside and self.inside not in INTERVALS:
            raise ValueError(f"inside {self.inside!r} is none of {'; '.join(INTERVALS)}")

    @property
    def is_rate(self) -> bool:
        """Return whether messages follow one another without a gap."""
        return self.gap_ms == 0 and self.pattern != "trace" and not self.engine

    def of(self, names: list[str]) -> list[str]:
        """Return those of `names` that take part."""
        return [name for name in names if not self.transports or name in self.transports]

    def __str__(self) -> str:
        readers = f"{self.readers} reader{'s' if self.readers > 1 else ''}"
        if self.engine:
            cadence = f"{self.engine} of an engine"
        elif self.pattern == "trace":
            cadence = "its own timing"
        elif self.is_rate:
            cadence = "back to back"
        else:
            cadence = f"{self.gap_ms:g} ms"
            if self.pattern != "steady":
                cadence += f" {self.pattern}"
        busy = f", leader computes ({self.busy})" if self.busy else ""
        beside = f", beside {self.beside}" if self.beside else ""
        inside = f", with {self.inside} in it" if self.inside else ""
        return f"{self.workload}, {readers}, {cadence}{busy}{beside}{inside}"

"""What is sent, to how many, and at which cadence."""

from __future__ import annotations

from dataclasses import dataclass

PATTERNS = ("steady", "jitter", "poisson", "uniform", "bursts", "trace")
"""How gaps vary around their mean: not; uniform within 10 %; exponential; uniform from 0 to twice
the mean; in bursts of `BURST` messages; as the workload says itself."""

BURST = 8


@dataclass(frozen=True)
class Case:
    """Messages of one kind, sent at one cadence.

    Attributes:
        workload: what is sent: a name of `workloads.WORKLOADS`.
        readers: how many receive it.
        gap_ms: what lies between the return of one send and the call of the next; 0: nothing, and
            the rate is measured instead of the latency. In the pattern "trace" it is ignored.
        pattern: one of PATTERNS.
        messages: counted messages of a transport in a turn, at most.
        seconds: what a turn may take: slow transports send fewer messages.
        warm_up: messages at the start of each turn that do not count, at most.
        lockstep: a gap begins when all readers have the message and have dropped it.
        reads: readers sum what has arrived, which is timed by itself.
        busy: what the leader of the second host computes after each message, "python" or "torch"
            (or "idle"); what counts is when its neighbour has the message. "": no such thing.
        transports: the names of those that take part; none: all that are asked for.
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
    transports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern {self.pattern!r} is none of {', '.join(PATTERNS)}")

    @property
    def is_rate(self) -> bool:
        """Whether messages follow one another without a gap."""
        return self.gap_ms == 0 and self.pattern != "trace"

    def of(self, names: list[str]) -> list[str]:
        """Those of `names` that take part."""
        return [name for name in names if not self.transports or name in self.transports]

    def __str__(self) -> str:
        readers = f"{self.readers} reader{'s' if self.readers > 1 else ''}"
        if self.pattern == "trace":
            cadence = "its own timing"
        elif self.is_rate:
            cadence = "back to back"
        else:
            cadence = f"{self.gap_ms:g} ms"
            if self.pattern != "steady":
                cadence += f" {self.pattern}"
        busy = f", leader computes ({self.busy})" if self.busy else ""
        return f"{self.workload}, {readers}, {cadence}{busy}"

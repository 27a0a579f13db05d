"""The measurement: transports take turns, so that a noisy second hits all of them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shmcast._host import shared_memory
from shmcast._operators.bench.cases import Case, cases, cpus, percentile
from shmcast._operators.bench.crew import Crew, CrewFailed
from shmcast._operators.bench.member import Turn
from shmcast._operators.bench.transports import OURS, TRANSPORTS
from shmcast._operators.formats import duration, rate, table

_ROUNDS = 3
_FIRST_COUNTS = (200, 20)  # back to back, and with gaps: to find out how many fit a turn's time
_LEAST, _MOST = 20, 200_000
_WARM_UP_PART = 5

_HEADS = ("MESSAGE", "EVERY", "READERS", "BY", "P50", "P99", "MSG/S", "RATIO")


@dataclass(frozen=True)
class Figure:
    """What one transport did in one case.

    Attributes:
        transport: shmcast, pipe or gloo.
        message: what was sent.
        bytes: of its pickle.
        gap_ms: before each message; 0: back to back.
        readers: how many received it.
        cpus: how many CPUs this process may use.
        p50_us: the median time in µs from the call on the source to the return of the last reader's
            call. None: back to back, where messages queue up, or not measured.
        p99_us: the 99th percentile of it.
        messages_per_second: back to back; None: with gaps, or not measured.
        ratio: how many times as fast shmcast is; None: not measured.
        error: why it could not be measured; "": it was.
    """

    transport: str
    message: str
    bytes: int
    gap_ms: float
    readers: int
    cpus: int
    p50_us: float | None = None
    p99_us: float | None = None
    messages_per_second: float | None = None
    ratio: float | None = None
    error: str = ""


@dataclass
class _Seen:
    """What has been measured of a transport in a case."""

    count: int = 0
    """How many messages fit a turn."""
    latencies_us: list[float] = field(default_factory=list)
    seconds: float = 0.0
    messages: int = 0


class _Measurement:
    """All cases of a number of readers."""

    def __init__(self, readers: int, seconds: float, tell: Callable[[str], None]) -> None:
        self._cases = cases(readers)
        self._seconds = seconds
        self._crews: dict[str, Crew] = {}
        self._errors: dict[str, str] = {}
        self._seen = {(name, case): _Seen() for name in TRANSPORTS for case in self._cases}
        self._readers = readers
        self._tell = tell

    def run(self) -> list[Figure]:
        with contextlib.ExitStack() as undo:
            undo.callback(self._abandon)
            self._tell(f"{self._readers} reader(s): processes start")
            for name in TRANSPORTS:
                self._crews[name] = Crew(name, self._readers)
            for name in TRANSPORTS:
                self._attempt(name, self._crews[name].meet)
            for number in range(_ROUNDS):
                self._tell(f"{self._readers} reader(s): round {number + 1} of {_ROUNDS}")
                for case in self._cases:
                    for name in [*self._crews]:
                        self._attempt(name, lambda: self._turn(name, case))  # noqa: B023
            while self._crews:
                self._crews.popitem()[1].end(in_order=True)
        return [self._figure(name, case) for case in self._cases for name in TRANSPORTS]

    def _abandon(self) -> None:
        """End what has not ended: somebody has had enough."""
        for crew in self._crews.values():
            crew.end(in_order=False)
        if self._crews:
            shared_memory.clean()  # of a writer that was killed before its readers came

    def _attempt(self, name: str, step: Callable[[], None]) -> None:
        """Go on without a transport that fails."""
        try:
            step()
        except CrewFailed as error:
            self._errors[name] = str(error)
            self._tell(f"{name} is not measured: {error}")
            self._crews.pop(name).end(in_order=False)

    def _turn(self, name: str, case: Case) -> None:
        seen, crew = self._seen[name, case], self._crews[name]
        if not seen.count:
            first = _FIRST_COUNTS[case.gap_ns > 0]
            per_message = _took(crew.take(Turn(case, 0, first))) / first
            seen.count = min(_MOST, max(_LEAST, int(self._seconds / per_message)))
        times = crew.take(Turn(case, seen.count // _WARM_UP_PART, seen.count))
        seen.seconds += _took(times)
        seen.messages += seen.count
        if case.gap_ns:
            last = map(max, zip(*times[1:], strict=True))
            pairs = zip(times[0], last, strict=True)
            seen.latencies_us += [(end - start) / 1e3 for start, end in pairs]

    def _figure(self, name: str, case: Case) -> Figure:
        row = Figure(name, case.message, case.nbytes, case.gap_ns / 1e6, case.readers, cpus())
        if name in self._errors:
            return dataclasses.replace(row, error=self._errors[name])
        seen, ours = self._seen[name, case], self._seen[OURS, case]
        is_comparable = OURS not in self._errors
        if not case.gap_ns:
            mine = seen.messages / seen.seconds
            ratio = ours.messages / ours.seconds / mine if is_comparable else None
            return dataclasses.replace(row, messages_per_second=mine, ratio=ratio)
        latencies = sorted(seen.latencies_us)
        p50 = percentile(latencies, 0.5)
        ratio = p50 / percentile(sorted(ours.latencies_us), 0.5) if is_comparable else None
        return dataclasses.replace(row, p50_us=p50, p99_us=percentile(latencies, 0.99), ratio=ratio)


def _took(times: Sequence[Sequence[int]]) -> float:
    """Return the seconds from the first message's start to its last end."""
    return (max(ends[-1] for ends in times[1:]) - times[0][0]) / 1e9


def measure(counts: Sequence[int], seconds: float, tell: Callable[[str], None]) -> list[Figure]:
    """Measure all transports in all cases.

    Args:
        counts: of readers, each measured by itself.
        seconds: for each of the turns.
        tell: is told what is under way.
    """
    return [row for readers in counts for row in _Measurement(readers, seconds, tell).run()]


def as_text(rows: Sequence[Figure]) -> str:
    """Return what people read."""
    lines = [
        f"{rows[0].cpus} CPUs. P50, P99: from the call on the source to the last reader's return.",
        "RATIO: how many times as fast shmcast is. Whatever else runs here disturbs.",
        "",
        table(_HEADS, [_cells(row) for row in rows if not row.error], [20] * len(_HEADS)),
    ]
    for transport, error in sorted({(row.transport, row.error) for row in rows if row.error}):
        lines += ["", f"{transport} was not measured: {error}"]
    return "\n".join(lines)


def _cells(row: Figure) -> tuple[str, ...]:
    return (
        f"{row.message}, {row.bytes} B",
        f"{row.gap_ms:g} ms" if row.gap_ms else "at once",
        str(row.readers),
        row.transport,
        "-" if row.p50_us is None else duration(row.p50_us / 1e6),
        "-" if row.p99_us is None else duration(row.p99_us / 1e6),
        "-" if row.messages_per_second is None else rate(row.messages_per_second),
        "-" if row.ratio is None else f"{row.ratio:.1f}",
    )

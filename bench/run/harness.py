"""Run cases over transports: decide who has a turn when, and make rows of what they did.

Transports take turns in a shuffled order, several each, so that a noisy minute hits all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.run import engine, intervals, line, measure
from bench.run.case import BURST, Case
from bench.run.crew import Crew, CrewFailed
from bench.run.measure import Done, Turn
from bench.run.neighbours import beside
from bench.transports.base import Peer, Skipped
from bench.workloads import catalogue

TURNS = 5
_PROBE = 10  # messages of the first turn, by which the number of messages of a turn is chosen
_RATE_PROBE = 200
_GROWTH = 10  # a probe has at most this many times the messages of the probe before it
_MOST_REPEATS = 2  # of a case in which the CPUs have moved
_SHORT = 0.1  # a probe that takes less of the wanted time than this says little

Row = dict[str, Any]


@dataclass
class _Running:
    """A transport in a case."""

    name: str
    crew: Crew
    memory: int
    turn: Turn
    counted: dict[str, float] = field(default_factory=dict)
    done: list[list[Done]] = field(default_factory=list)
    """What each rank did in each turn."""


class Harness:
    """Start crews when a case needs them, and run cases with them.

    Args:
        peers: the transports that are asked for.
        turns: how many each transport has in a case.
        report_progress: called before each turn with what comes.

    Attributes:
        skipped: why a transport, or a transport in a case, has no rows.
    """

    def __init__(
        self,
        peers: list[Peer],
        turns: int = TURNS,
        report_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._peers = {peer.name: peer for peer in peers}
        self._turns = turns
        self._report_progress = report_progress
        self.skipped: dict[str, str] = {}
        self._crews: dict[tuple[str, int], Crew] = {}
        self._open: dict[tuple[str, int], int] = {}  # bytes of memory of each that is open

    def __enter__(self) -> Harness:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._end_crews(are_idle=kind is None)

    def run(self, cases: list[Case]) -> Iterator[tuple[Case, list[Row]]]:
        """Yield each case with its rows, in the order of `peers`, as soon as it is through."""
        readers = cases[0].readers if cases else 0
        for case in cases:
            if case.readers != readers:
                self._end_crews()  # no more processes at a time than one case needs
                readers = case.readers
            yield case, self._at_one_place(case)

    def _at_one_place(self, case: Case) -> list[Row]:
        """Run a case, and again if the CPUs have moved meanwhile; rows tell where they were."""
        for _ in range(_MOST_REPEATS + 1):
            before = line.look()
            with beside(case.beside):
                rows = self._run(case)
            where = line.described(before, line.look())
            if where.get("line") != "moved":
                break
            self._report_progress(f"{case}: the CPUs have moved, again")
        return [row | where for row in rows]

    def _run(self, case: Case) -> list[Row]:
        running = []
        settled = [*self._crews.values()]
        for name in case.of([*self._peers]):
            if name not in self.skipped:
                with self._skipping(name, f"{name}: {case}"):
                    running.append(self._begin(name, case))
        for each in running:
            if each.crew not in settled:
                settled.append(each.crew)
                with self._skipping(each.name, f"{each.name}: {case}"):
                    self._settle(each)
        order = random.Random(str(case))  # noqa: S311 (the same in each run, no more)
        for number in range(self._turns):
            for each in order.sample(running, len(running)):
                if each.name not in self.skipped and len(each.done) == number:
                    with self._skipping(each.name, f"{each.name}: {case}"):
                        self._turn(each, number)
        finished = [
            each
            for each in running
            if len(each.done) == self._turns and each.name not in self.skipped
        ]
        return [row(case, each.name, each.done, self._beside(each)) for each in finished]

    @contextlib.contextmanager
    def _skipping(self, name: str, key: str) -> Iterator[None]:
        """Leave out a transport that can't run, and all transports of a crew that has failed."""
        try:
            yield
        except Skipped as why:
            is_open = any(name == opened for opened, _ in self._open)
            self.skipped[key if is_open else name] = str(why)
        except CrewFailed as why:
            for other in self._peers.values():
                if other.crew == self._peers[name].crew:
                    self.skipped[other.name] = f"ended in {key}: {why}"
            for opened in [each for each in self._crews if each[0] == self._peers[name].crew]:
                self._crews.pop(opened).close()

    def _begin(self, name: str, case: Case) -> _Running:
        """Get a transport ready for a case, and find out how many messages a turn can have."""
        self._report_progress(f"{case}: {name}, getting ready")
        peer = self._peers[name]
        crew = self._crew(peer, case.readers)
        key = (name, case.readers)
        if key not in self._open:
            crew.ask("load", peer.modules)
            before = _memory(crew)
            crew.ask("open", peer)
            self._open[key] = _memory(crew) - before
        before = _memory(crew)
        crew.ask("expect", name, case.workload)
        turn = self._sized(crew, name, case)
        grown = max(0, _memory(crew) - before)
        self._open[key] += grown
        return _Running(name, crew, self._open[key], turn)

    def _sized(self, crew: Crew, name: str, case: Case) -> Turn:
        """Return a turn that takes no longer than the case allows."""
        count = _RATE_PROBE if case.is_rate else min(_PROBE, case.messages)
        while True:
            warm_up = min(case.warm_up, max(1, count // 2))
            probed = Turn(case, 0, _whole(case, count), warm_up)
            source, *_ = crew.ask("turn", name, probed)
            seconds = source.wall_ns / 1e9
            fitting = int(case.seconds * source.messages / max(seconds, 1e-9))
            if not case.is_rate or seconds > _SHORT * case.seconds or fitting <= count:
                break
            count = min(fitting, count * _GROWTH)
        total = fitting if case.is_rate else min(fitting, case.messages + case.warm_up)
        warm_up = min(case.warm_up, max(1, total // 5))
        return Turn(case, 0, _whole(case, max(1, total - warm_up)), warm_up)

    def _settle(self, each: _Running) -> None:
        """Take a turn that does not count: new processes make messages late for some 100 ms."""
        self._report_progress(f"{each.turn.case}: {each.name}, settling")
        each.crew.ask("turn", each.name, each.turn)

    def _turn(self, each: _Running, number: int) -> None:
        turn = dataclasses.replace(each.turn, number=number)
        self._report_progress(f"{turn.case}: {each.name}, {number + 1} of {self._turns}")
        before = each.crew.counters()
        each.done.append(each.crew.ask("turn", each.name, turn))
        for name, value in each.crew.counters().items():
            share = (value - before[name]) / turn.total / self._turns
            each.counted[name] = each.counted.get(name, 0.0) + share

    def _beside(self, each: _Running) -> Row:
        figures, *_ = each.crew.ask("figures", each.name)
        extra = each.counted | figures
        memory = {"memory_mib": each.memory / 2**20}
        return memory | ({"extra": extra} if extra else {})

    def _crew(self, peer: Peer, readers: int) -> Crew:
        key = (peer.crew, readers)
        if key not in self._crews:
            self._crews[key] = Crew(peer.launcher, readers + 1, peer.environment)
        return self._crews[key]

    def _end_crews(self, are_idle: bool = True) -> None:
        while self._crews:
            _, crew = self._crews.popitem()
            if are_idle:  # else they may be in the middle of a turn, and leave after it
                with contextlib.suppress(CrewFailed):
                    crew.ask("close")
            crew.close(are_idle)
        self._open.clear()


def _whole(case: Case, count: int) -> int:
    """Round a count up to whole bursts, if the case sends bursts."""
    return -(-count // BURST) * BURST if case.pattern == "bursts" else count


def _memory(crew: Crew) -> int:
    total: int = sum(crew.ask("memory"))
    return total


def row(case: Case, name: str, turns: list[list[Done]], beside: Row) -> Row:
    """Return the figures of a transport in a case, as they are written to JSON."""
    sources = [source for source, *_ in turns]
    readers = [reader for _, *all_readers in turns for reader in all_readers if reader.messages]
    found: Row = {
        "workload": case.workload,
        "what": catalogue.workload(case.workload).what,
        "bytes": _bytes(case.workload),
        "readers": case.readers,
        "gap_ms": case.gap_ms,
        "pattern": case.pattern,
        "transport": name,
        "messages": sum(source.counted for source in sources),
        "turns": len(turns),
        "source_cpu_us": _per_message_us(sources),
        "reader_cpu_us": _per_message_us(readers),
        "source_cpu": _share(sources),
        "reader_cpu": _share(readers),
        **beside,
    }
    if case.busy:
        found["busy"] = case.busy
    if case.engine:
        found["engine"] = case.engine
        found |= engine.steps(turns)
        turns = [engine.by_part(case.engine, turn) for turn in turns]
    if case.beside:
        found["beside"] = case.beside
    if case.inside:
        found["inside"] = case.inside
    reads = [ns / 1e3 for reader in readers for ns in reader.reads]
    if reads:
        found["read_p50_us"] = _rounded(np.median(reads))
    return found | (_rates(turns) if case.is_rate else _latencies(turns))


@functools.cache
def _bytes(workload: str) -> int:
    """Return the size of a message's pickle; of a trace, the median."""
    return int(np.median(catalogue.sizes(catalogue.workload(workload).make())))


def _latencies(turns: list[list[Done]]) -> Row:
    per_turn = []
    for source, *readers in turns:
        ends = [reader.ends for reader in readers if reader.ends] or [source.ends]
        per_turn.append(np.array(measure.latencies_us(source.starts, ends)))
    every = np.concatenate(per_turn)
    sends = [
        (end - start) / 1e3
        for source, *_ in turns
        for start, end in zip(source.starts, source.ends, strict=True)
    ]
    found: Row = {}
    for name, percent in (("p50", 50), ("p99", 99), ("p999", 99.9)):
        statistic = intervals.percentile(percent)
        low, high = intervals.interval(per_turn, statistic)
        found |= {
            f"{name}_us": _rounded(statistic(every)),
            f"{name}_low_us": _rounded(low),
            f"{name}_high_us": _rounded(high),
        }
    quantiles = np.percentile(every, np.arange(101))
    return found | {
        "max_us": _rounded(every.max()),
        "send_p50_us": _rounded(np.median(sends)),
        "quantiles_us": [_rounded(value) for value in quantiles],
    }


def _rates(turns: list[list[Done]]) -> Row:
    """Return messages per second, from the first call that counts to the last return of a turn."""
    rates = []
    for source, *readers in turns:
        end = max(reader.ends[-1] for reader in readers)
        rates.append(np.array([source.counted * 1e9 / (end - source.starts[0])]))
    low, high = intervals.interval(rates, intervals.percentile(50))
    return {
        "rate_per_s": float(np.median(rates)),
        "rate_low_per_s": low,
        "rate_high_per_s": high,
    }


def _per_message_us(members: list[Done]) -> float:
    messages = sum(done.messages for done in members)
    return _rounded(sum(done.cpu_ns for done in members) / 1e3 / max(1, messages))


def _share(members: list[Done]) -> float:
    return round(
        sum(done.cpu_ns for done in members) / max(1, sum(done.wall_ns for done in members)), 5
    )


def _rounded(microseconds: Any) -> float:
    return round(float(microseconds), 3)

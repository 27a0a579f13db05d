"""The suite "codec": objects encoded and decoded in one process, caches warm and cold."""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib
import marshal
import pickle
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

import shmcast
from bench.run import intervals
from bench.run.suites import STEP_WORKLOADS
from bench.workloads import users
from bench.workloads.catalogue import WORKLOADS, Workload

SUITE = "codec"
WHAT = "encode and decode in one process, caches warm and cold: shmcast's codec and its like"
ENGINE, USERS = "engine", "users"
EVICTED_MIB = (0, 8, 64)
"""How much of other memory is written between any two calls; 0: caches stay warm."""
TURNS = 5
SECONDS = {0: 0.06, 8: 0.1, 64: 0.25}
"""How long a codec's turn takes, by what is evicted."""
MESSAGES = 200
"""The most messages of a turn that count."""
WARM_UP = 3

Row = dict[str, Any]


class Coder(NamedTuple):
    """How a codec takes the messages of a workload."""

    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    convert: Callable[[Any], Any] = lambda message: message
    """Makes what is encoded of a message, before any time is taken."""


class Unable(Exception):
    """A codec can't send such messages; says why."""


@dataclass(frozen=True)
class Codec:
    """One that takes part.

    Attributes:
        name: as in tables.
        settings: one sentence: how it is called.
        package: the distribution that it is from; empty: Python.
        coder: makes its functions for a workload. It raises ImportError or `Unable`.
    """

    name: str
    settings: str
    package: str
    coder: Callable[[Workload], Coder]

    @property
    def version(self) -> str:
        """Return the distribution and its version."""
        if not self.package:
            return "Python"
        try:
            return f"{self.package} {metadata.version(self.package)}"
        except metadata.PackageNotFoundError:
            return f"{self.package}: not installed"


def _object(_workload: Workload) -> Coder:
    return _frames(shmcast.ObjectCodec())


def _pickle_codec(_workload: Workload) -> Coder:
    return _frames(shmcast.PickleCodec())


def _frames(codec: shmcast.Codec) -> Coder:
    return Coder(codec.encode, codec.decode)


def _pickle(_workload: Workload) -> Coder:
    return Coder(lambda obj: pickle.dumps(obj, 5), pickle.loads)


def _cloudpickle(_workload: Workload) -> Coder:
    cloudpickle: Any = importlib.import_module("cloudpickle")
    return Coder(cloudpickle.dumps, cloudpickle.loads)


def _msgspec_typed(workload: Workload) -> Coder:
    if workload.typed is None:
        raise Unable("the messages have no one type")
    message_type, convert = workload.typed()
    codec = shmcast.MsgspecCodec(message_type)
    return Coder(codec.encode, codec.decode, convert)


def _msgspec_untyped(_workload: Workload) -> Coder:
    import msgspec

    return Coder(msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode)


def _ormsgpack(_workload: Workload) -> Coder:
    ormsgpack: Any = importlib.import_module("ormsgpack")
    options = ormsgpack.OPT_NON_STR_KEYS | ormsgpack.OPT_SERIALIZE_NUMPY
    return Coder(
        lambda obj: ormsgpack.packb(obj, option=options),
        lambda data: ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS),
    )


def _marshal(_workload: Workload) -> Coder:
    return Coder(marshal.dumps, marshal.loads)


OURS, BASELINE = "shmcast", "pickle"
CODECS: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec(OURS, "`ObjectCodec()`, the default", "shmcast", _object),
        Codec("PickleCodec", "shmcast's `PickleCodec()`", "shmcast", _pickle_codec),
        Codec(BASELINE, "`pickle.dumps(obj, 5)`, `pickle.loads`", "", _pickle),
        Codec("cloudpickle", "`cloudpickle.dumps(obj)`, `loads`", "cloudpickle", _cloudpickle),
        Codec(
            "msgspec typed",
            "`MsgspecCodec(type)`; dataclasses are Structs (`array_like=True, gc=False`)",
            "msgspec",
            _msgspec_typed,
        ),
        Codec("msgspec untyped", "`msgspec.msgpack`, an encoder and a decoder that are kept",
              "msgspec", _msgspec_untyped),
        Codec(
            "ormsgpack", "`packb(OPT_NON_STR_KEYS, OPT_SERIALIZE_NUMPY)`", "ormsgpack", _ormsgpack
        ),
        Codec("marshal", "`marshal.dumps`, `marshal.loads`", "", _marshal),
    )
}  # fmt: skip


@dataclass(frozen=True)
class CodecCase:
    """Messages, and how cold the caches are when they are encoded and when they are decoded."""

    workload: Workload
    kind: str
    evicted_mib: int

    def __str__(self) -> str:
        cold = f"{self.evicted_mib} MiB evicted" if self.evicted_mib else "warm"
        return f"{self.workload.name}, {cold}"


ENGINE_WORKLOADS = ("49 B", "0.5 KB", "16 KB", *STEP_WORKLOADS, "trace")


def workloads() -> dict[str, tuple[str, Workload]]:
    """Return what is encoded: the kind and the workload, by name."""
    found = {name: (ENGINE, WORKLOADS[name]) for name in ENGINE_WORKLOADS}
    for name, messages in users.messages().items():
        what = f"An object as users send it: {name}."
        found[name] = (USERS, Workload(name, what, functools.partial(list, messages)))
    return found


def cases(names: Sequence[str] = (), evicted: Sequence[int] = ()) -> list[CodecCase]:
    """Return the cases; of no names, and of no sizes, all.

    Raises:
        ValueError: there is no such workload.
    """
    known = workloads()
    for name in names:
        if name not in known:
            raise ValueError(f"workload {name!r} is none of {'; '.join(known)}")
    return [
        CodecCase(workload, kind, mib)
        for name, (kind, workload) in known.items()
        if not names or name in names
        for mib in evicted or EVICTED_MIB
    ]


def measure(
    case: CodecCase, names: Sequence[str], turns: int, scale: float = 1.0
) -> tuple[list[Row], dict[str, str]]:
    """Measure a case, the codecs in turns of a shuffled order.

    Returns:
        A row for each codec that takes such messages, and why others don't.
    """
    messages = case.workload.make()
    runs: dict[str, _Run] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            runs[name] = _Run(CODECS[name].coder(case.workload), messages, case.evicted_mib)
        except ImportError as error:
            skipped[name] = f"not installed ({error})"
        except Exception as error:
            skipped[f"{name}: {case.workload.name}"] = f"{type(error).__name__}: {error}"[:200]
    order = random.Random(0)  # noqa: S311 (the same in each run, no more)
    gc.collect()
    gc.freeze()
    try:
        for _ in range(turns):
            for name in order.sample([*runs], len(runs)):
                runs[name].turn(SECONDS[case.evicted_mib] * scale)
    finally:
        gc.unfreeze()
    return [_row(case, name, run) for name, run in runs.items()], skipped


class _Run:
    """A codec and the messages of a case; what was measured so far, by turn, in µs.

    Raises:
        Exception: the codec can't take them.
    """

    def __init__(self, coder: Coder, messages: list[Any], evicted_mib: int) -> None:
        self._encode, self._decode = coder.encode, coder.decode
        self._messages = [*map(coder.convert, messages)]
        self._evict = _eviction(evicted_mib)
        first = self._messages[0]
        encoded = coder.encode(first)
        self.is_same = _types(coder.decode(encoded)) == _types(first)
        self.nbytes = sum(map(_size, encoded)) if isinstance(encoded, list) else len(encoded)
        self.encodes: list[Any] = []
        self.decodes: list[Any] = []

    def turn(self, seconds: float) -> None:
        """Encode and decode message after message."""
        clock, evict, encode, decode = time.perf_counter_ns, self._evict, self._encode, self._decode
        overhead = _overhead_ns()
        encodes, decodes = [], []
        end = time.monotonic() + seconds
        kept: list[Any] = []
        for number, message in zip(range(WARM_UP + MESSAGES), self._cycle(), strict=False):
            evict()
            began = clock()
            frames = encode(message)
            ended = clock()
            encodes.append(ended - began - overhead)
            if isinstance(frames, list):  # as a reader gets them: in memory of its own
                frames = [*map(bytearray, frames)]
            kept.clear()  # a reader drops a step before it takes the next
            evict()
            began = clock()
            got = decode(frames)
            ended = clock()
            kept.append(got)
            del got
            decodes.append(ended - began - overhead)
            if number > 2 * WARM_UP and time.monotonic() > end:
                break
        for times, into in ((encodes, self.encodes), (decodes, self.decodes)):
            into.append(np.maximum(np.array(times[WARM_UP:], float), 1) / 1e3)

    def _cycle(self) -> Iterator[Any]:
        at = sum(map(len, self.encodes))
        while True:
            yield self._messages[at % len(self._messages)]
            at += 1


def _size(frame: Any) -> int:
    return int(memoryview(frame).nbytes)


def _types(obj: Any) -> str:
    """Return an object's type and those of all that it holds."""
    parts: list[str] = []
    if isinstance(obj, dict):
        parts = [*map(_types, obj), *map(_types, obj.values())]
    elif isinstance(obj, list | tuple):
        parts = [*map(_types, obj)]
    elif isinstance(obj, set | frozenset):
        parts = sorted(map(_types, obj))
    elif isinstance(obj, np.ndarray):
        parts = [str(obj.dtype)]
    elif dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        parts = [_types(getattr(obj, each.name)) for each in dataclasses.fields(obj)]
    elif hasattr(obj, "__struct_fields__"):
        parts = [_types(getattr(obj, name)) for name in obj.__struct_fields__]
    return f"{type(obj).__qualname__}({', '.join(parts)})"


def _overhead_ns() -> int:
    """Return what the clock itself takes."""
    clock = time.perf_counter_ns
    return min(-(clock() - clock()) for _ in range(20))


def _eviction(mebibytes: int) -> Callable[[], object]:
    """Return a function that writes to so much memory, in place of what caches hold."""
    if not mebibytes:
        return lambda: None
    memory = np.zeros((mebibytes << 20) // 8)

    def evict() -> None:
        np.add(memory, 1, out=memory)

    return evict


def _row(case: CodecCase, name: str, run: _Run) -> Row:
    both = [e + d for e, d in zip(run.encodes, run.decodes, strict=True)]
    row: Row = {
        "workload": case.workload.name,
        "kind": case.kind,
        "codec": name,
        "evicted_mib": case.evicted_mib,
        "bytes": run.nbytes,
        "is_same": run.is_same,
        "messages": sum(map(len, both)),
        "turns": len(both),
    }
    for figure, turns in (("encode", run.encodes), ("decode", run.decodes), ("both", both)):
        low, high = intervals.interval(turns, intervals.percentile(50))
        found = {"": float(np.median(np.concatenate(turns))), "_low": low, "_high": high}
        row |= {f"{figure}_p50{end}_us": round(value, 4) for end, value in found.items()}
    return row

"""Ranges around the steps of a message, for a profiler that the operator has chosen.

They are put around what an endpoint calls when the endpoint is made. Without a choice the calls are
what they are, and nothing of this is on a message's way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shmcast._codecs.base import Frame, Received
from shmcast._endpoints import settings
from shmcast._endpoints.frame_reader import Messages
from shmcast._endpoints.frame_writer import Outbox

ENCODE = "shmcast.encode"
PUBLISH = "shmcast.publish"
WAIT = "shmcast.wait"
DECODE = "shmcast.decode"

_Call = TypeVar("_Call", bound=Callable[..., Any])


@dataclass(frozen=True)
class Tracer:
    """A profiler's ranges.

    Attributes:
        begin: begins a range of this name in this thread, and returns a mark.
        end: is given the mark of the range that began last, and ends it.
    """

    begin: Callable[[str], Any]
    end: Callable[[Any], object]


def chosen() -> Tracer | None:
    """Return what the operator has chosen; None: nothing is traced.

    Raises:
        InvalidArgument: there is no such profiler here.
    """
    profilers = {"nvtx": _nvtx, "torch": _torch}
    return settings.choice(settings.TRACE, profilers, ("off", "none", "0"))


def _nvtx() -> Tracer:
    from torch.cuda import nvtx

    untyped: Any = nvtx
    untyped.mark("shmcast")  # raises where torch is without it
    return Tracer(untyped.range_push, lambda _depth: untyped.range_pop())


def _torch() -> Tracer:
    from torch.profiler import record_function

    untyped: Any = record_function
    return Tracer(
        lambda name: untyped(name).__enter__(), lambda entered: entered.__exit__(None, None, None)
    )


def call(tracer: Tracer | None, name: str, called: _Call) -> _Call:
    """Return a function with a range of this name around each of its calls."""
    if tracer is None:
        return called

    def traced(*args: Any) -> Any:
        mark = tracer.begin(name)
        try:
            return called(*args)
        finally:
            tracer.end(mark)

    return traced  # type: ignore[return-value]


def outbox(tracer: Tracer | None, real: Outbox) -> Outbox:
    """Return an outbox with a range around what it publishes, the wait for room included."""
    return real if tracer is None else _TracedOutbox(tracer, real)


def messages(
    tracer: Tracer | None, real: Messages, keep: Callable[[list[Received]], None]
) -> Messages:
    """Return messages with a range around the wait for each.

    Args:
        tracer: None: nothing is traced.
        real: the messages.
        keep: takes frames back, which the next call returns again; see `TracedWaits`.
    """
    if tracer is None:
        return real
    traced: Any = TracedWaits(tracer, real, lambda asked: isinstance(asked, tuple), keep)
    return traced  # type: ignore[no-any-return]


class _TracedOutbox:
    def __init__(self, tracer: Tracer, real: Outbox) -> None:
        self._tracer = tracer
        self._real = real

    def __setitem__(self, timeout: float | None, frames: Sequence[Frame], /) -> None:
        mark = self._tracer.begin(PUBLISH)
        try:
            self._real[timeout] = frames
        finally:
            self._tracer.end(mark)  # (of a signal's error that comes here, `was_sent` tells)


class TracedWaits:
    """What is received by a subscription, with a range around the wait for it.

    Args:
        tracer: begins and ends it.
        real: what is subscribed.
        waits: whether what is asked for is waited for: a task that awaits only looks.
        keep: takes back what was received; a signal's handler may raise before it is returned. It
            is given what was asked for after the time-out and `copy`, and what was received. It is
            a method of the core's: in a function of Python's another signal may come first.
    """

    def __init__(
        self,
        tracer: Tracer,
        real: Any,
        waits: Callable[[Any], bool],
        keep: Callable[..., None],
    ) -> None:
        self._tracer = tracer
        self._real = real
        self._waits = waits
        self._keep = keep

    def __getitem__(self, asked: Any, /) -> Any:
        if not self._waits(asked):
            return self._real[asked]
        mark = self._tracer.begin(WAIT)
        received = ...
        try:
            received = self._real[asked]  # (no call: see `FrameReader.messages`)
            self._tracer.end(mark)
            return received
        except BaseException:
            if received is ...:
                self._tracer.end(mark)
            else:
                self._keep(*asked[2:], received)  # first of all, see above
            raise

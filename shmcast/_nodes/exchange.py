"""Gather by a function of the caller's own, without a process group.

A rank that fails in one step would leave the others waiting in the next. So it takes part in that,
too, and tells why it has failed. Behind the last step comes one more for that; who fails there has
an end that it gives up, which the others' ends notice.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shmcast._endpoints.arguments import integer
from shmcast._nodes.stamp import SIZE, check_stamp, is_stamped, stamp
from shmcast.errors import InvalidArgument, SegmentError

AllGather = Callable[[bytes], Sequence[bytes]]
"""Is given this rank's bytes and returns every rank's, by rank."""


def check_exchange(exchange: AllGather, rank: int, size: int) -> tuple[int, int]:
    """Check what the caller has said of the ranks; return the rank and their number.

    Raises:
        InvalidArgument: there is no such rank; the others have been told.
    """
    if not callable(exchange):
        raise InvalidArgument(
            f"exchange={exchange!r} is no function that takes this rank's bytes and returns a list "
            "of every rank's"
        )
    try:
        return _checked(rank, size)
    except InvalidArgument as error:
        Exchange(exchange, rank, size, "").refuse(error)
        raise


def _checked(rank: object, size: object) -> tuple[int, int]:
    ranks = integer(size)
    if ranks is None or ranks < 1:
        raise InvalidArgument(f"size={size!r} is no number of ranks: there is at least this one")
    place = integer(rank)
    if place is None or not 0 <= place < ranks:
        raise InvalidArgument(
            f"rank={rank!r} is no rank of size={ranks}: they are numbered from 0 to {ranks - 1}"
        )
    return place, ranks


@dataclass(frozen=True)
class _Message:
    """What a rank has to say in one step."""

    rank: int
    size: int
    step: int
    error: str
    """Why the rank can't go on; "": it can."""
    thing: Any


class Exchange:
    """Gathers objects from all ranks, step by step.

    Args:
        exchange: the caller's function.
        rank: this process's.
        size: the number of ranks.
        label: how errors name this rank.
    """

    def __init__(self, exchange: AllGather, rank: int, size: int, label: str) -> None:
        self._exchange = exchange
        self._rank = rank
        self._size = size
        self._step = 0
        self._label = label

    def gather(self, mine: Any, meanwhile: Callable[[], object]) -> list[Any]:
        """Return every rank's object, by rank.

        Args:
            mine: this rank's.
            meanwhile: called before the exchange, which leaves nothing to be done beside it.

        Raises:
            InvalidArgument: `exchange` does not do what it should, or the ranks don't fit together.
            SegmentMismatch: a rank has another version of shmcast.
            SegmentError: `exchange` has failed; or another rank has, and says why.
        """
        data = self._next(mine)
        meanwhile()
        try:
            messages = self._ask(data)
        except (InvalidArgument, SegmentError) as error:
            self.refuse(error)
            raise
        return self._things(messages)

    def conclude(self) -> None:
        """Tell the others that this rank has come through all steps, and hear it of them.

        Raises:
            ShmcastError: what `gather` raises.
        """
        # (A rank that is alone begins here. Others may think otherwise, and will hear of it.)
        if self._size == 1:
            self.gather(None, lambda: None)
        else:
            self._things(self._ask(self._next(None)))

    def refuse(self, error: BaseException) -> None:
        """Take part in one more step, to tell the others why this rank can't go on."""
        data = self._next(None, str(error) or type(error).__name__)
        with contextlib.suppress(Exception):  # (there is an error already)
            self._exchange(data)

    def _next(self, thing: Any, error: str = "") -> bytes:
        self._step += 1
        return stamp() + pickle.dumps(_Message(self._rank, self._size, self._step, error, thing))

    def _things(self, messages: list[_Message]) -> list[Any]:
        """Return what the ranks have sent.

        Raises:
            SegmentError: one has told that it can't go on.
        """
        failed = [f"rank {message.rank}: {message.error}" for message in messages if message.error]
        if failed:
            raise SegmentError(f"{self._label}: could not set up: {'; '.join(failed)}")
        return [message.thing for message in messages]

    def _ask(self, data: bytes) -> list[_Message]:
        try:
            parts = self._exchange(data)
        except Exception as error:
            raise SegmentError(
                f"{self._label}: set-up: exchange failed: {type(error).__name__}: {error}"
            ) from error
        messages = self._read(parts)
        if any(message.error for message in messages):
            return messages  # whose ranks and sizes may be what is wrong
        self._check(messages)
        if bytes(parts[self._rank]) != data:
            raise self._wrong(f"the bytes at place {self._rank} are not those that it was given")
        return messages

    def _read(self, parts: object) -> list[_Message]:
        if not isinstance(parts, list | tuple):
            raise self._wrong(f"it is a {type(parts).__qualname__}")
        messages = []
        for place, part in enumerate(parts):
            if not isinstance(part, bytes | bytearray | memoryview):
                raise self._wrong(f"a {type(part).__qualname__} is at place {place}")
            if not is_stamped(part):
                raise self._wrong(f"what is at place {place} is no message of a set-up")
            check_stamp(part, f"rank {place}", self._label)
            try:
                message = pickle.loads(part[SIZE:])  # noqa: S301 (as torch's)
            except Exception as error:
                raise self._wrong(f"what is at place {place} can't be read: {error}") from error
            if not isinstance(message, _Message):
                raise self._wrong(f"what is at place {place} is no message of a set-up")
            messages.append(message)
        return messages

    def _check(self, messages: list[_Message]) -> None:
        sizes = [message.size for message in messages]
        if any(size != self._size for size in sizes):
            raise InvalidArgument(
                f"{self._label}: the ranks name different sizes, in the order of exchange's list "
                f"{sizes}; pass the same size on every rank"
            )
        if len(messages) != self._size:
            raise self._wrong(f"it has {len(messages)} of them")
        ranks = [message.rank for message in messages]
        if len({*ranks}) < len(ranks):
            raise InvalidArgument(
                f"{self._label}: several processes say that they are the same rank, in the "
                f"order of exchange's list {ranks}; each needs a rank of its own"
            )
        if ranks != [*range(self._size)]:
            raise self._wrong(f"they are in the order of ranks {ranks}")
        steps = [message.step for message in messages]
        if any(step != self._step for step in steps):
            raise self._wrong(f"they are of the steps {steps} of the set-up, this is {self._step}")

    def _wrong(self, what: str) -> InvalidArgument:
        return InvalidArgument(
            f"{self._label}: set-up: exchange must return a list of {self._size} byte strings, of "
            f"which number r is what rank r has passed to the same call; {what}"
        )

"""The collectives of a set-up: what each rank has to say goes to all, in time or not at all.

Imported once torch is in use.
"""

from __future__ import annotations

import contextlib
import functools
import math
import pickle
import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from shmcast._group.arrivals import Arrivals
from shmcast._group.parties import Parties
from shmcast._group.process_group import device_of, group_name, members, resolved, store_of
from shmcast._nodes.stamp import SIZE, check_stamp, stamp
from shmcast.errors import SegmentError, Timeout

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Between two looks: an eighth of the time waited, so that no wait is made much longer by them.
_SHORTEST_PAUSE = 2e-5  # (gloo gathers from two ranks in 0.15 ms)
_LONGEST_PAUSE = 0.01
_LOOK_SECONDS = 0.5
_ROOM = 4096  # bytes; what every rank sends at once, which is enough but for large groups
_LENGTH = struct.Struct("<Q")


def parties_of(group: ProcessGroup | None) -> Parties:
    """Return the ranks of a process group; None is the default group.

    Raises:
        InvalidArgument: this process is not in the group.
    """
    ranks, rank = members(group)
    group = resolved(group)
    gatherer = functools.partial(Gathering, group) if len(ranks) > 1 else None
    return Parties(ranks, rank, gatherer, group, group_name(group), store_of(group))


class Gathering:
    """Gathers objects from all ranks of a group, step by step.

    Args:
        group: the process group.
        label: how errors name this rank.
        names: how errors name the ranks, by rank in the group.
        timeout: seconds for all steps together; None: for each, the process group's own time-out.
    """

    def __init__(
        self,
        group: ProcessGroup,
        label: str,
        names: Sequence[str],
        timeout: float | None,
    ) -> None:
        self._group = group
        self._size = group.size()
        self._device = device_of(group)
        self._label = label
        self._names = names
        self._timeout = timeout
        self._deadline = math.inf if timeout is None else time.monotonic() + timeout
        store = store_of(group)
        self._arrivals = None if store is None else Arrivals(store, group.rank(), self._size)

    def gather(self, mine: Any, meanwhile: Callable[[], object]) -> list[Any]:
        """Return every rank's object, by rank in the group.

        Args:
            mine: this rank's.
            meanwhile: called while this waits for the others.

        Raises:
            Timeout: a rank did not come in time, and this or another rank has given up.
            SegmentMismatch: a rank has another version of shmcast.
            SegmentError: the process group failed.
        """
        if self._arrivals is not None:
            self._arrivals.arrive()
            if self._timeout is not None:
                self._arrivals.wait(self._deadline)
                self._check_given_up()
        pickled = pickle.dumps(mine)
        data = stamp() + _LENGTH.pack(len(pickled)) + pickled
        parts = self._gather_bytes(data, _ROOM, meanwhile)
        for part, name in zip(parts, self._names, strict=True):
            check_stamp(part, name, self._label)
        lengths = [_LENGTH.unpack_from(part, SIZE)[0] for part in parts]
        begin = SIZE + _LENGTH.size
        if (longest := begin + max(lengths)) > _ROOM:
            parts = self._gather_bytes(data, longest, None)
        return [
            pickle.loads(part[begin : begin + length])  # noqa: S301 (as torch's)
            for part, length in zip(parts, lengths, strict=True)
        ]

    def conclude(self) -> None:
        """Do nothing: what fails on a rank ends a step for all."""

    def _gather_bytes(
        self, mine: bytes, room: int, meanwhile: Callable[[], object] | None
    ) -> list[bytes]:
        """Return the first `room` bytes of every rank's, padded with zeros."""
        here = torch.frombuffer(bytearray(mine[:room].ljust(room, b"\0")), dtype=torch.uint8)
        return [part.numpy().tobytes() for part in self._gather_tensors(here, meanwhile)]

    def _gather_tensors(
        self, mine: torch.Tensor, meanwhile: Callable[[], object] | None
    ) -> list[torch.Tensor]:
        here = mine.to(self._device)
        parts = [torch.empty_like(here) for _ in range(self._size)]
        try:
            work = self._group.allgather([parts], [here])
            if meanwhile is not None:
                meanwhile()
            self._wait(work)
        except RuntimeError as error:
            self._fail(error)
        return [part.cpu() for part in parts]

    def _wait(self, work: Any) -> None:
        began = time.monotonic()
        look_at = began + _LOOK_SECONDS
        while not work.is_completed():
            now = time.monotonic()
            if now >= look_at:
                look_at = now + _LOOK_SECONDS
                self._check_given_up()
            if now >= self._deadline:
                raise Timeout(
                    f"{self._label}: set-up timed out after {self._timeout} s: "
                    f"{self._missing() or 'all ranks have come, but their process group hangs'}. "
                    "A collective of the process group is left unfinished: make a new group"
                )
            time.sleep(min(max((now - began) / 8, _SHORTEST_PAUSE), _LONGEST_PAUSE))
        work.wait()  # raises its error

    def _check_given_up(self) -> None:
        given_up = self._arrivals.given_up() if self._arrivals is not None else None
        if given_up is None:
            return
        rank, missing = given_up
        names = ", ".join(self._names[rank] for rank in missing) or "some rank"
        raise Timeout(
            f"{self._label}: set-up: {self._names[rank]} gave up waiting for {names}, which had "
            "not come in time: every rank of the group must make the broadcaster, at the same "
            "point of its program. All ranks may try again"
        )

    def _fail(self, error: RuntimeError) -> NoReturn:
        missing = self._missing()
        raise SegmentError(
            f"{self._label}: set-up: the process group failed: {error}"
            f"{f' ({missing})' if missing else ''}"
        ) from error

    def _missing(self) -> str:
        """Describe who has not come to this step; "" where that is not known."""
        missing: list[int] = []
        if self._arrivals is not None:
            with contextlib.suppress(RuntimeError):  # the store may have died with its rank
                missing = self._arrivals.missing()
        names = ", ".join(self._names[rank] for rank in missing)
        return f"{names} {'have' if len(missing) > 1 else 'has'} not come" if missing else ""

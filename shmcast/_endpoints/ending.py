"""How an endpoint ends: in order, from whatever state of its set-up, and each step in any case."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Iterator

from shmcast._host import reports
from shmcast._host.signals import is_interruption
from shmcast._host.system_errors import explained
from shmcast.errors import HostError, SegmentError, ShmcastError


class Ending:
    """The steps that end an endpoint. In a fork of its process, none of them is taken.

    A step is done once, and the others are done whatever it raises. One that a signal's handler
    interrupts is taken again: steps are idempotent. If even that is interrupted, the next call goes
    on.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []
        self._owner_pid = os.getpid()

    def add(self, *steps: Callable[[], object]) -> None:
        """Take these steps, too, after those that were added before."""
        self._steps += steps

    def begin_with(self, step: Callable[[], object]) -> None:
        """Take this step, too, before all others."""
        self._steps.insert(0, step)

    def __call__(self) -> None:
        """Take all steps that were not taken yet; then raise what the first bad one raised."""
        first: BaseException | None = None
        while os.getpid() == self._owner_pid:
            step = next(iter(self._steps), None)  # (another thread may be here, too)
            if step is None:
                break
            try:
                step()
            except BaseException as error:
                first = first or error
                if is_interruption(error):
                    continue
            with contextlib.suppress(ValueError):  # another thread, or a handler, was here
                self._steps.remove(step)
        if first is not None:
            raise first


@contextlib.contextmanager
def setting_up(label: str, ending: Ending) -> Iterator[None]:
    """If the set-up of an endpoint fails, end what there is of it, and say whose it was.

    From the first on, the process tells who asks what its threads do, if the operator wants it.

    Args:
        label: how errors name the endpoint.
        ending: gets its steps as there is something to end.

    Raises:
        ShmcastError: what the set-up has raised; in place of any OSError, too.
    """
    try:
        reports.listen()
        yield
    except BaseException as error:
        # The error is what counts; what goes wrong with the ending is likely to come of it.
        with contextlib.suppress(Exception):
            ending()
        # Its frames may live on, in a cycle (on 3.13 they do), and would keep descriptors open.
        traceback.clear_frames(error.__traceback__)
        if isinstance(error, SegmentError | HostError):
            raise _labelled(error, label) from error.__cause__
        if isinstance(error, OSError) and not isinstance(error, ShmcastError):
            raise explained(error, f"{label}: set-up") from error
        raise


def _labelled(error: SegmentError | HostError, label: str) -> ShmcastError:
    if label in str(error):
        return error
    if isinstance(error, OSError):
        return type(error)(error.errno, f"{label}: {error.strerror}")
    return type(error)(f"{label}: {error}")

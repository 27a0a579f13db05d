"""What a machine may refuse the tests: it skips them, and says what was refused."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None
"""A Python may be too new, or too free of the GIL, for a wheel of torch."""

needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="there is no torch here")
"""For tests whose programs import it: others are skipped by the import's failure."""

IS_FREE_THREADED = not getattr(sys, "_is_gil_enabled", lambda: True)()

by_core = pytest.mark.skipif(
    IS_FREE_THREADED, reason="without the GIL pickle encodes all objects, and nothing is practised"
)
"""For tests of what only the core's own codec does."""

needs_checkout = pytest.mark.skipif(
    not (Path(__file__).parents[2] / "bench" / "results").is_dir(), reason="not in a checkout"
)
"""For tests of what a source distribution leaves out: results, and who links to them."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do that to a process")

needs_mounts = pytest.mark.usefixtures("mounts")
"""Skips a test before it starts processes, of which one would be refused what others wait for."""

needs_own_shm = needs_mounts
"""Skips a test that leaves what another program of this user would remove."""


class NotPermitted(Exception):
    """This machine refuses what a test or fixture does, which says what: it is skipped."""

    @classmethod
    def because(cls, what: str) -> NotPermitted:
        """Return the error of the system call that ctypes made last."""
        return cls(f"{what}: {os.strerror(ctypes.get_errno())}")


def refusal(error: BaseException) -> NotPermitted | None:
    """Return why the test is to be skipped: it is not permitted something, or there is no torch."""
    if isinstance(error, NotPermitted):
        return error
    if isinstance(error, ImportError) and "torch" in str(error) and not HAS_TORCH:
        return NotPermitted("there is no torch here")
    return None


@contextlib.contextmanager
def skipping() -> Iterator[None]:
    """Skip a test that is refused something."""
    try:
        yield
    except (NotPermitted, ImportError) as error:
        if (why := refusal(error)) is None:
            raise
        pytest.skip(str(why))

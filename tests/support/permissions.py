"""What a machine may refuse the tests: it skips them, and says what was refused."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

import pytest

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


@contextlib.contextmanager
def skipping() -> Iterator[None]:
    """Skip the test that is not permitted what it does."""
    try:
        yield
    except NotPermitted as why:
        pytest.skip(str(why))

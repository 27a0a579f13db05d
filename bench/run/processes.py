"""The processes of the suites that have no crew: each plays a role, at the other end of a pipe."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

CONTEXT = multiprocessing.get_context("spawn")
SECONDS = 120.0
"""For an answer, or an end."""


@contextlib.contextmanager
def member(role: Callable[..., None], *args: Any) -> Iterator[Connection]:
    """Run `role(pipe, *args)` in a process of its own, until this end of its pipe is closed."""
    mine, its = CONTEXT.Pipe()
    process = CONTEXT.Process(target=role, args=(its, *args), daemon=True)
    process.start()
    its.close()
    try:
        yield mine
    finally:
        mine.close()
        process.join(SECONDS)
        process.kill()
        process.join()


def answer(connection: Connection, suite: str) -> Any:
    """Return what a member sends next.

    Raises:
        RuntimeError: it has ended, or sends nothing; names the suite.
    """
    if not connection.poll(SECONDS):
        raise RuntimeError(f"{suite}: a member has not answered in {SECONDS:g} s")
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError(f"{suite}: a member has ended") from None

"""Event loops that run a test's coroutine function, and what members of one process do in them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import trio
import uvloop

Main = Callable[[], Coroutine[Any, Any, Any]]
Run = Callable[[Main], Any]


def in_asyncio(main: Main) -> Any:
    async def run() -> Any:
        return await main()

    return asyncio.run(run())


def in_uvloop(main: Main) -> Any:
    async def run() -> Any:
        return await main()

    return uvloop.run(run())


def in_trio(main: Main) -> Any:
    return trio.run(main)


LOOPS: list[Run] = [in_asyncio, in_uvloop, in_trio]


async def all_of(*tasks: Main) -> None:
    """Run all of them to their end, in whatever loop this is."""
    async with anyio.create_task_group() as group:
        for task in tasks:
            group.start_soon(task)


@contextmanager
def once(condition: Callable[[], bool], act: Callable[[], object]) -> Iterator[None]:
    """Act in another thread once something is so."""
    over = threading.Event()

    def watch() -> None:
        while not condition() and not over.wait(0.001):
            pass
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

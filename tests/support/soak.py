"""Soak: millions of messages through one ring; memory and descriptors stay as they are.

python -m tests.support.soak --messages 10000000        # make soak, about a minute
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from shmcast import Reader, Writer
from shmcast._endpoints.handle import Handle

LOOKS = 10
ROOM_BYTES = 2 << 20
"""Memory may grow by so much after the first look: arenas of malloc, the interpreter's caches."""


@dataclass(frozen=True)
class Look:
    """A process at one moment."""

    messages: int
    resident_bytes: int
    descriptors: int


def _look(messages: int) -> Look:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    descriptors = len([*Path("/proc/self/fd").iterdir()])
    return Look(messages, pages * os.sysconf("SC_PAGE_SIZE"), descriptors)


def _message(number: int) -> Any:
    """Return a message: mostly small; now and then with its own frame, or larger than a slot."""
    if number % 1000 == 0:
        return np.full(number % 30_000, number)
    return {"step": number, "ids": [1, 2, 3], "done": False}


def _receive(handle: Handle, messages: int, results: Connection) -> None:
    looks = []
    with Reader(handle, 0) as reader:
        results.send("attached")
        for number in range(messages):
            got = reader.recv(60)
            if number % 1000 and got["step"] != number:
                raise AssertionError(f"message {number} is {got}")
            if number % (messages // LOOKS) == messages // LOOKS - 1:
                looks.append(_look(number + 1))
    results.send(looks)


def run(messages: int) -> dict[str, list[Look]]:
    """Send `messages`; return what writer and reader looked like on the way."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    looks = []
    with Writer(1) as writer:
        process = context.Process(target=_receive, args=(writer.handle, messages, theirs))
        process.start()
        theirs.close()
        ours.recv()  # the reader has said who it is, and from wait_ready() on it is watched
        writer.wait_ready()
        for number in range(messages):
            writer.send(_message(number), 60)
            if number % (messages // LOOKS) == messages // LOOKS - 1:
                looks.append(_look(number + 1))
        received = ours.recv()
        process.join()
    return {"writer": looks, "reader": received}


def check(looks: dict[str, list[Look]]) -> None:
    """Raise AssertionError if a process has grown after its first look."""
    for who, seen in looks.items():
        first, last = seen[0], seen[-1]
        grown = max(look.resident_bytes for look in seen) - first.resident_bytes
        if grown > ROOM_BYTES or last.descriptors > first.descriptors:
            raise AssertionError(f"the {who} grew by {grown} bytes: {seen}")


def main(
    messages: Annotated[int, typer.Option(help="how many", min=LOOKS)] = 10_000_000,
) -> None:
    """Print memory and descriptors on the way. Status 1 if they grow."""
    looks = run(messages)
    for who, seen in looks.items():
        for look in seen:
            print(  # noqa: T201
                f"{who}: {look.messages:>12,} messages, {look.resident_bytes / 2**20:.1f} MiB "
                f"resident, {look.descriptors} descriptors"
            )
    try:
        check(looks)
    except AssertionError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    typer.run(main)

"""Whether 213 MB go through a /dev/shm of 64 MiB, and the arena stays within its bound.

    python bench/memory.py        # as root: it needs a mount namespace of its own

There is nothing to time here. Arrays of 213 MB and 20 MB go to a reader that keeps views, with no
arena, with one that is smaller than /dev/shm, and with one that is allowed more than there is.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console

import shmcast

SHM_BYTES = 64 << 20
ARENAS = (0, 48 << 20, 1 << 30)
SIZES = (213_000_000, *[20_000_000] * 4, 213_000_000)
PATIENCE_SECONDS = 120.0
_SHM = Path("/dev/shm")  # noqa: S108 (the one that is put in its place)
_LOOK_SECONDS = 0.002
_INSIDE = "SHMCAST_BENCH_MEMORY_INSIDE"
_MOUNT = f'mount -t tmpfs -o size={SHM_BYTES} tmpfs {_SHM} && exec "$@"'


def check() -> list[dict[str, Any]] | str:
    """A row for each of ARENAS; or why that can't be found out here."""
    if os.geteuid() != 0:
        return "a private /dev/shm needs root"
    unshare = ["unshare", "--mount", "sh", "-c", _MOUNT, "sh"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:  # noqa: S603
        return "no mount namespaces here"
    done = subprocess.run(  # noqa: S603 (this very file)
        [*unshare, sys.executable, __file__],
        env=os.environ | {_INSIDE: "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the check of the memory failed:\n{done.stderr}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


class _Meter:
    """The most that an arena and /dev/shm had while it ran, looked at every 2 ms."""

    def __init__(self, arena_fd: int | None) -> None:
        self._arena_fd = arena_fd
        self.most_arena = self.most_shm = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> _Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(_LOOK_SECONDS):
            if self._arena_fd is not None:
                arena = os.fstat(self._arena_fd).st_blocks * 512
                self.most_arena = max(self.most_arena, arena)
            shm = os.statvfs(_SHM)
            self.most_shm = max(self.most_shm, (shm.f_blocks - shm.f_bfree) * shm.f_frsize)


def _row(arena_bytes: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    sums = context.SimpleQueue()
    with shmcast.Writer(1, arena_bytes=arena_bytes) as writer:
        reader = context.Process(target=_keeper, args=(writer.handle, sums), daemon=True)
        reader.start()
        arena = writer.handle.arena
        with _Meter(arena.fd if arena else None) as meter:
            for i, nbytes in enumerate(SIZES):
                writer.send(np.full(nbytes, i + 1, np.uint8), PATIENCE_SECONDS)
            arrived = [sums.get() for _ in SIZES]
        reader.join(PATIENCE_SECONDS)
        statistics = writer.statistics()
    right = arrived == [nbytes * (i + 1) for i, nbytes in enumerate(SIZES)]
    return {
        "arena_bytes": arena_bytes,
        "most_arena_bytes": meter.most_arena,
        "most_shm_bytes": meter.most_shm,
        "shm_bytes": SHM_BYTES,
        "arena_frames": statistics.arena_frames,
        "arena_full": statistics.arena_full,
        "ok": right and meter.most_arena <= arena_bytes and meter.most_shm <= SHM_BYTES,
    }


def _keeper(handle: shmcast.Handle, sums: SimpleQueue[int]) -> None:
    """Receives all and keeps it, so that the arena has no room some time."""
    with shmcast.Reader(handle, 0) as reader:
        kept = [reader.recv(PATIENCE_SECONDS, copy=False) for _ in SIZES]
    for array in kept:
        sums.put(int(array.sum(dtype=np.uint64)))


def describe(found: list[dict[str, Any]] | str) -> str:
    """What `check` has found, a line for each arena."""
    if isinstance(found, str):
        return f"memory: skipped: {found}"
    mib = 1 << 20
    return "\n".join(
        f"memory: arena_bytes={row['arena_bytes'] / mib:g} MiB: "
        f"{'all arrived' if row['ok'] else 'FAILED'}; {row['arena_frames']} arrays in the arena, "
        f"{row['arena_full']} streamed for want of room; at most {row['most_arena_bytes'] / mib:g} "
        f"MiB of arena, {row['most_shm_bytes'] / mib:g} of {row['shm_bytes'] / mib:g} MiB in all"
        for row in found
    )


def main() -> None:
    """Prints what was found."""
    if _INSIDE in os.environ:
        print(json.dumps([_row(arena_bytes) for arena_bytes in ARENAS]))  # noqa: T201 (for check)
    else:
        Console().print(describe(check()))


if __name__ == "__main__":
    typer.run(main)

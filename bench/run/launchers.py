"""The ways to start a crew's processes: multiprocessing, mpiexec, Ray's actors, two hosts."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.run import hosts, member
from bench.transports.base import Launcher, Skipped

ROOT = Path(__file__).parents[2]
END_SECONDS = 20.0
"""How long processes that were told to leave may take."""
BUSY_END_SECONDS = 1.0
"""The same, when an exception ends their context, because they may be in the middle of a turn."""

Counters = Callable[[], dict[str, int]]
"""Returns what is counted around the processes: see `Crew.counters`."""


def launch(
    launcher: Launcher, size: int, folder: str, settings: dict[str, str]
) -> contextlib.AbstractContextManager[Counters]:
    """Return a context in which the processes live, and which ends them.

    Args:
        launcher: the way to start them.
        size: how many, the source included.
        folder: the crew's, in which they find the coordinator.
        settings: environment variables for them.

    Raises:
        Skipped: this machine can't start them (raised on entering).
    """
    return _LAUNCHERS[launcher](size, folder, settings)


def _nothing() -> dict[str, int]:
    return {}


@contextlib.contextmanager
def _spawn(size: int, folder: str, settings: dict[str, str]) -> Iterator[Counters]:
    """Use multiprocessing's spawn, as users of CUDA must, with a Pipe and a Queue a reader."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(size - 1)]
    queues = [context.Queue() for _ in range(size - 1)]
    processes = []
    for rank in range(size):
        inherited = {
            "pipes": [pipes[rank - 1][0]] if rank else [sender for _, sender in pipes],
            "queues": [queues[rank - 1]] if rank else queues,
        }
        args = (rank, size, folder, settings, inherited)
        process = context.Process(target=member.serve, args=args, daemon=True)
        processes.append(process)
    with _in_environment(settings), _deaf_to_interrupts():
        for process in processes:
            process.start()
    for pipe in pipes:
        for end in pipe:
            end.close()
    patience = END_SECONDS
    try:
        yield _nothing
    except BaseException:
        patience = BUSY_END_SECONDS
        raise
    finally:
        for process in processes:
            process.join(patience)
            process.kill()
            process.join()


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Let processes that are started ignore Ctrl-C: this one hears it, and tells them to leave."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _in_environment(settings: dict[str, str]) -> Iterator[None]:
    """Set variables which libraries may read while they are loaded, before `serve` sets them."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _mpiexec(size: int, folder: str, settings: dict[str, str]) -> Iterator[Counters]:
    """Use MPI's own launcher, from this environment's bin."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists() or not importlib.util.find_spec("mpi4py"):
        raise Skipped("no mpi4py with mpich's wheel here")
    command = [str(mpiexec), "-n", str(size), sys.executable, "-m", member.__name__, folder]
    with _ended([_start(command, settings)]):
        yield _nothing


@contextlib.contextmanager
def _hosts(size: int, folder: str, settings: dict[str, str]) -> Iterator[Counters]:
    """Start one half of the processes on each of two hosts."""
    try:
        network = hosts.Network(["first", "second"])
    except hosts.NotPermitted as why:
        raise Skipped(str(why)) from why
    with contextlib.closing(network):
        first, second = network.hosts
        near = size - size // 2
        started = []
        for rank in range(size):
            where = first if rank < near else second
            program = (sys.executable, "-m", member.__name__, folder, str(rank), str(size))
            started.append(_start(where.inside(*program), settings | network.environment))
        with _ended(started):
            yield lambda: network.counters(1)


def _start(command: Sequence[str], settings: dict[str, str]) -> subprocess.Popen[bytes]:
    with _deaf_to_interrupts():
        return subprocess.Popen(  # noqa: S603
            command, cwd=ROOT, env=os.environ | settings, stdin=subprocess.DEVNULL
        )


@contextlib.contextmanager
def _ended(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Wait for processes on leaving; kill those that don't end."""
    patience = END_SECONDS
    try:
        yield
    except BaseException:
        patience = BUSY_END_SECONDS
        raise
    finally:
        for process in processes:
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _Actor:
    """A member in a process of Ray's."""

    def serve(self, *args: Any) -> None:
        member.serve(*args)


@contextlib.contextmanager
def _ray(size: int, folder: str, settings: dict[str, str]) -> Iterator[Counters]:
    """Use actors of a local cluster, who know one another, as a channel's writer must."""
    try:
        import ray
    except ImportError as error:
        raise Skipped(f"ray: {error}") from error
    with _in_environment(settings | {"PYTHONPATH": str(ROOT)}):
        ray.init(
            address="local",
            num_cpus=size,
            num_gpus=0,
            object_store_memory=1 << 30,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
    try:
        actors = [ray.remote(_Actor).options(num_cpus=1).remote() for _ in range(size)]
        served = [
            actor.serve.remote(rank, size, folder, settings, {"actors": actors})
            for rank, actor in enumerate(actors)
        ]
        yield _nothing
        ray.wait(served, num_returns=size, timeout=END_SECONDS)
        # Only so do they remove their channels' semaphores.
        ended = [actor.__ray_terminate__.remote() for actor in actors]
        ray.wait(ended, num_returns=size, timeout=END_SECONDS)
    finally:
        ray.shutdown()


_LAUNCHERS: dict[
    Launcher,
    Callable[[int, str, dict[str, str]], contextlib.AbstractContextManager[Counters]],
] = {
    "spawn": _spawn,
    "mpiexec": _mpiexec,
    "ray": _ray,
    "hosts": _hosts,
}

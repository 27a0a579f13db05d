"""The processes that take turns: started in several ways, then told what to do.

Every crew has its own processes, so that what a transport costs in memory and CPU time is its own,
and what goes wrong with it is its own, too.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import Any

from bench.run import member
from bench.transports.base import Launcher, Skipped

ROOT = Path(__file__).parents[2]
START_SECONDS = 90.0
ANSWER_SECONDS = 90.0
END_SECONDS = 20.0


class CrewFailed(Exception):
    """A member raised, ended, or gave no answer; says which, and what is known of why."""


class Crew:
    """Processes that make up one source and its readers.

    Args:
        launcher: how they are started.
        size: how many, the source included.
        settings: environment variables for them.

    Raises:
        Skipped: they can't be started on this machine.
        CrewFailed: they did not come up.
    """

    def __init__(self, launcher: Launcher, size: int, settings: dict[str, str]) -> None:
        self.size = size
        with contextlib.ExitStack() as undo:
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            key = secrets.token_bytes(16)
            (Path(folder) / "key").write_bytes(key)
            (Path(folder) / member.TAKEN).write_bytes(bytes(8 * member.APART * size))
            listener = undo.enter_context(
                Listener(str(Path(folder) / "control"), "AF_UNIX", size, authkey=key)
            )
            started = _LAUNCHERS[launcher](size, folder, settings)
            self._counters = undo.enter_context(started)
            self._controls = self._meet(listener)
            for control in self._controls:
                undo.enter_context(control)
            self._undo = undo.pop_all()

    def _meet(self, listener: Listener) -> list[Connection]:
        sock = listener._listener._socket  # type: ignore[attr-defined]
        sock.settimeout(START_SECONDS)
        by_rank: dict[int, Connection] = {}
        while len(by_rank) < self.size:
            try:
                control = listener.accept()
            except TimeoutError:
                raise CrewFailed(
                    f"{self.size - len(by_rank)} of {self.size} processes did not come up in "
                    f"{START_SECONDS:g} s"
                ) from None
            by_rank[control.recv()] = control
        return [by_rank[rank] for rank in range(self.size)]

    def ask(self, method: str, *args: Any) -> list[Any]:
        """What each member's `method(*args)` returns, by rank; see `member.Member`.

        Raises:
            Skipped: a member says that its transport can't.
            CrewFailed: something went wrong. The crew is of no use any more.
        """
        for rank, control in enumerate(self._controls):
            try:
                control.send((method, args))
            except OSError:
                raise CrewFailed(f"{method}: rank {rank} has ended") from None
        answers: dict[int, Any] = {}
        shared: dict[int, Any] = {}
        skipped = ""
        while len(answers) < self.size:
            silent = [rank for rank in range(self.size) if rank not in answers]
            ready = wait([self._controls[rank] for rank in silent], ANSWER_SECONDS)
            if not ready:
                missing = ", ".join(map(str, silent))
                raise CrewFailed(f"{method}: no answer of rank {missing} in {ANSWER_SECONDS:g} s")
            for rank in silent:
                if self._controls[rank] not in ready:
                    continue
                kind, value = self._hear(rank, method)
                if kind == "share":
                    shared[rank] = value
                else:
                    answers[rank] = value
                    skipped = value if kind == "skipped" else skipped
            if len(shared) == self.size:
                for control in self._controls:
                    control.send(shared[0])
                shared.clear()
            elif shared and skipped and len(shared) + len(answers) == self.size:
                raise CrewFailed(f"{method}: some ranks can't: {skipped}")
        if skipped:
            raise Skipped(skipped)
        return [answers[rank] for rank in range(self.size)]

    def _hear(self, rank: int, method: str) -> tuple[str, Any]:
        try:
            kind, value = self._controls[rank].recv()
        except (EOFError, OSError):
            raise CrewFailed(f"{method}: rank {rank} has ended") from None
        if kind == "raised":
            raise CrewFailed(f"{method}: rank {rank}: {value}")
        return kind, value

    def counters(self) -> dict[str, int]:
        """What the crew's surroundings count beside the members: bytes on a link between hosts."""
        return self._counters()

    def close(self) -> None:
        """Tells all to leave, and ends who does not."""
        for control in self._controls:
            with contextlib.suppress(OSError):
                control.send(None)
        self._undo.close()


Counters = Callable[[], dict[str, int]]
"""What a launcher yields while its processes live: see `Crew.counters`."""


def _none() -> dict[str, int]:
    return {}


@contextlib.contextmanager
def _spawn(size: int, folder: str, settings: dict[str, str]) -> Iterator[Counters]:
    """With multiprocessing, as users of CUDA must; with a Pipe and a Queue for each reader."""
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
    with _in_environment(settings):
        for process in processes:
            process.start()
    for pipe in pipes:
        for end in pipe:
            end.close()
    try:
        yield _none
    finally:
        for process in processes:
            process.join(END_SECONDS)
            process.kill()
            process.join()


@contextlib.contextmanager
def _in_environment(settings: dict[str, str]) -> Iterator[None]:
    """Variables that libraries read when they are loaded, which may be before `serve`."""
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
    """With MPI's own launcher, from this environment's bin."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists() or not importlib.util.find_spec("mpi4py"):
        raise Skipped("no mpi4py with mpich's wheel here")
    command = [str(mpiexec), "-n", str(size), sys.executable, "-m", "bench.run.member", folder]
    process = subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, env=os.environ | settings, stdin=subprocess.DEVNULL
    )
    try:
        yield _none
    finally:
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Actor:
    """A member in a process of Ray's."""

    def serve(self, *args: Any) -> None:
        member.serve(*args)


@contextlib.contextmanager
def _ray(size: int, folder: str, settings: dict[str, str]) -> Iterator[Counters]:
    """As actors of a local cluster, who know one another: a channel's writer must."""
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
        yield _none
        ray.wait(served, num_returns=size, timeout=END_SECONDS)
        # Only so do they remove their channels' semaphores.
        ended = [actor.__ray_terminate__.remote() for actor in actors]
        ray.wait(ended, num_returns=size, timeout=END_SECONDS)
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _hosts(size: int, folder: str, settings: dict[str, str]) -> Iterator[Counters]:
    """On two hosts: network namespaces with a bridge between them, each with its own /dev/shm."""
    sys.path.append(str(ROOT / "tests"))
    import hosts

    try:
        network = hosts.Network(["first", "second"], [size - size // 2, size // 2])
    except hosts.NotPermitted as why:
        raise Skipped(str(why)) from why
    network.start(_serve_on_host, size, folder, settings)
    try:
        yield lambda: {
            "bytes_in": network.received(1),
            "packets_in": network.received(1, "packets"),
            "bytes_out": network.sent(1),
            "packets_out": network.sent(1, "packets"),
        }
    finally:
        network.close()


def _serve_on_host(rank: int, size: int, folder: str, settings: dict[str, str]) -> None:
    member.serve(rank, size, folder, settings, {})


Launch = Callable[[int, str, dict[str, str]], contextlib.AbstractContextManager[Counters]]
_LAUNCHERS: dict[Launcher, Launch] = {
    "spawn": _spawn,
    "mpiexec": _mpiexec,
    "ray": _ray,
    "hosts": _hosts,
}

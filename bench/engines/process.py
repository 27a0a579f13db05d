"""An engine of vLLM's as a process, with the probe's notes of its messages."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from bench.engines import probe, serve

ROOT = Path(__file__).parents[2]
UP_S = 300.0  # until an engine has started
_CPUCLOCK_SCHED = 2  # of a process, in a clock's number: what clock_getcpuclockid() returns


class NotThere(Exception):
    """The engines' environment is missing; says how to make it."""


def python() -> str:
    """Return the Python of the engines' environment.

    Raises:
        NotThere: there is none.
    """
    path = ROOT / ".engines" / "bin" / "python"
    if not path.exists():
        raise NotThere(f"{path} is missing: run `make engines`")
    return str(path)


class EngineProcess:
    """An engine, told what to do.

    Args:
        control: the way to it.
        process: it.
        folder: where its probe writes.
    """

    def __init__(self, control: Connection, process: subprocess.Popen[bytes], folder: Path) -> None:
        self._control = control
        self._process = process
        self.folder = folder
        self.wait(UP_S)
        self.ask("generate", batch=1, tokens=8)  # (of whose replies it then shows who answers)
        self.calls, self.replies = probe.links(probe.ends(folder))

    def wait(self, seconds: float = 120.0) -> dict[str, Any]:
        """Return its answer."""
        if not self._control.poll(seconds):
            raise RuntimeError(f"engines: no answer in {seconds:g} s")
        answer: dict[str, Any] = self._control.recv()
        return answer

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Let it do something, and return its answer."""
        self._control.send((what, arguments))
        return self.wait()

    @property
    def workers(self) -> list[int]:
        """Their pids."""
        return [reader.pid for reader in self.calls.readers]

    def cpu_seconds(self) -> dict[int, float]:
        """Return the CPU time of the core and of each worker, by pid."""
        return {pid: _cpu_seconds(pid) for pid in self._processes}

    def gloo_cpu_seconds(self) -> float:
        """Return the CPU time of all their threads that torch's gloo has started."""
        return sum(_gloo_cpu_seconds(pid) for pid in self._processes)

    @property
    def _processes(self) -> list[int]:
        return [self.calls.writer.pid, *self.workers]

    @property
    def received(self) -> int:
        """How many calls the core has made that each worker has received."""
        # (A worker may still take in the last call, of which nobody waits for the answer.)
        return min(end.count for end in (self.calls.writer, *self.calls.readers))


def _cpu_seconds(pid: int) -> float:
    return time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED)


def _gloo_cpu_seconds(pid: int) -> float:
    threads = [*Path(f"/proc/{pid}/task").iterdir()]
    its = [each for each in threads if (each / "comm").read_text().startswith("gloo_")]
    return sum(int((each / "schedstat").read_text().split()[0]) for each in its) / 1e9


@contextlib.contextmanager
def engine(ranks: int, is_ours: bool) -> Iterator[EngineProcess]:
    """Start an engine, and end it after the block.

    Args:
        ranks: of tensor parallelism.
        is_ours: whether shmcast is in the place of its queue.

    Raises:
        NotThere: there is no environment with engines.
        RuntimeError: it does not start, or has ended.
    """
    with tempfile.TemporaryDirectory(prefix="shmcast-engines-") as name:
        folder = Path(name)
        notes = folder / "notes"
        notes.mkdir()
        probe.write_plugin(folder / "plugin")
        (folder / "config.json").write_text(json.dumps(serve.MODEL))
        environment = os.environ | serve.ENVIRONMENT
        environment |= {
            "PYTHONPATH": f"{folder / 'plugin'}:{ROOT}",
            "SHMCAST_VLLM": str(int(is_ours)),
            probe.FOLDER: str(notes),
        }
        with Listener(str(folder / "control"), "AF_UNIX") as listener:
            command = [python(), "-m", "bench.engines.serve", listener.address, folder, str(ranks)]
            log = (folder / "log").open("wb")
            process = subprocess.Popen(  # noqa: S603
                [*map(str, command)],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                with listener.accept() as control:
                    yield EngineProcess(control, process, notes)
                process.wait(60)
            except EOFError:
                raise RuntimeError((folder / "log").read_text(errors="replace")[-3000:]) from None
            finally:
                # With its core and workers, which would go on without it.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                log.close()

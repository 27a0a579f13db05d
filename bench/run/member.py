"""One process of a crew: makes its ends of transports and takes turns, as the coordinator says.

Launchers that can't call `serve` in a new process run this file:

    mpiexec -n 2 python -m bench.run.member FOLDER
    python -m bench.run.member FOLDER RANK SIZE
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import traceback
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.transports.base import Peer, Seat, Skipped, Transport

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from bench.run.engine import Engine
    from bench.run.measure import Done, Turn

APART = 16  # words between the counts of two readers: no cache line is shared
TAKEN = "taken"  # the file of these counts, in the crew's folder
CONTROL = "control"  # the socket there on which the coordinator listens


class _Seat(Seat):
    def __init__(
        self, control: Connection, rank: int, size: int, folder: Path, inherited: dict[str, Any]
    ) -> None:
        self.rank, self.size, self.folder, self.inherited = rank, size, folder, inherited
        self._control = control

    def share(self, obj: Any = None) -> Any:
        self._control.send(("share", obj))
        return self._control.recv()

    def meet(self) -> None:
        self.share()


class Member:
    """The methods that the coordinator may ask for, by name."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._transports: dict[str, Transport] = {}
        self._peers: dict[str, Peer] = {}
        self._engines: dict[str, Engine] = {}
        self._workload = ""
        self._made: list[Any] = []
        self._largest = 0  # which of them
        self._messages: dict[str, list[Any]] = {}  # by transport
        self._gaps_ms: list[float] | None = None

    def load(self, modules: tuple[str, ...]) -> None:
        """Import what transports need; raise Skipped for what is not installed."""
        # The harness's own modules come first, so that they don't count as a transport's memory.
        for module in ("bench.run.measure", "bench.workloads.catalogue", *modules):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise Skipped(f"{module}: {error}") from error

    def open(self, peer: Peer) -> None:
        """Make this end of a transport. Collective."""
        self._transports[peer.name] = peer.make(self._seat)
        self._peers[peer.name] = peer

    def expect(self, name: str, workload: str) -> None:
        """Get ready for a case of this workload; raise Skipped if the transport can't carry it."""
        from bench.workloads import catalogue

        chosen = catalogue.workload(workload)
        if workload != self._workload:
            self._messages.clear()
            self._made = chosen.make()
            count = len(self._made)
            sizes = catalogue.sizes(self._made) if count > 1 else [0]
            self._largest = sizes.index(max(sizes))
            self._gaps_ms = chosen.gaps_ms(count) if chosen.gaps_ms else None
            self._workload = workload
        if self._peers[name].one_object and len(self._made) > 1:
            raise Skipped("it carries messages of one size only")
        self._messages[name] = self._transports[name].translate(chosen, self._made)
        # (The largest message of a trace is that with the largest pickle, typed or not.)
        self._transports[name].expect(self._messages[name][self._largest])

    def turn(self, name: str, turn: Turn) -> Done:
        """Send or receive the messages of a turn. Collective."""
        from bench.run import busy_thread, measure

        transport = self._transports[name]
        if turn.case.engine:
            from bench.run.engine import Engine

            if name not in self._engines:
                self._engines[name] = Engine(self._peers[name], transport, self._seat)
            return self._engines[name].turn(turn.of(self._messages[name]), turn)
        if self._seat.is_source:
            messages = turn.of(self._messages[name])
            gaps_ns = turn.gaps_ns(self._gaps_ms)
            taken = self._taken()[: (self._seat.size - 1) * APART : APART]
            self._seat.meet()
            return measure.send(transport, messages, gaps_ns, turn, taken)
        mine = self._taken()[(self._seat.rank - 1) * APART :]
        mine[0] = 0
        leader = self._seat.size // 2
        self._seat.meet()
        if not transport.takes_part:
            mine[0] = turn.total
            return measure.Done()
        is_busy = bool(turn.case.busy) and self._seat.rank == leader
        with busy_thread.inside(turn.case.inside):
            done = measure.receive(transport, turn, mine, is_busy)
        if turn.case.busy and self._seat.rank != leader + 1:
            done.ends = []  # only the leader's neighbour counts
        return done

    def generate(self, name: str, ranks: int) -> Any:
        """Run one pass of the whole job by a transport; see example.py. Collective."""
        from bench.run import example

        return example.one_pass(self._seat, name, self._transports[name].broadcast, ranks)

    def figures(self, name: str) -> dict[str, float]:
        """Return what a transport says of itself beside the times."""
        return self._transports[name].figures()

    def memory(self) -> int:
        """Return the bytes of the proportional set size: shared pages count once in a crew."""
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError("/proc/self/smaps_rollup has no Pss")

    def close(self) -> None:
        """End all transports. Collective."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        for transport in self._transports.values():
            transport.close()
        self._transports.clear()

    def _taken(self) -> npt.NDArray[np.int64]:
        import numpy as np

        return np.memmap(self._seat.folder / TAKEN, np.int64, "r+")


def serve(
    rank: int, size: int, folder: str, settings: dict[str, str], inherited: dict[str, Any]
) -> None:
    """Do what the coordinator asks for until it says that this member may leave.

    Args:
        rank: the rank of this process.
        size: the processes of the crew.
        folder: the crew's, where the coordinator listens.
        settings: environment variables to set first.
        inherited: see `Seat`.
    """
    os.environ |= settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the coordinator's business, which then ends
    # (If the coordinator is killed or interrupted, its end of the socket ends its members.)
    with (
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
        Client(str(Path(folder) / CONTROL)) as control,
    ):
        control.send(rank)
        member = Member(_Seat(control, rank, size, Path(folder), inherited))
        while (asked := control.recv()) is not None:
            method, args = asked
            try:
                answer = ("done", getattr(member, method)(*args))
            except Skipped as skipped:
                answer = ("skipped", str(skipped))
            except Exception:
                answer = ("raised", traceback.format_exc())
            control.send(answer)


def main(folder: str, rank: str = "", size: str = "") -> None:
    """Serve as the rank that is given, or as the one that MPI's launcher gives."""
    serve(int(rank or os.environ["PMI_RANK"]), int(size or os.environ["PMI_SIZE"]), folder, {}, {})


if __name__ == "__main__":
    main(*sys.argv[1:])

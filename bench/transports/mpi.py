"""MPI: mpi4py over mpich, both of them from PyPI; mpiexec starts the processes."""

from __future__ import annotations

import json
import os
import pickle
from typing import Any

from bench.transports.base import Peer, Seat, Transport

SMALL_BYTES = 64 << 10
# The format is that of mpich's own tables.
SELECTION: dict[str, dict[str, dict[str, str]]] = {
    f"avg_msg_size<={SMALL_BYTES}": {"algorithm=MPIDI_POSIX_mpi_bcast_release_gather": {}},
    "avg_msg_size=any": {"algorithm=MPIDI_POSIX_mpi_bcast_ipc_read": {}},
}


class Bcast(Transport):
    """`comm.bcast`: mpi4py pickles, and broadcasts the size and then the bytes."""

    def __init__(self, seat: Seat) -> None:
        from mpi4py import MPI

        self._is_source = seat.is_source
        if not MPI.Is_initialized():
            self._choose(seat)
            MPI.Init_thread(MPI.THREAD_SINGLE)  # others exclude release_gather
        self._comm = MPI.COMM_WORLD.Dup()
        if self._comm.rank != seat.rank:
            raise RuntimeError(f"rank {seat.rank} of the crew is rank {self._comm.rank} of MPI")

    def _choose(self, seat: Seat) -> None:
        """Set what mpich reads when it is initialized."""
        table = seat.folder / f"mpich-{seat.rank}.json"
        tree = {"collective=bcast": {"comm_type=intra": {"is_multi_threaded=no": SELECTION}}}
        table.write_text(json.dumps(tree))
        os.environ["MPIR_CVAR_CH4_POSIX_COLL_SELECTION_TUNING_JSON_FILE"] = str(table)
        if seat.size > len(os.sched_getaffinity(0)):
            os.environ["MPIR_CVAR_CH4_PROGRESS_THROTTLE"] = "1"

    def broadcast(self, obj: Any, /) -> Any:
        return self._comm.bcast(obj)


class BcastKnownSize(Bcast):
    """`comm.Bcast` of a pickle whose size every rank knows beforehand."""

    def expect(self, obj: Any) -> None:
        self._room = bytearray(len(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)))

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            self._comm.Bcast(pickle.dumps(obj, pickle.HIGHEST_PROTOCOL))
            return obj
        self._comm.Bcast(self._room)
        return pickle.loads(self._room)  # noqa: S301 (our own bytes)


_ENVIRONMENT = {"MPI4PY_RC_INITIALIZE": "0", "MPI4PY_RC_FINALIZE": "1"}
_SETTINGS = (
    "mpich, MPI_THREAD_SINGLE; release_gather up to 64 KiB, ipc_read above; "
    "CH4_PROGRESS_THROTTLE where processes outnumber CPUs"
)

PEERS = (
    Peer(
        name="MPI bcast",
        make=Bcast,
        crew="mpi",
        settings=f"mpi4py's comm.bcast(object); {_SETTINGS}",
        modules=("mpi4py.MPI",),
        launcher="mpiexec",
        environment=_ENVIRONMENT,
    ),
    Peer(
        name="MPI Bcast, known size",
        make=BcastKnownSize,
        crew="mpi",
        settings=f"mpi4py's comm.Bcast of a pickle of known size; {_SETTINGS}",
        modules=("mpi4py.MPI",),
        launcher="mpiexec",
        environment=_ENVIRONMENT,
        one_object=True,
    ),
)

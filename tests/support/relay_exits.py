"""Three ranks, of which each exits as its interpreter does, while a relay waits in a collective.

    python -m tests.support.relay_exits FOLDER source-first source-last

Once for each order, with a store of its own in the folder. The ranks are forks of one program,
which has imported torch for them; each runs on to its own end.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch.distributed

import shmcast
from tests.support import fake_nodes, ranks

HOSTS = "abb"
COUNT = 40


def be(rank: int, store: str) -> None:
    """Broadcast between nodes, and leave everything open."""
    ranks.join(rank, len(HOSTS), store)
    with fake_nodes.on_host(HOSTS[rank]):
        broadcaster = shmcast.ShmBroadcaster()
    left_open.append(broadcaster)
    if rank == 0:
        for k in range(COUNT):
            broadcaster.send(k, 30)
    else:
        assert [broadcaster.recv(30) for _ in range(COUNT if rank == 2 else 1)]


left_open: list[shmcast.ShmBroadcaster] = []


def play(store: str, how: str) -> bool:
    """Fork the ranks, and let them exit one after the other; return whether this is one of them.

    The remote reader is the first.
    """
    is_held = {0: how == "source-last", 1: True, 2: False}
    pids, holds = [], []
    for rank in range(len(HOSTS)):
        held, hold = os.pipe()
        holds.append(hold)
        pid = os.fork()
        if pid == 0:
            for fd in holds:
                os.close(fd)
            be(rank, store)
            if is_held[rank]:
                os.read(held, 1)
            return True
        os.close(held)
        pids.append(pid)
    for rank in (2, 1, 0) if how == "source-last" else (2, 0, 1):
        os.close(holds[rank])
        code = os.waitstatus_to_exitcode(os.waitpid(pids[rank], 0)[1])
        assert code == 0, f"{how}: rank {rank} ended with exit code {code}"
    print(f"{how}: all have ended", flush=True)  # noqa: T201
    return False


def main(folder: str, *orders: str) -> None:
    """Play each order."""
    assert torch.distributed.is_available()
    for how in orders:
        if play(str(Path(folder, how)), how):
            return


if __name__ == "__main__":
    main(*sys.argv[1:])

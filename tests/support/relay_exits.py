"""Three ranks, of which each exits as its interpreter does, while a relay waits in a collective.

    python -m tests.support.relay_exits STORE source-first|source-last

They are forks of one program, which has imported torch for them; each runs on to its own end.
"""

from __future__ import annotations

import os
import sys

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


def main(store: str, how: str) -> None:
    """Fork the ranks, and let them exit one after the other: the remote reader is the first."""
    assert torch.distributed.is_available()
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
            return
        os.close(held)
        pids.append(pid)
    for rank in (2, 1, 0) if how == "source-last" else (2, 0, 1):
        os.close(holds[rank])
        code = os.waitstatus_to_exitcode(os.waitpid(pids[rank], 0)[1])
        assert code == 0, f"rank {rank} ended with exit code {code}"
    print("all have ended")  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])

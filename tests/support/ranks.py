"""Workers that are the ranks of a torch.distributed world."""

from __future__ import annotations

from pathlib import Path

from tests.support.processes import Crew


def join(rank: int, size: int, store: str) -> None:
    """Make this process a rank of a gloo world."""
    import torch.distributed as dist  # (Here, for a light conftest.py.)

    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size)


class World(Crew):
    """Workers that are ranks of one gloo world, from the first use on.

    Args:
        size: how many.
        folder: for the files by which the ranks find each other.
    """

    def __init__(self, size: int, folder: Path) -> None:
        super().__init__(size)
        self._folder = folder
        self._worlds = 0

    def mend(self) -> None:
        """Make a new world if there is none, or if one of its ranks has ended or hangs."""
        if self._worlds and all(worker.is_ready for worker in self.workers):
            return
        self.end()
        self._worlds += 1
        self.run(len(self.workers), join, len(self.workers), str(self._folder / f"{self._worlds}"))

"""Hosts for tests: those of the benchmark, with ranks on them, and with what may befall a network.

Nothing of it has a name outside: the namespaces live as long as the processes in them, and the one
that keeps each of them ends with this one, however that ends. Imports nothing that starts threads,
since only a process of one thread can move to another mount namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bench.run import hosts
from bench.run.hosts import INTERFACE
from bench.run.hosts import PORT as PORT
from tests.support.permissions import NotPermitted
from tests.support.processes import Job, Worker

_NAMESPACES = {"net": 0x40000000, "uts": 0x04000000, "mnt": 0x00020000}


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Refuse the test what is refused the benchmark."""
    try:
        yield
    except hosts.NotPermitted as error:
        raise NotPermitted(str(error)) from None


class Network(hosts.Network):
    """Hosts on one bridge, and ranks on them.

    Args:
        names: the hosts' names; two may be alike.
        ranks: how many on each.
    """

    def __init__(self, names: Sequence[str], ranks: Sequence[int]) -> None:
        with contextlib.ExitStack() as undo:
            with _refusals():
                super().__init__(names)
            undo.callback(super().close)
            self.workers: list[Worker] = []
            for host, count in zip(self.hosts, ranks, strict=True):
                for _ in range(count):
                    worker = Worker(f"rank {len(self.workers)}")
                    undo.callback(worker.end)
                    self.workers.append(worker)
                    worker.start(enter, host.pid, self.environment).result()
            self._processes = undo.pop_all()

    def cut(self, i: int) -> None:
        """Pull host `i`'s cable: nobody is told."""
        self.switch.network("ip", "link", "set", f"port{i}", "down")

    def delay(self, i: int, milliseconds: int, loss_percent: float) -> None:
        """Make host `i`'s way out slow and lossy.

        Raises:
            NotPermitted: this kernel can't.
        """
        netem = ("netem", "delay", f"{milliseconds}ms", "loss", f"{loss_percent}%")
        with _refusals():
            self.hosts[i].network("tc", "qdisc", "add", "dev", INTERFACE, "root", *netem)

    def wait_for_traffic(self, i: int, nbytes: int) -> None:
        """Wait until host `i` has received so many bytes more."""
        until = self.received(i) + nbytes
        while self.received(i) < until:
            time.sleep(0.01)

    def received(self, i: int, what: str = "bytes") -> int:
        """Return the bytes (or "packets") that came over host `i`'s link, seen from outside."""
        return self.counters(i)[f"{what}_in"]

    def sent(self, i: int, what: str = "bytes") -> int:
        """Return those that have gone the other way."""
        return self.counters(i)[f"{what}_out"]

    def popen(self, i: int, *command: str) -> subprocess.Popen[str]:
        """Start a program on host `i`."""
        settings = {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(  # noqa: S603
            self.hosts[i].inside(*command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )

    def start(self, function: Callable[..., Any], *args: Any) -> list[Job]:
        """Run `function(rank, *args)` on every rank."""
        return [worker.start(function, i, *args) for i, worker in enumerate(self.workers)]

    def close(self) -> None:
        """End all processes and hosts."""
        self._processes.close()


def enter(host: int, environment: dict[str, str]) -> None:
    """Move this process, which has one thread yet, to the host that process `host` keeps."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = os.getcwd()  # noqa: PTH109 (light imports)
    for name, kind in _NAMESPACES.items():
        fd = os.open(f"/proc/{host}/ns/{name}", os.O_RDONLY)
        if libc.setns(fd, kind):
            error = ctypes.get_errno()
            raise OSError(error, f"can't enter the {name} namespace: {os.strerror(error)}")
        os.close(fd)
    os.chdir(folder)
    os.environ |= environment


def hurry() -> None:
    """Have this process miss a host sooner: the tests can't wait for as long."""
    from shmcast._nodes import control  # (light imports, as above)

    control.KEEPALIVE = control.Keepalive(1, 1, 2)


def join(rank: int, size: int) -> None:
    """Make this process a rank of a gloo world over the network."""
    import torch.distributed as dist

    master = f"tcp://{os.environ['MASTER_ADDR']}:{PORT}"
    dist.init_process_group("gloo", master, rank=rank, world_size=size)
    hurry()

"""Hosts for tests: network namespaces with a bridge between them, each with its own /dev/shm.

Nothing of it has a name outside: the namespaces live as long as the processes in them, and the one
that keeps each of them ends with this one, however that ends. Imports nothing that starts threads,
since only a process of one thread can move to another mount namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

from tests.support.permissions import NotPermitted
from tests.support.processes import Job, Worker

INTERFACE = "eth0"
PORT = 29511

_NAMESPACES = {"net": 0x40000000, "uts": 0x04000000, "mnt": 0x00020000}
_SECONDS = 20.0


class Host:
    """One host: an address, a name, and the processes in it.

    Args:
        name: what its processes are told is the host's name.
    """

    def __init__(self, name: str) -> None:
        script = (
            "hostname $0 && mount -t tmpfs -o size=512m tmpfs /dev/shm && ip link set lo up "
            "&& echo ready && exec cat"
        )
        self._keeper = subprocess.Popen(  # noqa: S603
            [_tool("unshare"), "--net", "--uts", "--mount", "sh", "-c", script, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._keeper.stdout is not None
        if self._keeper.stdout.readline() != "ready\n":
            _, why = self._keeper.communicate()
            raise NotPermitted(f"can't make network and mount namespaces: {why.strip()}")
        self.pid: int = self._keeper.pid
        self.address = ""

    def run(self, *command: str) -> str:
        """Run a command in the host's network; return what it prints."""
        ran = subprocess.run(  # noqa: S603
            [_tool("nsenter"), "-t", str(self.pid), "--net", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
        if ran.returncode:
            raise NotPermitted(f"{' '.join(command)}: {ran.stderr.strip()}")
        return ran.stdout

    def close(self) -> None:
        """End it; its network goes with its last process."""
        self._keeper.communicate()


class Network:
    """Hosts on one bridge, and ranks on them.

    Args:
        names: the hosts' names; two may be alike.
        ranks: how many on each.
    """

    def __init__(self, names: Sequence[str], ranks: Sequence[int]) -> None:
        with contextlib.ExitStack() as undo:
            self.switch = Host("switch")
            undo.callback(self.switch.close)
            self.switch.run("ip", "link", "add", "bridge", "type", "bridge")
            self.switch.run("ip", "link", "set", "bridge", "up")
            self.hosts: list[Host] = []
            for i, name in enumerate(names):
                host = Host(name)
                undo.callback(host.close)
                self._plug(host, i)
                self.hosts.append(host)
            self.workers: list[Worker] = []
            for host, count in zip(self.hosts, ranks, strict=True):
                for _ in range(count):
                    worker = Worker(f"rank {len(self.workers)}")
                    undo.callback(worker.end)
                    self.workers.append(worker)
                    worker.start(enter, host.pid, self.hosts[0].address).result()
            self._undo = undo.pop_all()

    def _plug(self, host: Host, i: int) -> None:
        host.address = f"10.99.0.{i + 1}"
        end = ("peer", "name", INTERFACE, "netns", str(host.pid))
        self.switch.run("ip", "link", "add", f"port{i}", "type", "veth", *end)
        self.switch.run("ip", "link", "set", f"port{i}", "master", "bridge", "up")
        host.run("ip", "addr", "add", f"{host.address}/24", "dev", INTERFACE)
        host.run("ip", "link", "set", INTERFACE, "up")

    def cut(self, i: int) -> None:
        """Pull host `i`'s cable: nobody is told."""
        self.switch.run("ip", "link", "set", f"port{i}", "down")

    def delay(self, i: int, milliseconds: int, loss_percent: float) -> None:
        """Make host `i`'s way out slow and lossy.

        Raises:
            NotPermitted: this kernel can't.
        """
        netem = ("netem", "delay", f"{milliseconds}ms", "loss", f"{loss_percent}%")
        self.hosts[i].run("tc", "qdisc", "add", "dev", INTERFACE, "root", *netem)

    def wait_for_traffic(self, i: int, nbytes: int) -> None:
        """Wait until host `i` has received so many bytes more."""
        until = self.received(i) + nbytes
        while self.received(i) < until:
            time.sleep(0.01)

    def received(self, i: int, what: str = "bytes") -> int:
        """Return the bytes (or "packets") that came over host `i`'s link, seen from outside."""
        return self._counted(i, "tx", what)

    def sent(self, i: int, what: str = "bytes") -> int:
        """Return those that have gone the other way."""
        return self._counted(i, "rx", what)

    def _counted(self, i: int, way: str, what: str) -> int:
        link = json.loads(self.switch.run("ip", "-s", "-j", "link", "show", f"port{i}"))
        return int(link[0]["stats64"][way][what])

    def popen(self, i: int, *command: str) -> subprocess.Popen[str]:
        """Start a program on host `i`."""
        spaces = ("--net", "--uts", "--mount", f"--wdns={os.getcwd()}")  # noqa: PTH109
        settings = {"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(  # noqa: S603
            [_tool("nsenter"), "-t", str(self.hosts[i].pid), *spaces, *command],
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
        self._undo.close()


def enter(host: int, master: str) -> None:
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
    os.environ |= {
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "MASTER_ADDR": master,
        "MASTER_PORT": str(PORT),
        "OMP_NUM_THREADS": "1",
    }


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise NotPermitted(f"there is no {name} here")
    return path


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

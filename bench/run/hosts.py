"""Two hosts on one machine: network namespaces with a bridge, each with its own /dev/shm.

They have no names outside: a namespace lives as long as the processes in it, and the one that keeps
it ends with this one, however that ends. Needs root, and the tools of util-linux and iproute2.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence

INTERFACE = "eth0"
PORT = 29511

_SECONDS = 20.0


class NotPermitted(Exception):
    """This machine does not allow namespaces; says why."""


class Host:
    """A host: a network, a host name, a /dev/shm, and a process that keeps them.

    Args:
        name: the host name that its processes see.

    Raises:
        NotPermitted: the namespaces can't be made.
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
        assert self._keeper.stdout is not None  # noqa: S101 (it is a pipe)
        if self._keeper.stdout.readline() != "ready\n":
            _, why = self._keeper.communicate()
            raise NotPermitted(f"can't make network and mount namespaces: {why.strip()}")
        self.pid: int = self._keeper.pid
        self.address = ""

    def network(self, *command: str) -> str:
        """Run a command in the host's network, and return what it prints."""
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

    def inside(self, *command: str) -> list[str]:
        """Return the command line that runs a command on this host, in the current folder."""
        spaces = ("--net", "--uts", "--mount", f"--wdns={os.getcwd()}")  # noqa: PTH109
        return [_tool("nsenter"), "-t", str(self.pid), *spaces, *command]

    def close(self) -> None:
        """End the host; its network goes with its last process."""
        self._keeper.communicate()


class Network:
    """Hosts on one bridge.

    Args:
        names: the names of the hosts.

    Raises:
        NotPermitted: this machine does not allow it.

    Attributes:
        switch: what keeps the bridge.
        hosts: one for each name.
        environment: the variables with which gloo finds its way between the hosts.
    """

    def __init__(self, names: Sequence[str]) -> None:
        with contextlib.ExitStack() as undo:
            self.switch = Host("switch")
            undo.callback(self.switch.close)
            self.switch.network("ip", "link", "add", "bridge", "type", "bridge")
            self.switch.network("ip", "link", "set", "bridge", "up")
            self.hosts: list[Host] = []
            for number, name in enumerate(names):
                host = Host(name)
                undo.callback(host.close)
                self._plug(host, number)
                self.hosts.append(host)
            self._undo = undo.pop_all()
        self.environment = {
            "GLOO_SOCKET_IFNAME": INTERFACE,
            "MASTER_ADDR": self.hosts[0].address,
            "MASTER_PORT": str(PORT),
            "OMP_NUM_THREADS": "1",
        }

    def _plug(self, host: Host, number: int) -> None:
        host.address = f"10.99.0.{number + 1}"
        end = ("peer", "name", INTERFACE, "netns", str(host.pid))
        switch = self.switch.network
        switch("ip", "link", "add", f"port{number}", "type", "veth", *end)
        switch("ip", "link", "set", f"port{number}", "master", "bridge", "up")
        host.network("ip", "addr", "add", f"{host.address}/24", "dev", INTERFACE)
        host.network("ip", "link", "set", INTERFACE, "up")

    def counters(self, number: int) -> dict[str, int]:
        """Return the bytes and packets that came to a host over its link, and those that left."""
        link = self.switch.network("ip", "-s", "-j", "link", "show", f"port{number}")
        counted = json.loads(link)[0]["stats64"]
        # (What the bridge's end of the link sends is what the host receives.)
        return {
            "bytes_in": int(counted["tx"]["bytes"]),
            "packets_in": int(counted["tx"]["packets"]),
            "bytes_out": int(counted["rx"]["bytes"]),
            "packets_out": int(counted["rx"]["packets"]),
        }

    def close(self) -> None:
        """End all hosts."""
        self._undo.close()


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise NotPermitted(f"there is no {name} here")
    return path

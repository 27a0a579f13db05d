"""Where other hosts may reach this process: the interfaces that torch.distributed would use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct

_SIOCGIFADDR = 0x8915

Address = tuple[str, int]


def local_addresses(port: int) -> list[Address]:
    """Return where this process may be reached on `port`, the likeliest first."""
    found: list[str] = []
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    if interface:
        found += _of_interface(interface)
    master = os.environ.get("MASTER_ADDR")
    if master:
        found += _towards(master)
    with contextlib.suppress(OSError):
        known = socket.getaddrinfo(socket.gethostname(), port, type=socket.SOCK_STREAM)
        found += [str(info[4][0]) for info in known]
    found.append("127.0.0.1")
    unique = dict.fromkeys(found)
    last = [host for host in unique if host.startswith("127.") or host == "::1"]
    return [(host, port) for host in [*(h for h in unique if h not in last), *last]]


def _of_interface(name: str) -> list[str]:
    found = []
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket,
    ):
        request = struct.pack("256s", name.encode()[:15])
        answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFADDR, request)
        found.append(socket.inet_ntoa(answer[20:24]))
    with contextlib.suppress(OSError), open("/proc/net/if_inet6") as table:  # noqa: PTH123
        for line in table:
            address, _, _, scope, _, interface = line.split()
            if interface == name and scope == "00":
                found.append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(address)))
    return found


def _towards(host: str) -> list[str]:
    """Return the local address of this host's route to another; no packet is sent."""
    with contextlib.suppress(OSError):
        for family, kind, proto, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, proto) as probe:
                probe.connect(address)
                return [str(probe.getsockname()[0])]
    return []

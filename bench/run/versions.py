"""Which version of each peer runs, and how it is set up."""

from __future__ import annotations

import platform
from importlib import metadata

import shmcast
from bench import transports
from bench.transports.base import Peer

_DISTRIBUTIONS = {"zmq": ("pyzmq",), "mpi4py": ("mpi4py", "mpich")}
"""Of modules that are not called like them, or have their work done by others."""


def of(peer: Peer) -> str:
    """The distributions that a transport needs, with their versions."""
    found = []
    packages = [module.partition(".")[0] for module in peer.modules]
    for package in dict.fromkeys(packages):
        for name in _DISTRIBUTIONS.get(package, (package,)):
            try:
                found.append(f"{name} {metadata.version(name)}")
            except metadata.PackageNotFoundError:
                found.append(f"{name}: not installed ({peer.install})")
    if peer.crew == "shmcast":
        found.insert(0, f"shmcast {shmcast.__version__}")
    return ", ".join(found) or f"Python {platform.python_version()}"


def described(names: list[str]) -> dict[str, dict[str, str]]:
    """Settings and versions by name, for the results."""
    peers = [transports.peer(name) for name in names]
    return {peer.name: {"settings": peer.settings, "version": of(peer)} for peer in peers}

"""The version and the settings of each peer."""

from __future__ import annotations

import platform
from importlib import metadata

import shmcast
from bench.transports import registry
from bench.transports.base import Peer

_DISTRIBUTIONS = {"zmq": ("pyzmq",), "mpi4py": ("mpi4py", "mpich")}
"""Distributions with another name than their module, or several for one module."""


def of(peer: Peer) -> str:
    """Return the distributions that a transport needs, with their versions."""
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
    """Return settings and versions by name, for the results."""
    peers = [registry.peer(name) for name in names]
    return {peer.name: {"settings": peer.settings, "version": of(peer)} for peer in peers}

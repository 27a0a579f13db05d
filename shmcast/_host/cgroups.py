"""The cgroups that may limit this process, in v2 and v1."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shmcast import _core


def limiting(
    proc: Path, cgroups: Path, controller: str, v2: str, v1: str
) -> Iterator[tuple[bool, str]]:
    """Yield the folders of a process's cgroups that have a file, on the way to the root.

    Args:
        proc: the process's folder in procfs.
        cgroups: where the cgroup file systems are mounted.
        controller: the name of the controller, "cpu" for instance.
        v2: the file that a folder must have in cgroup v2.
        v1: the same in v1.

    Yields:
        Whether it is v2, and the folder. Nothing where the cgroups can't be read.
    """
    text = _core.read_file(str(proc / "cgroup"))
    if isinstance(text, OSError):
        return
    for line in map(os.fsdecode, text.splitlines()):
        controllers, _, path = line.partition(":")[2].partition(":")
        is_v2 = not controllers
        if is_v2:
            hierarchies, name = ("", "unified"), v2
        elif controller in controllers.split(","):
            hierarchies, name = (controllers, controller), v1
        else:
            continue
        for hierarchy in hierarchies:
            # In a container the path is often that of the host, and the mount its own subtree:
            # what does not exist is skipped, and the mount's own root is always looked at.
            # (Text and not a Path: a set-up looks at some twenty of them.)
            mount = str(cgroups / hierarchy)
            level = f"{mount}/{path.strip('/')}".rstrip("/")
            while True:
                if os.access(f"{level}/{name}", os.R_OK):
                    yield is_v2, level
                if level == mount:
                    break
                level = level.rpartition("/")[0]


def words_by_line(path: str) -> list[list[bytes]]:
    """Return the words of a file of a cgroup, by line; none where it can't be read."""
    text = _core.read_file(path)
    return [line.split() for line in text.splitlines()] if isinstance(text, bytes) else []

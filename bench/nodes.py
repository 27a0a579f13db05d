"""A broadcast over two nodes: shmcast and gloo side by side in one run.

    sudo .venv/bin/python bench/nodes.py                # everything, some minutes
    sudo .venv/bin/python bench/nodes.py --ranks 4 --payloads "0.5 KB"

The nodes are network namespaces of this host with a bridge between them, each with a /dev/shm of
its own, so that one clock serves all; that needs root.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "tests"))

# Spawned ranks import this file, too, and can move to another namespace only while they have one
# thread: so torch is not imported here.
if __name__ == "__main__":
    import typer

    import two_nodes

    typer.run(two_nodes.main)

"""The command line: `shmcast`, or `python -m shmcast`."""

from __future__ import annotations

import sys

from shmcast._operators.commands import main as main

if __name__ == "__main__":
    sys.exit(main())

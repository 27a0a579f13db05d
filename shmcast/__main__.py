"""The command line: `shmcast`, or `python -m shmcast`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command that the command line names, and return the exit code."""
    try:
        from shmcast._operators import commands  # (here: Ctrl-C may come already)

        return commands.main()
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""The command line: `python -m shmcast`."""

from __future__ import annotations

import argparse
import sys

from shmcast._host import shared_memory
from shmcast.errors import ShmcastError


def main() -> None:
    """Run the command that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m shmcast", description="Chores of shmcast.")
    commands = parser.add_subparsers(title="commands")
    clean = commands.add_parser(
        "clean",
        help="remove what killed processes have left in shared memory",
        description="Removes the segments of this user whose owners are dead, and lists all of "
        "this user's. No segment that is in use is touched.",
    )
    clean.add_argument("--dry-run", action="store_true", help="only list them")
    clean.set_defaults(command=_clean)
    arguments = parser.parse_args()
    if "command" in arguments:
        arguments.command(arguments)
    else:
        parser.print_help()


def _clean(arguments: argparse.Namespace) -> None:
    try:
        segments = shared_memory.clean(dry_run=arguments.dry_run)
    except ShmcastError as error:
        sys.exit(str(error))
    removed = "would be removed" if arguments.dry_run else "removed"
    for found in segments:
        action = removed if found.owner is shared_memory.OwnerState.DEAD else "kept"
        print(  # noqa: T201 (its purpose)
            f"{found.name}  {found.size} bytes  pid {found.pid}  {action}: {found.owner.value}"
        )


if __name__ == "__main__":
    main()

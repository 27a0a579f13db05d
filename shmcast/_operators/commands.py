"""The command line: which commands there are, what they print, and how they end.

Exit codes: 0 done, and nothing is wrong; 1 the system refuses, as stderr tells; 2 no such command
or option; 3 there is nothing of that pid or label; 4 somebody holds the others up (`diagnose`), or
something does not work here (`doctor`, `bench`); 130 interrupted. They are the same where nobody
reads what is printed, or not all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any

from shmcast._endpoints.arguments import MAX_READERS
from shmcast._operators import diagnosis, listing, output
from shmcast._operators.observer import observed
from shmcast._operators.rates import SORT_KEYS
from shmcast._operators.snapshot import all_snapshots, chosen
from shmcast._operators.stacks import stacks_of
from shmcast._version import __version__
from shmcast.errors import ShmcastError

NOTHING_FOUND = 3
SOMETHING_WRONG = 4
INTERRUPTED = 130

_LEAST_SECONDS = 0.1
_WHAT = "a pid of a member, or a part of a label; without it, all"


def main(argv: list[str] | None = None) -> int:
    """Run the command that the command line names, and return the exit code.

    Args:
        argv: the arguments; None: those of this process.

    Raises:
        SystemExit: the arguments are wrong, or the system refuses.
    """
    try:
        output.escape()
        parser = _parser()
        arguments = parser.parse_args(argv)
        if "run" not in arguments:
            parser.print_help()
            return 0
        code: int = arguments.run(arguments)
        return code
    except ShmcastError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED


class _Parser(argparse.ArgumentParser):
    def _print_message(self, message: str, file: Any = None) -> None:
        """Print the help, the version, or what is wrong."""
        if file is sys.stdout:
            output.write(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="shmcast",
        description="Look at this user's broadcasters and hubs on this host. Nothing is changed "
        "but by clean.",
        epilog="exit codes: 0 nothing is wrong, 1 the system refuses, 2 no such option, 3 nothing "
        "found, 4 somebody is stuck (diagnose) or something does not work (doctor, bench), "
        "130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"shmcast {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], int], text: str, more: str = ""
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=more or text)
        added.add_argument("--json", action="store_true", help="print JSON")
        added.set_defaults(run=run)
        return added

    found = command("list", _list, "list all broadcasters and hubs")
    found.add_argument("what", nargs="?", metavar="PID|LABEL", help=_WHAT)
    stuck = command("diagnose", _diagnose, "tell who waits for whom, and who holds everybody up")
    stuck.add_argument("what", nargs="?", metavar="PID|LABEL", help=_WHAT)
    top = command("top", _top, "show rates, latencies, lag and CPU time, again and again")
    top.add_argument(
        "--once",
        action="store_true",
        help="print one picture and end; without it, --json prints an array in each line",
    )
    top.add_argument(
        "--sort", choices=[*SORT_KEYS], default="m", help="l label, m messages (default), b bytes, "
        "p p99, g lag, c CPU; also keys while it runs, as is q to quit"
    )  # fmt: skip
    top.add_argument("--seconds", type=_seconds, default=1.0, help="between two looks (default: 1)")
    bench = command(
        "bench",
        _bench,
        "measure shmcast beside gloo and a Pipe, on this machine",
        "Measures how long messages take by shmcast, by torch's broadcast_object_list over gloo "
        "and by a multiprocessing.Pipe for each reader, in turns. It takes about a minute.",
    )
    bench.add_argument("--seconds", type=_seconds, default=0.4, help="of a turn (default: 0.4)")
    bench.add_argument(
        "--readers", type=_readers, action="append", metavar="N",
        help="how many receive (default: 1, and one for each CPU but one, up to 4)",
    )  # fmt: skip
    command("doctor", _doctor, "tell what this host or container lacks")
    clean = command(
        "clean",
        _clean,
        "remove what killed processes have left in shared memory",
        "Removes the segments of this user whose owners are dead, and lists all of this user's. "
        "No segment that is in use is touched.",
    )
    clean.add_argument("--dry-run", action="store_true", help="only list them")
    return parser


def _print(arguments: argparse.Namespace, rows: list[dict[str, Any]], text: str) -> None:
    output.write(json.dumps(rows, indent=2) if arguments.json else text)


def _list(arguments: argparse.Namespace) -> int:
    found = chosen(all_snapshots(), arguments.what)
    _print(arguments, [listing.as_json(s) for s in found], listing.as_text(found, arguments.what))
    return NOTHING_FOUND if arguments.what is not None and not found else 0


def _diagnose(arguments: argparse.Namespace) -> int:
    found = diagnosis.diagnose(arguments.what, stacks_of)
    text = "\n".join(d.as_text() for d in found) or listing.nobody(arguments.what)
    _print(arguments, [d.as_json() for d in found], text)
    if arguments.what is not None and not found:
        return NOTHING_FOUND
    return SOMETHING_WRONG if any(d.is_stuck for d in found) else 0


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if _LEAST_SECONDS <= seconds < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds >= {_LEAST_SECONDS:g}")


def _readers(text: str) -> int:
    with contextlib.suppress(ValueError):
        readers = int(text)
        if 0 < readers <= MAX_READERS:
            return readers
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {MAX_READERS}")


def _top(arguments: argparse.Namespace) -> int:
    if not arguments.once:
        _give_way()
    if arguments.json:
        return _top_of_numbers(arguments)
    from shmcast._operators import top  # (needs rich)

    top.run(arguments.once, arguments.sort, arguments.seconds)
    return 0


def _give_way() -> None:
    """Let this process run after all others: a reader that it takes a core from waits otherwise."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 19)


def _top_of_numbers(arguments: argparse.Namespace) -> int:
    looks = observed(arguments.sort, arguments.seconds)
    if arguments.once:
        _print(arguments, [dataclasses.asdict(row) for row in next(looks)], "")
        return 0
    for found in looks:
        if not output.write(json.dumps([dataclasses.asdict(row) for row in found])):
            break
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from shmcast._operators import doctor  # (here, as what follows, for a quick start)

    findings = doctor.examine()
    _print(arguments, [dataclasses.asdict(f) for f in findings], doctor.as_text(findings))
    return SOMETHING_WRONG if any(f.status == "bad" for f in findings) else 0


def _bench(arguments: argparse.Namespace) -> int:
    from shmcast._operators.bench import cases, figures, transports

    counts = arguments.readers or cases.reader_counts()
    rows = figures.measure(counts, arguments.seconds, output.tell)
    _print(arguments, [dataclasses.asdict(row) for row in rows], figures.as_text(rows))
    failed = any(row.error for row in rows if row.transport == transports.OURS)
    return SOMETHING_WRONG if failed else 0


def _clean(arguments: argparse.Namespace) -> int:
    from shmcast._host import shared_memory

    segments = shared_memory.clean(dry_run=arguments.dry_run)
    removed = "would be removed" if arguments.dry_run else "removed"
    rows, lines = [], []
    for found in segments:
        is_removed = found.owner is shared_memory.OwnerState.DEAD
        action = removed if is_removed else "kept"
        lines.append(
            f"{found.name}  {found.size} bytes  pid {found.pid}  {action}: {found.owner.value}"
        )
        rows.append(
            {
                "name": found.name,
                "bytes": found.size,
                "pid": found.pid,
                "removed": is_removed and not arguments.dry_run,
                "owner": found.owner.name.lower(),
            }
        )
    if rows or arguments.json:
        _print(arguments, rows, "\n".join(lines))
    return 0

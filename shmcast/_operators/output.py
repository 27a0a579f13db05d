"""What the command line prints, and whoever reads it no further."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from shmcast.errors import ShmcastError


def escape(how: str = "backslashreplace") -> None:
    """Let stdout print what its encoding lacks otherwise, rather than raise.

    Args:
        how: an error handler of `codecs`; "replace" keeps columns where they are.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=how)


def write(text: str) -> bool:
    """Print a text at once; return whether somebody may read more.

    Raises:
        SystemExit: it can't be printed: the disk is full, say.
    """
    with printing():
        print(text, flush=True)  # noqa: T201 (its purpose)
        return True
    return False


def tell(text: str) -> None:
    """Tell somebody who waits what is under way."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(text, file=sys.stderr, flush=True)  # noqa: T201 (its purpose)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Print in the block. Whoever reads no further (`| head`) ends it, which is no error.

    Raises:
        SystemExit: what is printed goes nowhere: the disk is full, say.
    """
    try:
        yield
    except ShmcastError:
        raise
    except BrokenPipeError:
        _mute()
    except OSError as error:
        _mute()
        sys.exit(f"shmcast can't print: {os.strerror(error.errno or 0)}")


def _mute() -> None:
    """Let what is still to be printed go nowhere: the interpreter prints it at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)

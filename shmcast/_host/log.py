"""The log, as code writes to it that waits or cleans up: what goes wrong there stays there.

A handler's error is printed by `logging` itself. That of a filter, or of a formatter of the
program's own, would come out of the `send` or `recv` that had something to tell.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback

LOGGER = "shmcast"
"""The name of the package's one logger."""

_log = logging.getLogger(LOGGER)


def is_on(level: int) -> bool:
    """Return whether somebody may want to have messages of a level."""
    return _log.isEnabledFor(level)


def tell(level: int, message: str, *args: object) -> None:
    """Log a message; print what the program's logging raises, as `logging` does with handlers."""
    try:
        _log.log(level, message, *args, stacklevel=2)
    except Exception:
        if logging.raiseExceptions:
            with contextlib.suppress(Exception):  # (stderr may be closed)
                traceback.print_exc(file=sys.stderr)

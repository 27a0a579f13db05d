"""In which order the threads of a process are told: first the one for whose sake it is asked.

As py-spy, faulthandler and Python itself list them, who started last comes first: helpers, mostly.
"""

from __future__ import annotations

import re
from pathlib import Path

_MAIN = re.compile(r'"MainThread"|\[MainThread\]|Current thread ')
"""How the main thread's stack begins. A signal sent to a process is the main thread's to handle,
which so is faulthandler's "current" one."""

_OWN_NAME = re.compile(r'["\[]shmcast\b')
_FILE = re.compile(r'  File "(.*)", line ')  # of faulthandler, which has no names before 3.14
_PACKAGE = f"{Path(__file__).parents[1]}/"
_NEXT_THREAD = re.compile(r"\n+(?=\S)")


def in_order(stacks: str) -> str:
    """Return stacks with the main thread's first, and those of shmcast's own threads last."""
    return "\n".join(sorted(_NEXT_THREAD.split(stacks.strip("\n")), key=_place))


def _place(stack: str) -> int:
    first_line = stack.partition("\n")[0]
    if _MAIN.search(first_line):
        return 0
    return 2 if _OWN_NAME.search(first_line) or _begins_in_shmcast(stack) else 1


def _begins_in_shmcast(stack: str) -> bool:
    """Return whether a thread runs a function of this package, or nothing that Python knows of."""
    files = _FILE.findall(stack)
    called = [file for file in files if not file.endswith("/threading.py")]
    return bool(files) and (not called or called[-1].startswith(_PACKAGE))

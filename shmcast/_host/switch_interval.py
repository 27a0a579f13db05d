"""How soon a thread that wants the GIL gets it from one that computes: a setting of Python's."""

from __future__ import annotations

import sys


def shorten_switch_interval(seconds: float) -> None:
    """Let threads of this process ask for the GIL after so many seconds, if now they wait longer.

    It is one setting for all threads, and stays: others may have asked for as much meanwhile.
    """
    if seconds < sys.getswitchinterval():
        sys.setswitchinterval(seconds)

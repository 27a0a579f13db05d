"""What the processes that an engine waits for are doing."""

from __future__ import annotations

import multiprocessing
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shmcast._host import first_word
from shmcast._host.process import pid_namespace, state_of
from shmcast._host.signals import pass_on
from shmcast._host.words import counted
from shmcast.compat._queues.stacks import python_stack

_DEAF = ("stopped", "zombie")  # writes no stacks, and py-spy would wait for it


class Process(NamedTuple):
    """A process of an engine, as the others know it."""

    name: str
    pid: int
    namespace: int
    """The inode number of its pid namespace."""
    first_word: int
    """The number there of the descriptor by which its end is waited for; -1: it has none."""

    @classmethod
    def this(cls) -> Process:
        """Return this process, by the name that `multiprocessing` has for it."""
        name = multiprocessing.current_process().name
        try:
            word = first_word.offer()
        except OSError as error:  # out of descriptors, say: its pidfd tells, only later
            pass_on(error)
            word = -1
        return cls(name, os.getpid(), pid_namespace(), word)


def describe(processes: Iterable[Process]) -> str:
    """Return what each of some processes does now, with its Python stacks where they can be had.

    Each once, and not this one.
    """
    lines: list[str] = []
    for process in dict.fromkeys(processes):
        if process.pid != os.getpid():
            lines += _lines(process)
    return "\n".join(lines)


def _lines(process: Process) -> list[str]:
    who = f"  {process.name}, pid {process.pid}"
    if process.namespace != pid_namespace():
        return [f"{who}: in another pid namespace"]
    try:
        state = state_of(process.pid)
    except OSError as error:
        pass_on(error)
        return [f"{who}: hidden by /proc"]
    if state is None:
        return [f"{who}: has ended"]
    where = _kernel_function(process.pid)
    line = (
        f"{who}: {state.name}{f' in {where}' if where else ''}, "
        f"{counted(state.threads, 'thread')}, {state.cpu_seconds:.2f} s of CPU time"
    )
    stack = "" if state.name in _DEAF else python_stack(process.pid)
    return [line, *textwrap.indent(stack.strip("\n"), "    ").splitlines()]


def _kernel_function(pid: int) -> str:
    """Return in which function of the kernel a process waits; "" where it doesn't or can't tell."""
    try:
        name = Path(f"/proc/{pid}/wchan").read_text()
    except OSError as error:
        pass_on(error)
        return ""
    return "" if name == "0" else name

"""Signals: tells the error of a handler from one of what it interrupted."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


def is_interruption(error: BaseException) -> bool:
    """Return whether a signal's handler has raised `error`, whatever was running then.

    To be asked where it was caught.
    """
    if isinstance(error, KeyboardInterrupt):
        return True
    handlers = {code for s in signal.valid_signals() if (code := _code(signal.getsignal(s)))}
    # Not the frame that has caught it. To look at its variables would make a cycle of it and them.
    step = error.__traceback__
    caught = step and step.tb_frame  # (there twice, if a function of sys.settrace has raised)
    while step is not None:
        frame = step.tb_frame
        # (By its arguments: a handler may have put another in its place before it raised.)
        if frame is not caught and (frame.f_code in handlers or _was_called_with_its_caller(frame)):
            return True
        step = step.tb_next
    return False


def pass_on(error: BaseException) -> None:
    """Raise `error` again if a signal's handler has raised it: to be called where it was caught."""
    try:
        if is_interruption(error):
            raise error
    finally:
        del error  # or this frame would keep the traceback that keeps this frame


def wait_for(
    condition: threading.Condition,
    predicate: Callable[[], bool],
    timeout: float | None = None,
) -> bool:
    """Do what `condition.wait_for` does; also if a handler raises, the caller has its lock again.

    The caller takes the lock itself, not the condition: that is Python code, and a handler that
    raises in it would leave the lock taken for ever.
    """
    try:
        return condition.wait_for(predicate, timeout)
    except BaseException:
        try:
            condition.notify(0)  # (raises where the lock is not held)
        except RuntimeError:
            condition.acquire()
        raise


def add_note(error: BaseException, note: str) -> None:
    """Add a line to the error's traceback, from Python 3.11 on."""
    if hasattr(error, "add_note"):
        error.add_note(note)


def _code(handler: Any) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = getattr(handler, "__func__", handler)
    if not hasattr(handler, "__code__"):  # an object that can be called
        handler = getattr(type(handler), "__call__", None)  # noqa: B004
    code = getattr(handler, "__code__", None)
    return code if isinstance(code, CodeType) else None


def _was_called_with_its_caller(frame: FrameType) -> bool:
    """Return whether these are the arguments of a handler: a signal and what it interrupted."""
    caller = frame.f_back
    values = [frame.f_locals.get(name) for name in frame.f_code.co_varnames]
    values += [item for value in values if type(value) is tuple for item in value]  # of *args
    return caller is not None and any(value is caller for value in values)

"""A terminal taken for a while: drawn on, its keys read, and given back whatever ends that."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

REDRAW = "redraw"
"""What `Terminal.wait` returns if the terminal was another's, or has another size."""

_ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_HANDLED = (*_ENDS, signal.SIGTSTP, signal.SIGCONT, signal.SIGWINCH)


class Terminal:
    """Takes the terminal in a `with` block: another screen, and single keys.

    A signal only wakes `wait`, which then acts in its place: whatever is being drawn is whole
    first. One that ends the process does so by its default, once the terminal is as it was before;
    Ctrl-Z gives the terminal back for as long as the process is stopped.

    Args:
        console: of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, screen=True, auto_refresh=False)
        self._keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
        self._mode: list[Any] | None = None  # of the terminal, before it was taken
        self._handlers: dict[signal.Signals, Any] = {}
        self._woken, self._wakes = -1, -1
        self._wakes_before = -1

    def __enter__(self) -> Terminal:
        self._woken, self._wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._wakes_before = signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        for number in _HANDLED:
            if signal.getsignal(number) is not signal.SIG_IGN:  # (as nohup has it)
                self._handlers[number] = signal.signal(number, _nothing)
        self._take()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakes_before)
        os.close(self._woken)
        os.close(self._wakes)

    def draw(self, picture: RenderableType) -> None:
        """Show a picture."""
        self._live.update(picture, refresh=True)

    def wait(self, seconds: float) -> str:
        """Return the key that is pressed within so many seconds, or `REDRAW`; "": neither came."""
        watched = [self._woken] if self._keys < 0 else [self._woken, self._keys]
        ready = select.select(watched, [], [], seconds)[0]
        if self._woken in ready:
            for number in os.read(self._woken, 64):
                self._act_for(signal.Signals(number))
            return REDRAW
        if self._keys in ready:
            return os.read(self._keys, 1).decode(errors="replace") or "q"  # (the terminal is gone)
        return ""

    def _act_for(self, number: signal.Signals) -> None:
        if number not in self._handlers or number == signal.SIGWINCH:
            return
        self._give_back()
        if number in (*_ENDS, signal.SIGTSTP):
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)  # ends the process here, or stops it until SIGCONT
            signal.signal(number, _nothing)
        self._take()

    def _take(self) -> None:
        if self._keys >= 0:
            self._mode = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys, termios.TCSANOW)  # (what was typed meanwhile counts)
        self._live.start()

    def _give_back(self) -> None:
        try:
            with contextlib.suppress(OSError):  # the terminal is gone
                self._live.stop()
        finally:
            if self._mode is not None:
                with contextlib.suppress(termios.error):
                    termios.tcsetattr(self._keys, termios.TCSANOW, self._mode)
                self._mode = None


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal that `wait` acts for."""

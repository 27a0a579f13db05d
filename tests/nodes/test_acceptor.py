"""Who accepts connections has each as soon as the other side may count on it."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from shmcast._nodes import acceptor, control


def test_the_connection_of_one_that_knows_itself_welcome_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    is_asked_for = threading.Event()

    class Slow(control.Listener):
        """Is not run for a while when it has told one that it is welcome."""

        def __init__(self, secret: str, on_link: Any, on_welcome: Any) -> None:
            def late(rank: int, connection: socket.socket) -> None:
                assert is_asked_for.wait(30)
                on_welcome(rank, connection)

            super().__init__(secret, on_link, late)

    monkeypatch.setattr(control, "Listener", Slow)
    monkeypatch.setattr(acceptor, "time", SimpleNamespace(sleep=lambda _: is_asked_for.set()))
    here = acceptor.Acceptor("secret")
    with contextlib.closing(here):
        assert here.unseen([1, 2]) == [1, 2]
        with control.connect(here.addresses, "secret", 1) as there:
            assert (here.missing([1, 2]), here.unseen([1, 2])) == ([1, 2], [2])
            with here.connection(1) as connection:
                connection.setblocking(True)
                there.sendall(b"here")
                assert connection.recv(4) == b"here"
        with pytest.raises(KeyError):
            here.connection(2)

"""One thread for many descriptors keeps nothing of those that it was told to forget."""

from __future__ import annotations

import gc
import os
import threading
import weakref

from shmcast._host.epoll_thread import EpollThread
from tests.support.subprocess_programs import wait_until


class Owner:
    """Is called once, and then forgotten."""

    def __init__(self) -> None:
        self.was_called = threading.Event()

    def called(self, _events: int) -> None:
        self.was_called.set()


def test_the_last_handler_is_not_kept_until_there_is_another_event() -> None:
    thread = EpollThread("shmcast-test")
    owner = Owner()
    fd = os.eventfd(1)
    gc.disable()
    try:
        thread.add(fd, owner.called, once=True)
        assert owner.was_called.wait(30)
        thread.remove(fd)
        left = weakref.ref(owner)
        del owner
        wait_until(lambda: left() is None)
    finally:
        gc.enable()
        os.close(fd)

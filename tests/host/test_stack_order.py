"""A main thread is told first, and shmcast's own threads last, whoever has listed them."""

from __future__ import annotations

from shmcast._host.process import own_start_time  # (a file of the package's)
from shmcast._host.stack_order import in_order

_OWN_FILE = own_start_time.__code__.co_filename
_BOOTSTRAP = '  File "/lib/threading.py", line 1 in _bootstrap'


def test_of_py_spy() -> None:
    threads = [
        'Thread 12 (idle): "shmcast-engine"\n    _run (shmcast/_host/epoll_thread.py:64)',
        'Thread 13 (idle): "shmcast: reader 0"\n    _bootstrap (threading.py:1002)',
        'Thread 14 (idle): "worker of shmcast\'s user"\n    work (app.py:3)',
        'Thread 11 (active): "MainThread"\n    step (app.py:9)\n    main (app.py:20)',
        "Thread 15 (active)\n    callback (app.py:5)",
    ]
    own, own_in_c, other, main, unnamed = threads
    told = in_order("\n".join(threads) + "\n")
    assert told == "\n".join([main, other, unnamed, own, own_in_c])


def test_of_faulthandler() -> None:
    threads = [
        f'Thread 0x3 (most recent call first):\n  File "{_OWN_FILE}", line 6 in run\n{_BOOTSTRAP}',
        f"Thread 0x4 (most recent call first):\n{_BOOTSTRAP}",
        f'Thread 0x2 (most recent call first):\n  File "{_OWN_FILE}", line 6 in recv\n'
        f'  File "/app.py", line 5 in work\n{_BOOTSTRAP}',
        "Thread 0x5 [shmcast-reports] (most recent call first):\n  <no Python frame>",
        "Current thread 0x1 (most recent call first):\n"
        f'  File "{_OWN_FILE}", line 6 in recv\n  File "/app.py", line 20 in <module>',
    ]
    own, own_in_c, other, own_by_name, main = threads
    told = in_order("\n\n".join(threads) + "\n")
    assert told == "\n".join([main, other, own, own_in_c, own_by_name])


def test_of_nothing() -> None:
    assert in_order("") == ""

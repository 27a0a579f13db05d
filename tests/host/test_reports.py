"""A process tells others of its user what its threads do, when they ask."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from shmcast import InvalidArgument, Reader, Writer
from shmcast._host import reports
from shmcast._host.epoll_thread import epoll_thread
from shmcast._host.process import own_start_time, state_of
from tests.support.operators import wait_for_death
from tests.support.processes import Crew
from tests.support.subprocess_programs import run_to_its_end, wait_until


@pytest.fixture(autouse=True)
def _wanted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have this process answer during the test."""
    monkeypatch.setenv(reports.VARIABLE, "1")
    yield
    listener = reports._listener
    if listener is not None:
        epoll_thread(reports._THREAD).remove(listener.fileno())
        reports._forget()


def make_and_wait(_index: int, handle: object) -> None:
    os.environ[reports.VARIABLE] = "1"
    with Reader(handle, 0):  # type: ignore[arg-type]
        wait_for_death()


def test_a_member_tells_its_stacks(crew: Crew) -> None:
    with Writer(1) as writer:
        job = crew.workers[0].start(make_and_wait, 0, writer.handle)
        writer.wait_ready(30)
        pid = crew.workers[0].pid
        wait_until(lambda: "wait_for_death" in (reports.ask(pid, 30) or ""))
        told = reports.ask(pid, 30)
        job.kill()
    assert told is not None
    assert told.startswith('Thread "')
    assert '"MainThread"' in told
    assert "    wait_for_death (operators.py:" in told
    assert "    make_and_wait (test_reports.py:" in told
    assert "_answer" not in told


def test_a_stopped_process_does_not_answer(crew: Crew) -> None:
    with Writer(1) as writer:
        job = crew.workers[0].start(make_and_wait, 0, writer.handle)
        writer.wait_ready(30)
        pid = crew.workers[0].pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: (state := state_of(pid)) is not None and state.name == "stopped")
        assert reports.ask(pid, 0.05) is None
        job.kill()


def test_a_process_without_endpoints_and_one_that_is_none_do_not_answer() -> None:
    assert reports.ask(1, 1) is None
    assert reports.ask(4 * 1024 * 1024, 1) is None


@pytest.fixture
def asked() -> Iterator[Callable[[], bytes]]:
    """Return what this process answers, without any check of who answers."""
    with Writer(1):

        def ask() -> bytes:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(30)
                connection.connect(reports._address(os.getpid(), own_start_time()))
                return connection.recv(1 << 16)

        yield ask


def test_another_user_is_told_nothing(
    asked: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked()
    monkeypatch.setattr(reports, "_peer_of", lambda _connection: (1, os.geteuid() + 1))
    assert asked() == b""


def test_who_only_has_the_name_is_not_believed(
    asked: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reports.ask(os.getpid(), 30)
    monkeypatch.setattr(reports, "_peer_of", lambda _connection: (1, os.geteuid()))
    assert reports.ask(os.getpid(), 30) is None


def test_who_asks_and_goes_harms_nobody(asked: Callable[[], bytes]) -> None:
    for _ in range(50):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(reports._address(os.getpid(), own_start_time()))
    assert asked()


@pytest.mark.parametrize("chosen", ["", "0"])
def test_nobody_answers_unasked_for(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(reports.VARIABLE, chosen)
    with Writer(1):
        assert reports._listener is None
        assert reports.ask(os.getpid(), 1) is None


def test_a_setting_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(reports.VARIABLE, "yes")
    with pytest.raises(InvalidArgument, match="SHMCAST_REPORTS='yes' is neither 0 nor 1"):
        Writer(1)


def test_a_deep_stack_is_cut(asked: Callable[[], bytes]) -> None:
    entered, leave = threading.Event(), threading.Event()

    def deeper(depth: int) -> None:
        if depth:
            deeper(depth - 1)
        else:
            entered.set()
            leave.wait(40)

    thread = threading.Thread(target=deeper, args=(500,))
    thread.start()
    try:
        assert entered.wait(40)
        assert asked().count(b"deeper") <= 100
    finally:
        leave.set()
        thread.join()


def test_where_there_can_be_no_thread_a_writer_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> NoReturn:
        raise RuntimeError("can't start new thread")

    spare = socket.socket(socket.AF_UNIX)
    monkeypatch.setattr(reports, "_listening", lambda: spare)
    monkeypatch.setattr(reports, "epoll_thread", refuse)
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send("x")
        assert reader.recv(10) == "x"
    assert spare.fileno() == -1


def test_a_program_ends_without_a_word() -> None:
    ran = run_to_its_end("from shmcast import Writer; Writer(1).close()")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def test_a_fork_answers_for_itself(crew: Crew) -> None:
    with Writer(1):
        pid = os.fork()
        if pid == 0:
            is_forgotten = reports._listener is None
            Writer(1).close()
            os._exit(0 if is_forgotten and reports._listener is not None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert reports.ask(os.getpid(), 30)

"""Processes are told apart, dead or alive, and what is known of them is told."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import re
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmcast._host import process as _process
from shmcast._host.process import Pidfd, pid_namespace, stack_of, start_time, state_of
from tests.support import confined
from tests.support.permissions import needs_root
from tests.support.subprocess_programs import (
    BLOCKS,
    SPINS,
    end_input,
    hear,
    running,
    tell,
    wait_until,
)

_kernel = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
needs_exit_info = pytest.mark.skipif(_kernel < (6, 15), reason="PIDFD_INFO_EXIT is of Linux 6.15")

ENDINGS = [("raise SystemExit(3)", "exit code 3"), ("os.kill(os.getpid(), 9)", "killed by SIGKILL")]

# A parent that starts a process, ends it at the first line it gets and reaps it at the second.
PARENT = """
import subprocess, sys
process = subprocess.Popen([sys.executable, "-I", "-S", "-c", {program!r}], stdin=subprocess.PIPE)
print(process.pid, flush=True)
input()
process.stdin.close()
input()
process.wait()
print("reaped", flush=True)
input()
"""


def program_that(ends: str) -> str:
    return f"import os, sys; sys.stdin.read(); {ends}"


@contextlib.contextmanager
def hold(pid: int) -> Iterator[Pidfd]:
    started = start_time(pid)
    assert started is not None
    with contextlib.closing(Pidfd(pid, started)) as pidfd:
        yield pidfd


def wait_for_the_end(pidfd: Pidfd) -> None:
    """Wait until the process is a zombie at least."""
    readable, _, _ = select.select([pidfd], [], [], 30)
    assert readable


def a_dead_pid() -> int:
    with running("") as process:
        process.wait()
    return process.pid


def state_name(pid: int) -> str:
    state = state_of(pid)
    assert state is not None
    return state.name


def test_the_start_time_of_a_process_stays_and_differs_from_an_older_ones() -> None:
    with running(BLOCKS) as process:
        own, its = start_time(os.getpid()), start_time(process.pid)
        assert own is not None
        assert its is not None
        assert own < its
        assert start_time(process.pid) == its


def test_nobody_has_no_start_time_and_no_state() -> None:
    pid = a_dead_pid()
    assert start_time(pid) is None
    assert state_of(pid) is None


@pytest.mark.parametrize("name", [") Z 1 2 (", "a b c", "))) (((", "x\ny"])
def test_a_command_name_of_spaces_and_parentheses_confuses_nobody(name: str) -> None:
    rename = f"open('/proc/self/comm', 'w').write({name!r})"
    with running(f"{rename}; print('renamed', flush=True); {BLOCKS}") as process:
        before = start_time(process.pid)
        assert hear(process) == "renamed"
        assert name.encode() in Path(f"/proc/{process.pid}/stat").read_bytes()
        assert start_time(process.pid) == before
        wait_until(lambda: state_name(process.pid) == "sleeping")


def test_the_pid_namespace_is_that_of_proc() -> None:
    assert str(Path("/proc/self/ns/pid").readlink()) == f"pid:[{pid_namespace()}]"


def test_one_namespace_is_the_same_for_all_in_it() -> None:
    with running("import os; print(os.stat('/proc/self/ns/pid').st_ino)") as process:
        assert int(hear(process)) == pid_namespace()


def test_a_living_process_is_not_dead_and_has_not_ended_somehow() -> None:
    with running(BLOCKS) as process, hold(process.pid) as pidfd:
        assert not pidfd.is_dead()
        assert pidfd.how() == ""


def test_a_stopped_process_is_alive() -> None:
    with running(BLOCKS) as process, hold(process.pid) as pidfd:
        process.send_signal(signal.SIGSTOP)
        wait_until(lambda: state_name(process.pid) == "stopped")
        assert not pidfd.is_dead()
        assert pidfd.how() == ""


def test_a_later_process_of_the_same_pid_is_another() -> None:
    with running(BLOCKS) as process:
        started = start_time(process.pid)
        assert started is not None
        with pytest.raises(ProcessLookupError, match=f"process {process.pid} has ended$"):
            Pidfd(process.pid, started - 1)


def test_a_pid_that_nobody_has_is_gone() -> None:
    with pytest.raises(ProcessLookupError):
        Pidfd(a_dead_pid(), 1)


def test_a_zombie_is_gone_and_told_how() -> None:
    with running(program_that("raise SystemExit(3)")) as process, hold(process.pid) as pidfd:
        started = start_time(process.pid)
        assert started is not None
        end_input(process)
        wait_for_the_end(pidfd)
        assert state_name(process.pid) == "zombie"
        with pytest.raises(ProcessLookupError, match="has ended: exit code 3"):
            Pidfd(process.pid, started)


def test_a_process_that_proc_hides_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_process, "start_time", lambda _pid: None)
    with running(BLOCKS) as process, pytest.raises(PermissionError, match="/proc hides"):
        Pidfd(process.pid, 1)


@pytest.mark.parametrize(("ends", "how"), [*ENDINGS, ("pass", "exit code 0")])
def test_how_a_child_ended_is_known_and_its_wait_still_works(ends: str, how: str) -> None:
    with running(program_that(ends)) as process, hold(process.pid) as pidfd:
        end_input(process)
        wait_for_the_end(pidfd)
        assert pidfd.is_dead()
        assert pidfd.how() == pidfd.how() == how
        code = process.wait()
        assert code == (-signal.SIGKILL if "SIGKILL" in how else int(how.split()[-1]))


def test_a_killed_child_is_told_with_its_signal() -> None:
    for number, name in ((signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN + 1, "signal 35")):
        with running(BLOCKS) as process, hold(process.pid) as pidfd:
            process.send_signal(number)
            wait_for_the_end(pidfd)
            assert pidfd.how() == f"killed by {name}"


@needs_exit_info
def test_how_a_child_ended_is_known_after_it_was_reaped() -> None:
    with running(BLOCKS) as process, hold(process.pid) as pidfd:
        process.kill()
        process.wait()
        assert pidfd.is_dead()
        assert pidfd.how() == "killed by SIGKILL"


@pytest.mark.parametrize(("ends", "how"), [*ENDINGS, ("pass", "exit code 0")])
def test_how_another_ones_child_ended_is_known_while_it_is_a_zombie(ends: str, how: str) -> None:
    with running(PARENT.format(program=program_that(ends))) as parent:
        pid = int(hear(parent))
        with hold(pid) as pidfd:
            tell(parent)
            wait_for_the_end(pidfd)
            assert state_name(pid) == "zombie"
            assert pidfd.how() == how


@contextlib.contextmanager
def another_ones_zombie(ends: str) -> Iterator[Pidfd]:
    program = PARENT.format(program=program_that(ends))
    with running(program) as parent, hold(int(hear(parent))) as pidfd:
        tell(parent)
        wait_for_the_end(pidfd)
        yield pidfd


@needs_root
@pytest.mark.parametrize("ends", ["pass", "raise SystemExit(3)"])
def test_what_the_kernel_hides_of_a_zombie_is_not_taken_for_exit_code_0(ends: str) -> None:
    with another_ones_zombie(ends) as pidfd, confined.process() as worker:
        job = worker.start(hold_as_another_user, pidfd._pid, pidfd._started)
        assert job.result() == f"process {pidfd._pid} has ended"


def hold_as_another_user(pid: int, started: int) -> str | None:
    os.setuid(confined.ANOTHER_UID)
    try:
        Pidfd(pid, started).close()
    except ProcessLookupError as error:
        return error.strerror
    return "it lives"


def test_a_later_zombie_of_the_same_pid_does_not_answer_for_a_process() -> None:
    program = PARENT.format(program=program_that("raise SystemExit(3)"))
    with running(program) as parent, hold(int(hear(parent))) as pidfd:
        tell(parent)
        wait_for_the_end(pidfd)
        pidfd._started -= 1
        assert pidfd.how() == ""


@needs_exit_info
@pytest.mark.parametrize(("ends", "how"), [*ENDINGS, ("pass", "exit code 0")])
def test_how_another_ones_child_ended_is_known_after_it_was_reaped(ends: str, how: str) -> None:
    program = PARENT.format(program=program_that(ends))
    with running(program) as parent, hold(int(hear(parent))) as pidfd:
        tell(parent)
        tell(parent)
        assert hear(parent) == "reaped"
        assert pidfd.is_dead()
        assert pidfd.how() == how


def test_a_core_dump_does_not_hide_the_signal() -> None:
    assert _process._in_words(signal.SIGSEGV | 0x80) == "killed by SIGSEGV"


def test_an_ending_that_the_kernel_does_not_tell_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(errno.ENOTTY, "as before Linux 6.13")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with running(BLOCKS) as process, hold(process.pid) as pidfd:
        process.kill()
        process.wait()
        assert pidfd.is_dead()
        assert pidfd.how() == ""


def test_a_python_built_against_old_headers_opens_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    with running(BLOCKS) as process, hold(process.pid) as pidfd:
        process.kill()
        wait_for_the_end(pidfd)
    with pytest.raises(ProcessLookupError):
        Pidfd(a_dead_pid(), 1)


def test_close_gives_the_descriptor_back_and_is_idempotent() -> None:
    with hold(os.getpid()) as pidfd:
        descriptor = pidfd.fileno()
        os.fstat(descriptor)
        for _ in range(2):
            pidfd.close()
            assert pidfd.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


@pytest.mark.usefixtures("no_gc")  # which closes what other tests have left
def test_a_refused_process_leaves_no_descriptor_open() -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(ProcessLookupError) as refusal:  # (its traceback keeps the object alive)
        Pidfd(os.getpid(), 1)
    assert refusal.tb is not None
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_process_that_waits_is_sleeping_and_one_that_computes_uses_cpu_time() -> None:
    with running(BLOCKS) as blocks, running(SPINS) as spins:
        wait_until(lambda: state_name(blocks.pid) == "sleeping")
        wait_until(lambda: state_name(spins.pid) == "running")
        before = state_of(spins.pid)
        assert before is not None

        def has_computed() -> bool:
            now = state_of(spins.pid)
            return now is not None and now.cpu_seconds > before.cpu_seconds

        wait_until(has_computed)


def test_all_threads_are_counted() -> None:
    program = f"""
import threading
over = threading.Event()
for _ in range(3):
    threading.Thread(target=over.wait, daemon=True).start()
print(flush=True)
{BLOCKS}
"""
    with running(program) as process:
        hear(process)
        state = state_of(process.pid)
        assert state is not None
        assert state.threads == 4


@pytest.fixture
def py_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where a program that is taken for py-spy can be put; no other is found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    return tmp_path / "py-spy"


def put(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)


def test_without_py_spy_there_is_no_stack(py_spy: Path) -> None:
    assert not py_spy.exists()
    assert stack_of(os.getpid()) == ""


def test_py_spy_is_asked_without_pausing_the_process(py_spy: Path) -> None:
    put(py_spy, 'echo; echo; echo "$@"')
    assert stack_of(7) == "dump --nonblocking --pid 7"


def test_the_stack_is_told_without_the_command_line(py_spy: Path) -> None:
    put(py_spy, "printf 'Process 7: serve --key x\\nPython v3\\n\\nThread 7\\n    f (x.py:1)\\n'")
    assert stack_of(7) == "Thread 7\n    f (x.py:1)"


def test_py_spy_is_found_beside_python(py_spy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(py_spy, "printf '\\n\\nstack'")
    monkeypatch.setenv("PATH", "/no/such/folder")
    monkeypatch.setattr(sys, "executable", str(py_spy.with_name("python")))
    assert stack_of(7) == "stack"


def test_a_py_spy_that_fails_hangs_or_cannot_run_tells_no_stack(py_spy: Path) -> None:
    put(py_spy, "printf '\\n\\npartial'; exit 1")
    assert stack_of(7) == ""
    put(py_spy, "while :; do :; done")
    assert stack_of(7, timeout=0.01) == ""
    py_spy.write_text("#!/no/such/shell\n")
    assert stack_of(7) == ""

"""Waits end, endpoints end, and misuse is told from both."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import threading
from pathlib import Path
from signal import SIGINT

import pytest

import shmcast
from shmcast import Reader, WaitPolicy, Writer
from tests.support.permissions import needs_torch
from tests.support.processes import Crew
from tests.support.subprocess_programs import TorchPrograms, run_to_its_end


def test_recv_times_out_and_loses_nothing(wait: WaitPolicy) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0, wait=wait) as reader:
        for timeout in (0, 0.01):
            with pytest.raises(shmcast.Timeout, match=rf"reader 0: recv timed out after {timeout}"):
                reader.recv(timeout)
        writer.send("late")
        assert reader.recv() == "late"


def test_a_timeout_is_a_builtin_timeout_error() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader, pytest.raises(TimeoutError):
        reader.recv(0)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
def test_a_timeout_that_is_no_time_is_refused_by_value(timeout: float) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for who, call in (
            ("reader 0: recv", reader.recv),
            ("reader 0: wait_ready", reader.wait_ready),
            ("writer: send", functools.partial(writer.send, 1)),
        ):
            with pytest.raises(shmcast.InvalidArgument, match=f"{who}: timeout={timeout!r}"):
                call(timeout)


def test_a_recv_that_timed_out_in_mid_message_goes_on_where_it_was() -> None:
    message = b"0123456789" * 1000
    with (
        Writer(1, slots=2, slot_bytes=128, wait=WaitPolicy.semaphore()) as writer,
        Reader(writer.handle, 0) as reader,
    ):
        sending = threading.Thread(target=writer.send, args=(message,))
        sending.start()
        attempts = 0
        while True:
            try:
                assert reader.recv(0) == message
                break
            except shmcast.Timeout:
                attempts += 1
        sending.join()
    assert writer.statistics().abandoned == 0


def test_wait_ready_names_who_is_missing() -> None:
    with Writer(2) as writer, Reader(writer.handle, 0) as reader:
        for endpoint in (writer, reader):
            with pytest.raises(shmcast.Timeout, match="1 of 2 readers have attached"):
                endpoint.wait_ready(timeout=0.01)
        with Reader(writer.handle, 1):
            writer.wait_ready(timeout=10)
            reader.wait_ready(timeout=10)


def test_readers_drain_what_was_sent_before_the_close() -> None:
    writer = Writer(1)
    with Reader(writer.handle, 0) as reader:
        for k in range(5):
            writer.send(k)
        writer.close()
        assert [reader.recv() for _ in range(5)] == list(range(5))
        for _ in range(2):
            with pytest.raises(shmcast.Closed, match="the writer has closed"):
                reader.recv()


def test_send_to_nobody_is_an_error() -> None:
    with Writer(2) as writer:
        for index in range(2):
            with Reader(writer.handle, index):
                writer.send("heard by some")
        with pytest.raises(shmcast.Closed, match="every reader has closed"):
            writer.send("unheard")


def test_a_reader_that_closes_does_not_hold_the_others_up() -> None:
    with Writer(2, slots=2) as writer, Reader(writer.handle, 0) as stays:
        Reader(writer.handle, 1).close()
        for k in range(10):
            writer.send(k, timeout=10)
            assert stays.recv() == k


def test_use_after_close_is_told_and_close_is_idempotent() -> None:
    writer = Writer(1)
    reader = Reader(writer.handle, 0)
    for endpoint in (reader, writer):
        endpoint.close()
        endpoint.close()
        assert endpoint.closed
    with pytest.raises(shmcast.Closed, match=r"recv after close\(\)"):
        reader.recv()
    with pytest.raises(shmcast.Closed, match=r"send after close\(\)"):
        writer.send(1)


def test_close_from_another_thread_ends_a_wait(wait: WaitPolicy) -> None:
    with Writer(1) as writer:
        reader = Reader(writer.handle, 0, wait=wait)
        caught: list[BaseException] = []

        def receive() -> None:
            try:
                reader.recv()
            except shmcast.Closed as error:
                caught.append(error)

        thread = threading.Thread(target=receive)
        thread.start()
        reader.close()
        thread.join()
        assert len(caught) == 1


def receive_when_alone(reader: Reader, got: list[str]) -> None:
    while not got:
        with contextlib.suppress(shmcast.ConcurrentUse):  # the other thread was the first
            got.append(reader.recv())


def receive_until_it_is_refused(reader: Reader) -> None:
    while True:
        with pytest.raises(shmcast.Timeout):
            reader.recv(0)


def test_a_second_thread_in_one_endpoint_is_told(wait: WaitPolicy) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0, wait=wait) as reader:
        got: list[str] = []
        thread = threading.Thread(target=receive_when_alone, args=(reader, got))
        thread.start()
        with pytest.raises(shmcast.ConcurrentUse, match="another thread is inside"):
            receive_until_it_is_refused(reader)
        writer.send("for the first")  # the GIL is free while the thread waits, or this never runs
        thread.join()
        assert got == ["for the first"]


def interrupt_after(now: threading.Event) -> None:
    now.wait()
    os.kill(os.getpid(), SIGINT)


def interrupted_recv(index: int, policy: WaitPolicy) -> tuple[str, str]:
    with Writer(1) as writer, Reader(writer.handle, index, wait=policy) as reader:
        now = threading.Event()
        signaller = threading.Thread(target=interrupt_after, args=(now,))
        signaller.start()
        try:
            # Wherever the signal meets it: before the wait, between two looks, or asleep.
            now.set()
            reader.recv()
        except KeyboardInterrupt:
            signaller.join()
            writer.send("after")
            return "interrupted", reader.recv(30)
    return "not interrupted", ""


def test_ctrl_c_ends_a_recv_and_the_reader_lives_on(crew: Crew, wait: WaitPolicy) -> None:
    for _ in range(20):
        assert crew.run(1, interrupted_recv, wait) == [("interrupted", "after")]


def interrupted_send(index: int, policy: WaitPolicy) -> tuple[str, str]:
    with Writer(1, slots=2, slot_bytes=128, wait=policy) as writer:
        reader = Reader(writer.handle, 0)
        timer = threading.Thread(target=signal_when_full, args=(writer,))
        timer.start()
        try:
            writer.send(b"x" * 10_000)
        except KeyboardInterrupt:
            timer.join()
            answer = threading.Thread(target=writer.send, args=("after",))
            answer.start()
            received = reader.recv(30)
            answer.join()
            reader.close()
            return "interrupted", received
    return "not interrupted", ""


def signal_when_full(writer: Writer) -> None:
    while writer.statistics().lag != (2,):
        pass
    os.kill(os.getpid(), SIGINT)


def test_ctrl_c_ends_a_send_in_mid_message_and_the_next_one_arrives(
    crew: Crew, wait: WaitPolicy
) -> None:
    assert crew.run(1, interrupted_send, wait) == [("interrupted", "after")]


FORK = """
import os, shmcast
writer = shmcast.Writer(1)
reader = shmcast.Reader(writer.handle, 0)
pid = os.fork()
if pid == 0:
    for call in (lambda: writer.send(1), lambda: reader.recv(0), writer.wait_ready, writer.warm):
        try:
            call()
        except shmcast.Forked as error:
            assert "forked" in str(error), error
        else:
            os._exit(1)
    writer.close()
    reader.close()
    del writer, reader
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
writer.send("the parent goes on")
assert reader.recv(10) == "the parent goes on"
print("done")
"""

FORK_OF_A_WATCHER = """
import os, pickle, subprocess, sys, shmcast
writer = shmcast.Writer(1)
program = "import pickle, sys, shmcast; shmcast.Reader(pickle.load(sys.stdin.buffer), 0).recv()"
peer = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
pickle.dump(writer.handle, peer.stdin)
peer.stdin.close()
writer.wait_ready(30)
pid = os.fork()
if pid == 0:
    peer.returncode = 0  # not the child's
    sys.exit()  # with all that runs at exit
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
peer.kill()
try:
    while True:
        writer.send("on")
except shmcast.PeerDied as error:
    assert "killed by SIGKILL" in str(error), error
peer.wait()
print("done")
"""

NO_CLOSE = """
import shmcast
writer = shmcast.Writer(2)
reader = shmcast.Reader(writer.handle, 0)
writer.send("unread")
print("done")
"""

NO_MEMORY = """
import pickle, resource, threading, shmcast
from pathlib import Path
writer = shmcast.Writer(1, slots=4)
reader = shmcast.Reader(writer.handle, 0)
huge = pickle.PickleBuffer(bytes(200_000_000))
sender = threading.Thread(target=lambda: [writer.send(obj) for obj in (huge, "next")])
sender.start()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, resource.RLIM_INFINITY))
try:
    reader.recv(30)
except shmcast.DecodeError as error:
    assert isinstance(error.__cause__, MemoryError), error
assert reader.recv(30) == "next"
sender.join()
print("done")
"""

COLLECTED = """
import gc, numpy as np, torch, shmcast
def fail():
    raise TypeError("cannot be pickled")
class Bad:
    __reduce__ = fail
writer = shmcast.Writer(1, slots=2, slot_bytes=128)
reader = shmcast.Reader(writer.handle, 0)
gc.set_threshold(1)
for k in range(100):
    for large in (np.ones(10_000), torch.ones(10_000), torch.ones(100, 100).T):
        others = [[] for _ in range(k % 7)]  # so that the collector comes at any point
        for obj in (large, [large, Bad()]):
            try:
                writer.send(obj, 0)
            except (shmcast.Timeout, shmcast.EncodeError) as error:
                kept = [error]
                kept.append(kept)
            others = [[] for _ in range(k % 5)]
print("done")
"""

IMPORT = """
import sys, shmcast
heavy = {"torch", "numpy", "multiprocessing"} & set(sys.modules)
assert not heavy, heavy
print("done")
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(FORK, id="fork is refused in the child and harmless in the parent"),
        pytest.param(FORK_OF_A_WATCHER, id="a fork leaves the watch over the peers as it is"),
        pytest.param(NO_CLOSE, id="exit without close is clean"),
        pytest.param(NO_MEMORY, id="a message without memory for it costs only itself"),
        pytest.param(IMPORT, id="the import is light"),
    ],
)
def test_program(program: str) -> None:
    ran = run_to_its_end(program)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


@needs_torch
def test_errors_of_send_can_be_garbage_collected(torch_programs: TorchPrograms) -> None:
    ran = torch_programs.run_to_its_end(COLLECTED)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")


def test_a_collected_writer_removes_its_segment_and_is_told_as_a_failure() -> None:
    writer = Writer(2)
    name = writer.handle.name
    with Reader(writer.handle, 0) as reader:
        assert Path("/dev/shm", name[1:]).exists()
        del writer
        assert not Path("/dev/shm", name[1:]).exists()
        with pytest.raises(shmcast.PeerDied, match=r"ended without close\(\)"):
            reader.recv()


def test_endpoints_refuse_to_be_pickled_and_name_the_handle() -> None:
    with Writer(1) as writer, pytest.raises(TypeError, match="send its `handle`"):
        pickle.dumps(writer)


def test_the_handle_is_small() -> None:
    with Writer(8) as writer:
        data = pickle.dumps(writer.handle)
    assert len(data) < 300
    assert pickle.loads(data) == writer.handle  # noqa: S301

"""A program ends while its threads wait: they end without a word, and so does it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.subprocess_programs import run_to_its_end

PREAMBLE = """
import logging, sys, threading, time
import shmcast
from shmcast import Reader, WaitPolicy, Writer

def beside(function, *arguments):
    threading.Thread(target=function, args=arguments, daemon=True).start()
    time.sleep(0.1)  # (it is inside now; else nothing is tested, but nothing fails)

def pair(**wait):
    writer = Writer(1, slots=2)
    reader = Reader(writer.handle, 0, **wait)
    kept.append(writer)
    return writer, reader

def sleep(*_):
    while True:
        time.sleep(0.0001)

kept = []
"""

CALLS = {
    "recv": "beside(pair()[1].recv)",
    "recv, with a time-out": "beside(pair()[1].recv, 1000)",
    "recv, spinning": "beside(pair(wait=WaitPolicy.spin())[1].recv)",
    "recv, parked": "beside(pair(wait=WaitPolicy.semaphore())[1].recv)",
    "send to a full ring": """
writer, reader = pair()
def send():
    while True:
        writer.send(bytes(60_000))
beside(send)
""",
    "send of a streamed message": """
writer, reader = pair()
beside(writer.send, bytes(1_000_000))
""",
    "wait_ready": "kept.append(Writer(2)); beside(kept[0].wait_ready)",
    "messages": """
writer, reader = pair()
def talk():
    while True:
        writer.send(1)
        reader.recv()
beside(talk)
""",
    # The core calls Python, which gives up the GIL and wants it back when there is none.
    "a filter of the log, called by the core": """
def slow(record):
    while True:
        time.sleep(0.0001)
logging.getLogger("shmcast").addFilter(slow)
beside(pair(warn_after=0.01)[1].recv)
""",
    "a codec, called by the core to warm up": """
class Slow(shmcast.ObjectCodec):
    practises = False
    def decode(self, frames):
        while self.practises:
            time.sleep(0.0001)
        return super().decode(frames)
codec = Slow()
writer, reader = pair(wait=WaitPolicy.spin(), codec=codec)
codec.practises = True
beside(reader.recv)
""",
    "a large message on its way to the arena": """
import numpy as np
writer = Writer(1, arena_bytes=1 << 28)
kept.append(writer)
def send():
    while True:
        writer.send([np.ones(1 << 26, np.uint8)])
beside(send)
""",
    # Python code of the program's, called by the core: as it sleeps, it gives up the GIL.
    "a limit of memory, asked for the arena's": """
import numpy as np
from shmcast._host import shared_memory
shared_memory._arena_room = lambda: sleep
writer = Writer(1, arena_bytes=1 << 28)
kept.append(writer)
beside(writer.send, [np.ones(1 << 26, np.uint8)])
""",
    "a codec that warms up": """
class Slow(shmcast.PickleCodec):
    practises = False
    def encode(self, message):
        while self.practises:
            time.sleep(0.0001)
        return super().encode(message)
codec = Slow()
kept.append(Writer(1, codec=codec))
codec.practises = True
beside(kept[0].warm)
""",
    "a time-out that is made a number": """
class Slow:
    __float__ = sleep
beside(pair()[1].recv, Slow())
""",
    "frames that are made while they are sent": """
class Slow:
    __iter__ = sleep
from shmcast._endpoints.frame_writer import FrameWriter
kept.append(FrameWriter(1))
beside(kept[0].publish, Slow())
""",
    "a storage that is asked for its memory": """
class Slow:
    data_ptr = sleep
beside(shmcast._core.StorageView, Slow(), 0, 1)
""",
    "the end of what a view is of": """
class Slow:
    __del__ = sleep
def drop():
    view = shmcast._core.View(1, 0, Slow())
    del view
beside(drop)
""",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_thread_that_waits_at_exit_ends_without_a_word(call: str) -> None:
    for _ in range(3):
        program = run_to_its_end(f"{PREAMBLE}{call}\nsys.exit(3)")
        assert (program.returncode, program.stdout, program.stderr) == (3, "", "")


def test_a_thread_that_close_ends_at_exit_is_told() -> None:
    # (A writer whose reader never comes: an end of this process would be closed by the exit first.)
    program = run_to_its_end(f"""{PREAMBLE}
import atexit
def stop():
    writer.close()
    thread.join()
atexit.register(stop)
writer = Writer(1, wait=WaitPolicy.semaphore())
def wait():
    try:
        writer.wait_ready()
    except shmcast.Closed as error:
        print("closed")
thread = threading.Thread(target=wait, daemon=True)
thread.start()
while not writer.statistics().parks:
    time.sleep(0.001)
""")
    assert (program.returncode, program.stdout, program.stderr) == (0, "closed\n", "")


@pytest.mark.parametrize("when", ["before the pair", "after the pair"])
def test_a_writer_that_an_exit_handler_closes_ends_threads_without_a_word(when: str) -> None:
    first, last = "import atexit; atexit.register(lambda: kept[0].close())", ""
    if when == "after the pair":
        first, last = last, first
    program = run_to_its_end(f"""{PREAMBLE}
{first}
writer, reader = pair()
{last}
beside(reader.recv)
""")
    assert (program.returncode, program.stdout, program.stderr) == (0, "", "")


def test_a_thread_that_works_on_after_the_main_one_is_told_of_the_close() -> None:
    program = run_to_its_end(f"""{PREAMBLE}
writer, reader = pair()
def receive():
    try:
        reader.recv()
    except shmcast.Closed:
        print("closed", flush=True)
    done.set()
def work():
    threading.main_thread().join()
    writer.close()
    done.wait(20)
done = threading.Event()
threading.Thread(target=receive, daemon=True).start()
threading.Thread(target=work).start()
""")
    assert (program.returncode, program.stdout, program.stderr) == (0, "closed\n", "")


LEAVE_IN_CHILD = """
import multiprocessing, os, sys
kept = []

def leave(results):
    import shmcast
    writer = shmcast.Writer(1, arena_bytes=1 << 20)
    reader = shmcast.Reader(writer.handle, 0)
    other = shmcast.Writer(1, arena_bytes=1 << 20)
    kept.extend([writer, reader, other])
    results.put([other.handle.name, other.handle.arena.name])

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    results = context.SimpleQueue()
    process = context.Process(target=leave, args=(results,))
    process.start()
    names = results.get()
    process.join()
    print(process.exitcode, [name for name in names if os.path.exists("/dev/shm" + name)])
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_process_of_multiprocessing_leaves_no_names(method: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(LEAVE_IN_CHILD)
    ran = subprocess.run(  # noqa: S603
        [sys.executable, path, method], capture_output=True, text=True, timeout=50, check=False
    )
    assert (ran.stdout, ran.stderr) == ("0 []\n", "")


@pytest.mark.parametrize("is_isolated", [True, False])
def test_a_subinterpreter_is_told_that_it_cannot_have_the_core(is_isolated: bool) -> None:
    program = run_to_its_end(
        f"is_isolated = {is_isolated}\n"
        """
import shmcast, sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
with shmcast.Writer(1) as writer, shmcast.Reader(writer.handle, 0) as reader:
    if sys.version_info >= (3, 13):
        other = interpreters.create("isolated" if is_isolated else "legacy")
    else:
        other = interpreters.create(isolated=is_isolated)
    code = f'''
import sys
sys.path[:] = {sys.path!r}
try:
    import shmcast._core
except ImportError:
    pass
else:
    raise SystemError("imported")
'''
    run = getattr(interpreters, "run_string", None) or interpreters.exec
    assert run(other, code) is None
    interpreters.destroy(other)
    writer.send("still here")
    assert reader.recv() == "still here"
    try:
        reader.recv(0)
    except shmcast.Timeout:
        print("and its errors")
"""
    )
    assert (program.returncode, program.stdout, program.stderr) == (0, "and its errors\n", "")

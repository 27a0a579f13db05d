"""What the garbage collector sees of endpoints, and what it takes."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest

import shmcast
from shmcast import Handle, ObjectCodec, Reader, Writer
from tests.support.subprocess_programs import run_to_its_end

MIB = 1 << 20
SECONDS = 30.0


class LabelsReaders:
    """Owns a writer that names its readers by a method of the owner."""

    def __init__(self, handle: Handle) -> None:
        self.end: Writer | Reader = Writer(handle.readers, reader_label=self.name)

    def name(self, index: int) -> str:
        return f"worker {index}"


class LabelsPeers(LabelsReaders):
    def __init__(self, handle: Handle) -> None:
        self.end = Reader(handle, 0, peer_label=self.name)


class LabelsByClosure:
    def __init__(self, handle: Handle) -> None:
        self.names = ["worker"]
        self.end = Reader(handle, 0, peer_label=lambda index: self.names[index])


class IsTheCodec(ObjectCodec):
    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self.end: Writer | Reader = Writer(handle.readers, codec=self)


class IsTheReadersCodec(ObjectCodec):
    def __init__(self, handle: Handle) -> None:
        super().__init__()
        self.end = Reader(handle, 0, codec=self)


@pytest.mark.parametrize(
    "make", [LabelsReaders, LabelsPeers, LabelsByClosure, IsTheCodec, IsTheReadersCodec]
)
def test_an_endpoint_keeps_nobody_alive_who_owns_it(make: Callable[[Handle], object]) -> None:
    with Writer(1) as writer:
        owner = make(writer.handle)
        gone = weakref.ref(owner)
        del owner
        gc.collect()
        assert gone() is None


def test_a_label_of_ones_own_still_names_the_readers() -> None:
    with Writer(1, slots=2, reader_label="worker {}".format) as writer:
        writer.send(1)
        writer.send(2)
        with pytest.raises(shmcast.Timeout, match="worker 0 is 2 fragments behind"):
            writer.send(3, timeout=0)


def test_nobody_sees_a_list_of_frames_that_is_not_full() -> None:
    # (A list with places without an object ends the process of whoever looks at it.)
    program = run_to_its_end("""
import gc
import numpy as np
import shmcast
from shmcast import Reader, Writer

def look():
    return sum(len(list(o)) for o in gc.get_objects() if type(o) is list)

with Writer(2, slots=4, slot_bytes=4096, arena_bytes=1 << 20) as writer:
    readers = [Reader(writer.handle, index) for index in range(2)]
    try:
        writer.send([np.zeros(512 * 1024, np.uint8), np.zeros(100_000, np.uint8)], timeout=0.1)
    except shmcast.Timeout:
        pass
    for copy in (False, True):
        try:
            readers[0].recv(0.01, copy=copy)
        except shmcast.Timeout:
            assert look() > 0
            print("looked")
""")
    assert (program.returncode, program.stdout, program.stderr) == (0, "looked\nlooked\n", "")


def test_a_close_in_another_thread_gives_errors_of_shmcast_only() -> None:
    for _ in range(30):
        assert not raw_errors_of_a_close()


def raw_errors_of_a_close() -> list[Exception]:
    """Close a writer while other threads use it; return what they raise and don't document."""
    raw: list[Exception] = []
    writer = Writer(1, slots=64, slot_bytes=1024, arena_bytes=4 * MIB)
    reader = Reader(writer.handle, 0)
    loans = [writer.empty(300_000, np.uint8) for _ in range(3)]
    writer.send(loans)
    reader.recv()  # frozen: each later send looks at them
    is_under_way = threading.Event()

    def until_closed(call: Callable[[], object]) -> None:
        try:
            while True:
                call()
                is_under_way.set()
        except shmcast.Closed:
            pass
        except Exception as error:
            raw.append(error)

    def send() -> None:
        writer.send([loans[0], 1])
        reader.recv(SECONDS)

    def look() -> None:
        writer.thaw(loans[1])
        writer.statistics()

    threads = [threading.Thread(target=until_closed, args=(call,)) for call in (send, look)]
    for thread in threads:
        thread.start()
    is_under_way.wait(SECONDS)
    writer.close()
    for thread in threads:
        thread.join()
    reader.close()
    return raw

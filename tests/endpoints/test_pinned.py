"""A pinned arena, with a stand-in for CUDA; with a real one in test_cuda.py."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import Reader, Writer, _core
from shmcast._endpoints import pinned as _pinning

ARENA = 1 << 20
FITS_ONCE = 700 << 10


class Event:
    """Work that is done when a test says so."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.is_done = False
        self.was_waited_for = False

    def query(self) -> bool:
        return self.is_done

    def synchronize(self) -> None:
        self.is_done = self.was_waited_for = True


class FakeCuda(_pinning.Cuda):
    """Remembers what it is asked for."""

    def __init__(self) -> None:
        self.registered: dict[int, tuple[int, bool]] = {}
        self.events: list[Event] = []
        self.error = 0

    def why_not(self) -> str | None:
        return None

    def register(self, address: int, nbytes: int, read_only: bool) -> int:
        if not self.error:
            self.registered[address] = (nbytes, read_only)
        return self.error

    def unregister(self, address: int) -> None:
        del self.registered[address]

    def record(self, stream: Any = None) -> Event:
        self.events.append(Event(stream))
        return self.events[-1]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(_pinning, "cuda", fake)
    return fake


def large() -> np.ndarray[Any, Any]:
    return np.arange(FITS_ONCE, dtype=np.uint8)


def test_without_cuda_pinning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pinning.Cuda, "why_not", lambda _: "torch finds no CUDA device")
    with pytest.raises(shmcast.InvalidArgument, match="driver: pin=True: torch finds no CUDA"):
        Writer(1, arena_bytes=ARENA, pin=True, label="driver")
    with (
        Writer(1, arena_bytes=ARENA) as writer,
        pytest.raises(shmcast.InvalidArgument, match="reader 0: pin=True: torch finds no CUDA"),
    ):
        Reader(writer.handle, 0, pin=True)


def test_pinning_without_an_arena_is_an_error() -> None:
    with pytest.raises(shmcast.InvalidArgument, match="needs an arena; pass arena_bytes="):
        Writer(1, pin=True)
    with (
        Writer(1) as writer,
        pytest.raises(shmcast.InvalidArgument, match="the writer has no arena"),
    ):
        Reader(writer.handle, 0, pin=True)


def test_what_cuda_refuses_is_told(cuda: FakeCuda) -> None:
    cuda.error = 2
    with pytest.raises(shmcast.ShmcastError, match=r"error 2 \(the limit of locked memory"):
        Writer(1, arena_bytes=ARENA, pin=True)


def test_each_process_registers_the_arena_and_only_the_writer_to_write(cuda: FakeCuda) -> None:
    with (
        Writer(1, arena_bytes=ARENA, pin=True) as writer,
        Reader(writer.handle, 0, pin=True),
    ):
        assert sorted(cuda.registered.values()) == [(ARENA, False), (ARENA, True)]
        assert writer.statistics().arena_reserved_bytes == ARENA


def test_the_registration_ends_with_the_last_view_not_with_close(cuda: FakeCuda) -> None:
    with (
        Writer(1, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0, pin=True) as reader,
    ):
        writer.send([large()])
        (view,) = reader.recv(copy=False)
    ended = weakref.ref(reader)
    del reader
    assert ended() is None
    assert cuda.registered
    assert np.array_equal(view, large())
    del view
    assert not cuda.registered
    assert cuda.events[0].was_waited_for


def test_memory_is_not_used_again_while_a_copy_from_a_view_is_in_flight(cuda: FakeCuda) -> None:
    with (
        Writer(1, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0, pin=True) as reader,
    ):
        writer.send([large()])
        reader.recv(copy=False)  # and dropped
        (event,) = cuda.events
        writer.send([large()])
        assert np.array_equal(reader.recv(copy=False)[0], large())
        assert writer.statistics().arena_full == 1  # streamed: no room
        event.is_done = True
        writer.send(None)
        reader.recv()  # looks at the events
        writer.send([large()])
        assert np.array_equal(reader.recv(copy=False)[0], large())
        assert writer.statistics().arena_full == 1


def test_other_streams_that_were_recorded_are_waited_for_too(cuda: FakeCuda) -> None:
    stream: Any = object()
    with (
        Writer(1, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0, pin=True) as reader,
    ):
        writer.send([torch.arange(FITS_ONCE, dtype=torch.uint8)])
        (view,) = reader.recv(copy=False)
        reader.record_stream(view[100:], stream)
        del view
        current, other = cuda.events
        assert [current.stream, other.stream] == [None, stream]
        current.is_done = True
        writer.send(None)
        reader.recv()
        writer.send([large()])
        reader.recv(copy=False)
        assert writer.statistics().arena_full == 1
        other.is_done = True
        writer.send(None)
        reader.recv()
        writer.send([large()])
        reader.recv(copy=False)
        assert len(cuda.events) == 3  # no stream is left over from the first view
        assert writer.statistics().arena_full == 1


def test_a_loan_is_kept_while_a_copy_from_it_is_in_flight(cuda: FakeCuda) -> None:
    with Writer(1, arena_bytes=ARENA, pin=True) as writer:
        loan = writer.empty(FITS_ONCE, np.uint8)
        address = loan.__array_interface__["data"][0]
        del loan
        (event,) = cuda.events
        writer.empty(FITS_ONCE, np.uint8)  # in ordinary memory
        assert writer.statistics().arena_full == 1
        event.is_done = True
        again = writer.empty(FITS_ONCE, np.uint8)
        assert again.__array_interface__["data"][0] == address
        assert writer.statistics().arena_full == 1


def test_a_tensor_view_of_a_pinned_arena_lies_in_the_registered_memory(cuda: FakeCuda) -> None:
    with (
        Writer(1, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0, pin=True) as reader,
    ):
        writer.send([torch.arange(FITS_ONCE, dtype=torch.uint8)])
        (view,) = reader.recv(copy=False)
        ((base, (size, _)),) = cuda.registered.items()
        assert base <= view.data_ptr() < base + size
        assert torch.equal(view, torch.arange(FITS_ONCE, dtype=torch.uint8))


def test_an_error_of_cuda_when_a_view_goes_is_reported_and_nothing_is_lost(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda report: reported.append(str(report.exc_value)))

    def fail(_self: FakeCuda, _stream: Any = None) -> Event:
        raise RuntimeError("CUDA error: device lost")

    monkeypatch.setattr(FakeCuda, "record", fail)
    with (
        Writer(1, arena_bytes=ARENA) as writer,
        Reader(writer.handle, 0, pin=True) as reader,
    ):
        for _ in range(2):
            writer.send([large()])
            assert np.array_equal(reader.recv(copy=False)[0], large())
        assert writer.statistics().arena_full == 0
    assert reported == ["CUDA error: device lost"] * 2


def test_a_claim_can_only_be_made_by_the_core() -> None:
    with pytest.raises(TypeError):
        _core.Claim()

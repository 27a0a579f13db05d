"""Calls that are ended from outside: by interrupt(), and by signals whose handlers raise."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import pytest

import shmcast
from shmcast import ObjectCodec, Reader, WaitPolicy, Writer
from shmcast._endpoints import frame_writer
from tests.support.subprocess_programs import wait_until

SECONDS = 30.0


@contextmanager
def signalled_while_waiting(writer: Writer) -> Iterator[None]:
    """Signal the main thread once the writer waits for room."""
    main = threading.get_ident()
    waits = writer.statistics().parks

    def signal_it() -> None:
        wait_until(lambda: writer.statistics().parks > waits)
        signal.pthread_kill(main, signal.SIGUSR1)

    thread = threading.Thread(target=signal_it)
    thread.start()
    yield
    thread.join()


class Handled(Exception):
    """What a signal's handler raises."""


@contextmanager
def handler(function: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, function)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def fail(_number: int, _frame: FrameType | None) -> NoReturn:
    raise Handled


def test_what_was_to_be_sent_is_not_held_by_the_error(no_gc: None) -> None:
    def unsent(error: type[Exception], timeout: float) -> weakref.ref[Any]:
        array = np.ones(100_000)
        try:
            writer.send(array, timeout)
        except error:
            return weakref.ref(array)
        raise AssertionError

    with Writer(1, slots=2) as writer:
        assert unsent(shmcast.Timeout, 0)() is None
        with handler(fail), signalled_while_waiting(writer):
            assert unsent(Handled, SECONDS)() is None


def test_an_interrupted_decode_holds_no_memory_of_the_arena(no_gc: None) -> None:
    codec = SignalsOnce("decode")
    with (
        Writer(1, arena_bytes=1 << 20) as writer,
        Reader(writer.handle, 0, codec=codec) as reader,
        handler(fail),
    ):
        writer.send(np.ones(50_000))
        try:
            reader.recv(SECONDS, copy=False)
        except Handled:
            pass
        else:
            raise AssertionError
        view = reader.recv(SECONDS, copy=False)
        assert writer._end._ring.loan(1 << 20) is None
        del view
        assert writer._end._ring.loan(1 << 20) is not None


class SignalsOnce(ObjectCodec):
    """Signals itself while it encodes or decodes the first object."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def _signal(self, what: str) -> None:
        if self._what == what:
            self._what = ""
            signal.raise_signal(signal.SIGUSR1)

    def encode(self, obj: Any) -> list[Any]:
        self._signal("encode")
        return super().encode(obj)

    def decode(self, frames: list[Any]) -> Any:
        self._signal("decode")
        return super().decode(frames)

    sample = None  # type: ignore[assignment]


def test_an_error_of_a_handler_is_not_the_codecs_and_loses_nothing() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0, codec=SignalsOnce("decode")) as reader:
        writer.send(1)
        writer.send(2)
        with handler(fail), pytest.raises(Handled):
            reader.recv(SECONDS)
        assert [reader.recv(SECONDS), reader.recv(SECONDS)] == [1, 2]


def test_nor_is_that_of_an_object_that_puts_another_in_its_place() -> None:
    class Handler:
        def __call__(self, *_arguments: Any) -> NoReturn:
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            raise Handled

    with Writer(1) as writer, Reader(writer.handle, 0, codec=SignalsOnce("decode")) as reader:
        writer.send(1)
        with handler(Handler()), pytest.raises(Handled):
            reader.recv(SECONDS)
        assert reader.recv(SECONDS) == 1


def test_while_encoding_a_handler_ends_the_send_with_its_own_error() -> None:
    with (
        Writer(1, codec=SignalsOnce("encode")) as writer,
        Reader(writer.handle, 0) as reader,
        handler(fail),
    ):
        with pytest.raises(Handled):
            writer.send(1)
        writer.send(2)
        assert reader.recv(SECONDS) == 2


class SignalsWhenFreed(ObjectCodec):
    """Has a signal come with the end of the first message's frames, when its object is made."""

    def __init__(self) -> None:
        super().__init__()
        signals = ctypes.CDLL(None)["raise"]  # (Python has no look at signals in it, or behind it)
        signals.argtypes = [ctypes.c_int, ctypes.py_object]
        self._at_the_end = functools.partial(signals, signal.SIGUSR1)
        self.decoded = 0
        self._watched: list[Any] = []

    def decode(self, frames: list[Any]) -> Any:
        self.decoded += 1
        if not self._watched:
            frames.append(frozenset({self.decoded}))
            self._watched.append(weakref.ref(frames[-1], self._at_the_end))
        return super().decode(frames[:1])

    sample = None  # type: ignore[assignment]


def receive_later(reader: Reader) -> Any:
    return asyncio.run(reader.recv_async(SECONDS))


@pytest.mark.parametrize(
    "receive",
    [
        lambda reader: reader.recv(SECONDS),
        lambda reader: reader.recv(SECONDS, copy="arrays"),
        receive_later,
    ],
    ids=["recv", "recv in part", "recv_async"],
)
def test_a_signal_that_comes_as_the_frames_go_loses_nothing(
    receive: Callable[[Reader], Any],
) -> None:
    codec = SignalsWhenFreed()
    with Writer(1) as writer, Reader(writer.handle, 0, codec=codec) as reader:
        for obj in ("first", "second"):
            writer.send(obj)
        with handler(fail), pytest.raises(Handled):
            reader.recv(SECONDS)
        assert receive(reader) == "first"
        assert codec.decoded == 1
        assert receive(reader) == "second"


def test_an_object_that_nobody_has_got_ends_with_its_reader() -> None:
    class Known:
        pass

    codec = SignalsWhenFreed()
    decode = codec.decode
    made: list[weakref.ref[Known]] = []

    def decode_known(frames: list[Any]) -> Known:
        decode(frames)
        made.append(weakref.ref(known := Known()))
        return known

    codec.decode = decode_known  # type: ignore[method-assign]
    with Writer(1) as writer, Reader(writer.handle, 0, codec=codec) as reader:
        writer.send("never received")
        with handler(fail), pytest.raises(Handled):
            reader.recv(SECONDS)
        assert made[0]() is not None
        reader.close()
        assert made[0]() is None
        with pytest.raises(shmcast.Closed, match=r"recv after close\(\)"):
            reader.recv(SECONDS)


def test_an_error_of_the_codec_still_consumes_the_message() -> None:
    class Fails(ObjectCodec):
        def decode(self, frames: list[Any]) -> Any:
            obj = super().decode(frames)
            if obj == "bad":
                raise Handled
            if obj == "worse":
                raise SystemExit(obj)
            return obj

    with Writer(1) as writer, Reader(writer.handle, 0, codec=Fails()) as reader:
        for obj in ("bad", "worse", "good"):
            writer.send(obj)
        with pytest.raises(shmcast.DecodeError, match="Handled"):
            reader.recv(SECONDS)
        with pytest.raises(SystemExit):
            reader.recv(SECONDS)
        assert reader.recv(SECONDS) == "good"


def test_what_was_kept_is_received_before_the_writers_end_and_not_after_close() -> None:
    writer = Writer(1)
    reader = Reader(writer.handle, 0, codec=SignalsOnce("decode"))
    writer.send(1)
    writer.close()
    with handler(fail), pytest.raises(Handled):
        reader.recv(SECONDS)
    assert reader.recv(SECONDS) == 1
    with pytest.raises(shmcast.Closed, match="the writer has closed"):
        reader.recv(SECONDS)
    reader.close()


@pytest.mark.parametrize("timeout", [None, SECONDS])
def test_interrupt_ends_a_recv_which_takes_nothing(wait: WaitPolicy, timeout: float | None) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0, wait=wait) as reader:
        caught: list[BaseException] = []

        def receive() -> None:
            try:
                reader.recv(timeout)
            except BaseException as error:
                caught.append(error)

        receiving = threading.Thread(target=receive)
        receiving.start()
        reader.interrupt()  # before it waits, or when it does
        receiving.join()
        (error,) = caught
        assert isinstance(error, shmcast.Interrupted)
        assert isinstance(error, InterruptedError)
        assert str(error) == "reader 0: recv was ended by interrupt(); call again"
        writer.send("later")
        assert reader.recv(SECONDS) == "later"


def test_interrupt_ends_a_send_which_reaches_nobody() -> None:
    with Writer(1, slots=2, slot_bytes=128) as writer, Reader(writer.handle, 0) as reader:
        interrupting = threading.Timer(0.05, writer.interrupt)
        interrupting.start()
        with pytest.raises(shmcast.Interrupted, match=r"writer: send was ended by interrupt\(\)"):
            writer.send(bytes(10_000))
        assert not writer.was_sent
        sending = threading.Thread(target=writer.send, args=("next",))
        sending.start()
        assert reader.recv(SECONDS) == "next"
        sending.join()
        assert writer.was_sent


def test_interrupt_ends_wait_ready_from_a_handler() -> None:
    with Writer(1) as writer:

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            writer.interrupt()

        main = threading.get_ident()
        with handler(interrupt):
            threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR1)).start()
            with pytest.raises(shmcast.Interrupted, match="wait_ready"):
                writer.wait_ready()


def test_an_interrupt_ends_one_call_the_next_if_there_is_none() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send(1)
        reader.interrupt()
        reader.interrupt()
        with pytest.raises(shmcast.Interrupted):
            reader.recv()
        assert reader.recv() == 1


def test_an_awaiting_caller_that_gives_up_loses_nothing() -> None:
    async def receive_within(reader: Reader, seconds: float) -> Any:
        receiving = asyncio.create_task(asyncio.to_thread(reader.recv))
        done, _ = await asyncio.wait({receiving}, timeout=seconds)
        if not done:
            reader.interrupt()
        return await receiving

    async def main() -> None:
        with pytest.raises(shmcast.Interrupted):
            await receive_within(reader, 0.01)
        writer.send("message 1")
        assert await receive_within(reader, SECONDS) == "message 1"

    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        asyncio.run(main())


class Interrupting:
    """Is reduced by what a signal's handler interrupts."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def test_an_object_whose_encoding_is_interrupted_was_not_sent() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.send("before")
        assert writer.was_sent
        with pytest.raises(KeyboardInterrupt):
            writer.send(Interrupting())
        assert not writer.was_sent
        with pytest.raises(shmcast.EncodeError):
            writer.send(lambda: 0)
        assert not writer.was_sent
        assert reader.recv(SECONDS) == "before"


def test_a_loan_whose_sending_is_interrupted_before_it_begins_is_not_frozen() -> None:
    def interrupt(frame: FrameType, _event: str, _arg: object) -> None:
        if frame.f_code is frame_writer._Freezing.__setitem__.__code__:
            raise KeyboardInterrupt

    with Writer(1, arena_bytes=1 << 24) as writer, Reader(writer.handle, 0) as reader:
        for is_interrupted in (False, True, False, True):
            loan = writer.empty(300_000, np.uint8)  # where the one before was
            before = sys.gettrace()
            try:
                if is_interrupted:
                    sys.settrace(interrupt)
                writer.send([loan])
            except KeyboardInterrupt:
                assert is_interrupted
            else:
                assert len(reader.recv(SECONDS)[0]) == 300_000
            finally:
                sys.settrace(before)
            assert writer.was_sent != is_interrupted
            assert loan.flags.writeable == is_interrupted
            del loan

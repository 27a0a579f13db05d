"""Objects go into a slot and come out of it in one step each, with what the frames way promises."""

from __future__ import annotations

import _thread
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shmcast
from shmcast import ObjectCodec, PickleCodec, Reader, Writer
from shmcast._codecs.base import Codec
from tests.support.codec_fuzz import OURS
from tests.support.permissions import IS_FREE_THREADED, by_core

SECONDS = 30.0
SLOT = 4096
PLACED = 64 * 1024
"""Bytes of the largest message that is decoded without a frame."""

during: list[Callable[[], object]] = []
"""What rebuilding an `Acting` does, in turn; then nothing."""


class Handled(Exception):
    """What a signal's handler raises."""


def act(value: Any) -> Any:
    if during:
        during.pop(0)()
    return value


class Acting:
    """Does something while it is rebuilt, and becomes its value."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return act, (self._value,)


class Interrupting:
    """Is rebuilt by a function of C, during which Ctrl-C is pressed; no code of Python runs."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _thread.interrupt_main, ()


@pytest.fixture(autouse=True)
def _nothing_to_do() -> Iterator[None]:
    during.clear()
    yield
    assert not during


@contextlib.contextmanager
def raising(times: int) -> Iterator[list[int]]:
    """Have a handler of Ctrl-C that raises so often; yield what it has counted."""
    calls: list[int] = []

    def handler(number: int, _frame: FrameType | None) -> None:
        calls.append(number)
        if len(calls) <= times:
            raise Handled

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield calls
    finally:
        signal.signal(signal.SIGINT, before)


CODECS: list[Callable[[], Codec]] = [ObjectCodec, PickleCodec]


@pytest.mark.parametrize("make", CODECS)
def test_a_signal_that_comes_while_an_object_is_rebuilt_loses_nothing(
    make: Callable[[], Codec],
) -> None:
    with (
        Writer(1, codec=make()) as writer,
        Reader(writer.handle, 0, codec=make()) as reader,
        raising(2) as calls,
    ):
        writer.send(["first", Interrupting()])
        writer.send("second")
        for _ in range(2):
            with pytest.raises(Handled):
                reader.recv(SECONDS)
        assert reader.recv(SECONDS) == ["first", None]
        assert reader.recv(SECONDS) == "second"
        # (Python looks for signals within the decoding of the one; what the core had decoded of
        # frames when it looked is not decoded again.)
        assert len(calls) == (3 if make is PickleCodec or IS_FREE_THREADED else 2)
        assert reader.statistics().messages == 2


@pytest.mark.parametrize("make", CODECS)
def test_what_cannot_be_rebuilt_is_consumed_and_told(make: Callable[[], Codec]) -> None:
    def fail() -> None:
        raise shmcast.Timeout("of something else")

    with Writer(1, codec=make()) as writer, Reader(writer.handle, 0, codec=make()) as reader:
        for error, sent in ((shmcast.DecodeError, "bad"), (SystemExit, "worse")):
            during.append(fail if sent == "bad" else exit_now)
            writer.send(Acting(sent))
            writer.send("good")
            with pytest.raises(error) as caught:
                reader.recv(SECONDS)
            if error is shmcast.DecodeError:
                assert "(1 frame(s)): Timeout: of something else" in str(caught.value)
                assert isinstance(caught.value.__cause__, shmcast.Timeout)
            assert reader.recv(SECONDS) == "good"
            with pytest.raises(shmcast.Timeout, match="recv timed out after 0"):
                reader.recv(0)


def exit_now() -> None:
    raise SystemExit


def test_an_error_says_where_it_came_from_though_it_was_raised_before() -> None:
    error = RuntimeError("again and again")

    def raise_it(*_arguments: object) -> Any:
        raise error

    class Refusing:
        __reduce__ = raise_it

    with (
        Writer(2, on_reader_death="drop", on_death=raise_it) as writer,
        Reader(writer.handle, 0) as reader,
    ):
        for _ in range(2):
            with pytest.raises(shmcast.EncodeError):
                writer.send(Refusing())
        other = Reader(writer.handle, 1)
        other._end.give_up()
        with pytest.raises(RuntimeError) as caught:
            writer.send("not encoded in vain")
        assert caught.value is error
        writer.send("the next")
        assert reader.recv(SECONDS) == "the next"


def test_every_size_around_a_slot_and_the_largest_that_is_placed() -> None:
    with (
        Writer(1, slot_bytes=SLOT) as small,
        Writer(1, slots=4, slot_bytes=4 * PLACED) as large,
        Reader(small.handle, 0) as from_small,
        Reader(large.handle, 0) as from_large,
    ):
        sizes = [*range(SLOT - 20, SLOT + 20), *range(PLACED - 20, PLACED + 20), 3 * PLACED]
        for size in sizes:
            for kind in (bytes, bytearray, lambda n: "x" * n):
                obj = [kind(size), size]
                for writer, reader in ((small, from_small), (large, from_large)):
                    writer.send(obj, SECONDS)
                    assert reader.recv(SECONDS) == obj
                    writer.warm()
        assert from_large.statistics().fragments == 3 * len(sizes)


def test_what_was_received_keeps_nothing_of_the_slot_and_the_slot_is_free() -> None:
    with Writer(1, slots=2, slot_bytes=SLOT) as writer, Reader(writer.handle, 0) as reader:
        obj = {"text": "a" * 1000, "bytes": b"b" * 1000, "more": bytearray(b"c" * 100)}

        def overwrite() -> None:
            for fill in "xy":  # both slots
                writer.send(fill * 3000, 0)

        during.append(overwrite)
        writer.send([Acting(1), obj])
        assert reader.recv(SECONDS) == [1, obj]
        kept = reader.recv(SECONDS)
        assert reader.recv(SECONDS) == "y" * 3000
        assert kept == "x" * 3000


def test_an_object_may_receive_and_send_while_it_is_rebuilt() -> None:
    codec = ObjectCodec()
    got: list[Any] = []
    with Writer(1, codec=codec) as writer, Reader(writer.handle, 0, codec=codec) as reader:
        during.append(lambda: got.append(reader.recv(SECONDS)))
        writer.send([Acting("outer"), "z" * 100])
        writer.send(["inner", "w" * 200])
        assert reader.recv(SECONDS) == ["outer", "z" * 100]
        assert got == [["inner", "w" * 200]]


def test_threads_that_share_a_codec_get_their_own_messages() -> None:
    codec = ObjectCodec()
    rounds = 300
    got: dict[int, list[Any]] = {}
    with (
        Writer(1, codec=codec) as one,
        Writer(1, codec=codec) as other,
        Reader(one.handle, 0, codec=codec) as of_one,
        Reader(other.handle, 0, codec=codec) as of_other,
    ):
        ends = [(one, of_one), (other, of_other)]

        def send(number: int) -> None:
            for k in range(rounds):
                ends[number][0].send([number, "n" * (k % 90), k], SECONDS)

        def receive(number: int) -> None:
            got[number] = [ends[number][1].recv(SECONDS) for _ in range(rounds)]

        threads = [
            threading.Thread(target=target, args=(number,))
            for target in (receive, send)
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number in range(2):
        assert got[number] == [[number, "n" * (k % 90), k] for k in range(rounds)]


@by_core
def test_the_message_that_was_received_last_is_practised() -> None:
    codec = ObjectCodec()
    with Writer(1, codec=codec) as writer, Reader(writer.handle, 0, codec=codec) as reader:
        for obj in ({"step": 1}, {"step": 2, "ids": [1, 2, 3]}):
            writer.send(obj)
            assert reader.recv(SECONDS) == obj
            assert codec.practice_frames() == codec.encode(obj)
            with pytest.raises(shmcast.Timeout):
                reader.recv(0.01)
            writer.warm()
            assert codec.practice_frames() == codec.encode(obj)
        writer.send([Acting("runs code")])
        assert reader.recv(SECONDS) == ["runs code"]
        assert codec.practice_frames() is None


def test_another_codecs_message_is_decoded_out_of_a_slot() -> None:
    with Writer(1, codec=PickleCodec()) as writer, Reader(writer.handle, 0) as reader:
        for obj in ({"a": [1, 2]}, "text" * 100):
            frames = PickleCodec().encode(obj)
            assert [frame[0] == OURS for frame in frames] == [False]
            writer.send(obj)
            assert reader.recv(SECONDS) == obj


class ByInstance(ObjectCodec):
    """Has a method of its own in an instance, not in its class."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = self._own_encode  # type: ignore[method-assign]

    def _own_encode(self, obj: Any) -> list[Any]:
        return super().encode([obj, "by its own"])


def test_a_codecs_own_method_is_called_wherever_it_stands() -> None:
    with Writer(1, codec=ByInstance()) as writer, Reader(writer.handle, 0) as reader:
        writer.send(1)
        assert reader.recv(SECONDS) == [1, "by its own"]


def test_the_core_says_how_it_is_used() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        outbox, inbox = writer._outbox, reader._inbox
        with pytest.raises(TypeError, match="can't be deleted"):
            del outbox[None]  # type: ignore[attr-defined]
        for call in (None, (None,), (None, 1), [None, True]):
            with pytest.raises(TypeError, match=r"inbox\[timeout, copy\]"):
                inbox[call]  # type: ignore[index]


@pytest.mark.parametrize(
    "strided",
    [np.arange(10)[::2], memoryview(bytes(10))[::2]],
    ids=["an array", "a memoryview"],
)
def test_frames_that_are_not_contiguous_are_refused(strided: Any) -> None:
    class Strided:
        def encode(self, _obj: Any) -> list[Any]:
            return [strided]

        def decode(self, frames: Any) -> Any:
            return frames

    with (
        shmcast.Writer(1, codec=Strided()) as writer,
        pytest.raises(
            shmcast.EncodeError, match=r"^writer: .*contiguous buffers.*nothing was sent"
        ),
    ):
        writer.send(1)
    assert not writer.was_sent

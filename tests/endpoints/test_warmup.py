"""Warming up breaks no real call: it may be interrupted anywhere, and hides no error."""

from __future__ import annotations

import functools
import gc
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest

import shmcast
from shmcast import Hub, Member, ObjectCodec, PickleCodec, Reader, WaitPolicy, Writer
from shmcast._codecs.base import Frame
from shmcast._endpoints import objects, warmup
from shmcast._endpoints.copying import Copy
from shmcast._hub import member, reply_warmup
from tests.support.permissions import by_core

ROUNDS = 40
"""More than a sample is used for."""


MODULES = {module.__file__ for module in (warmup, objects, reply_warmup, member)}
"""What practises, and what is practised."""


class Boom(BaseException):
    """What a signal handler raises."""


class _Interrupter:
    """Raises an error when the `at`-th line of the modules is reached, as a signal handler may."""

    def __init__(self, at: int, error: type[BaseException] = Boom) -> None:
        self._left = at
        self._error = error

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        if frame.f_code.co_filename not in MODULES:
            return None
        if event == "line":
            self._left -= 1
            if self._left < 0:
                raise self._error
        return self


def is_interrupted(call: Callable[[], object], at: int) -> bool:
    """Call, and return whether that was interrupted: there are so many lines."""
    before = sys.gettrace()
    sys.settrace(_Interrupter(at))
    try:
        call()
    except Boom:
        return True
    finally:
        sys.settrace(before)
    return False


def interruptions(call: Callable[[], object]) -> int:
    """Interrupt a call once at each of its lines, each time right after the time before."""
    at = 0
    while is_interrupted(call, at):
        at += 1
    return at


@pytest.mark.parametrize("rounds_before", [0, 14, 15])
def test_warm_may_be_interrupted_anywhere(rounds_before: int) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        for _ in range(rounds_before):
            writer.warm()
        assert interruptions(writer.warm) > 5
        for at in range(8):  # and again and again at the same place
            for _ in range(4):
                is_interrupted(writer.warm, at)
        for _ in range(ROUNDS):
            writer.warm()
        writer.send("real")
        assert reader.recv(10) == "real"


def test_a_spinning_reader_may_be_interrupted_anywhere() -> None:
    def warm_up() -> None:
        with pytest.raises(shmcast.Timeout):
            reader.recv(0.02)

    with Writer(1) as writer, Reader(writer.handle, 0, wait=WaitPolicy.spin()) as reader:
        for at in range(60):
            is_interrupted(warm_up, at)
        for _ in range(10):
            warm_up()
        writer.send("real")
        assert reader.recv(10) == "real"


@pytest.mark.parametrize("codec", [ObjectCodec, PickleCodec])
def test_both_ends_of_a_hub_may_be_interrupted_anywhere(codec: Callable[[], shmcast.Codec]) -> None:
    def warm_up() -> None:
        with pytest.raises(shmcast.Timeout):
            hub.recv_any(0.02)

    with (
        Hub(1, wait=WaitPolicy.spin(), codec=codec()) as hub,
        Member(hub.handle, 0, codec=codec()) as replies,
    ):
        assert interruptions(replies.warm) > 5
        for at in range(60):
            is_interrupted(warm_up, at)
        for _ in range(3):
            warm_up()
            hub.send("real")
            replies.warm()
            replies.reply([replies.recv(10)])
            assert hub.recv_all(10) == [["real"]]


class Slow(ObjectCodec):
    """Lets another thread in while it encodes, once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_slow = False
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def encode(self, obj: Any, /) -> list[Frame]:
        if self.is_slow:
            self.is_slow = False
            self.has_begun.set()
            assert self.may_end.wait(30)
        return super().encode(obj)


def test_warming_up_is_one_threads_turn() -> None:
    codec = Slow()
    with Writer(1, codec=codec) as writer, Reader(writer.handle, 0) as reader:
        codec.is_slow = True
        thread = threading.Thread(target=writer.warm)
        thread.start()
        codec.has_begun.wait(30)
        with pytest.raises(shmcast.ConcurrentUse, match="writer: warm while another thread"):
            writer.warm()
        with pytest.raises(shmcast.ConcurrentUse, match="writer: send while another thread"):
            writer.send(1)
        codec.may_end.set()
        thread.join()
        for _ in range(ROUNDS):
            writer.warm()
        writer.send("real")
        assert reader.recv(10) == "real"


class Limit(Exception):
    """A time limit: what a handler of SIGALRM may raise, wherever the program is."""


class Alarmed(PickleCodec):
    """Is in sample() when an alarm goes off, once that is set."""

    is_set = False

    def sample(self) -> Any:
        if self.is_set:
            self.is_set = False
            raise Limit
        return super().sample()


def warm_often(writer: Writer) -> None:
    for _ in range(ROUNDS):
        writer.warm()


def test_an_exception_in_the_midst_of_a_sample_comes_out() -> None:
    codec = Alarmed()
    with (
        Writer(1, codec=codec) as writer,
        Reader(writer.handle, 0, wait=WaitPolicy.spin(), codec=codec) as reader,
    ):
        for call in (functools.partial(warm_often, writer), reader.recv):
            codec.is_set = True
            with pytest.raises(Limit):
                call()
        writer.warm()
        writer.send("real")
        assert reader.recv(10) == "real"


class Growing(PickleCodec):
    """Its sample outgrows what can be warmed up on."""

    size = 10

    def sample(self) -> Any:
        return bytes(self.size)


def test_a_sample_that_has_grown_too_large_is_not_taken() -> None:
    codec = Growing()
    with Writer(1, codec=codec) as writer, Reader(writer.handle, 0) as reader:
        codec.size = 100_000
        for _ in range(ROUNDS):
            writer.warm()
        writer.send("real")
        assert reader.recv(10) == "real"


class Step:
    """Plain, and may be referred to weakly."""

    def __init__(self, content: object) -> None:
        self.content = content


@by_core
def test_the_last_object_is_kept_once_warm_was_called_unless_it_is_large(no_gc: None) -> None:
    with Writer(1, slots=64, slot_bytes=1 << 16) as writer, Reader(writer.handle, 0) as reader:
        for content, is_kept in ((0, False), (1, True), ([*range(500_000)], False), (2, True)):
            if content:
                writer.warm()
            step = Step(content)
            last = weakref.ref(step)
            writer.send(step)
            del step
            assert reader.recv().content == content
            assert (last() is not None) == is_kept
        writer.send(None)
        assert last() is None


def practised(call: Callable[[], object]) -> list[tuple[str, type]]:
    """Return which functions of these modules a call leads to, and of what class the object is."""
    found: list[tuple[str, type]] = []

    def look(frame: FrameType, event: str, _arg: object) -> None:
        if event == "call" and frame.f_code.co_filename in MODULES:
            found.append((frame.f_code.co_name, type(frame.f_locals.get("self"))))

    before = sys.gettrace()
    sys.settrace(look)
    try:
        call()
    finally:
        sys.settrace(before)
    return found


class Own(Reader):
    """A program's, which has its own `recv`."""

    def recv(
        self, timeout: float | None = None, copy: Copy = True, *, warn_after: Any = None
    ) -> Any:
        return "own", super().recv(timeout, copy, warn_after=warn_after)


class Collected(Reader):
    """A program's, which sees that its instances go."""

    gone = 0

    def __del__(self) -> None:
        type(self).gone += 1


class Strict(Writer):
    """A program's, which sees what attributes its instances get."""

    def __setattr__(self, name: str, value: object) -> None:
        assert name != "_sink" or "_sink" not in self.__dict__
        super().__setattr__(name, value)


def wait_in_vain(reader: Reader) -> None:
    with pytest.raises(shmcast.Timeout):
        reader.recv(0.02)


def test_the_very_functions_of_send_and_recv_are_practised() -> None:
    with Writer(1) as writer, Own(writer.handle, 0, wait=WaitPolicy.spin()) as reader:
        for _ in range(2):
            assert ("send", Writer) in practised(writer.warm)[1:]
            found = practised(functools.partial(wait_in_vain, reader))
            assert found.count(("recv", Own)) > 2  # the call's own, and practice
            writer.send([1, 2])
            assert reader.recv(10) == ("own", [1, 2])


def test_the_very_function_of_reply_is_practised() -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as replies:
        for _ in range(2):
            assert ("reply", Member) in practised(replies.warm)
            hub.send([1, 2])
            replies.reply(replies.recv(10))
            assert hub.recv(0, 10) == [1, 2]


def test_no_instance_is_made_of_a_class_that_would_notice() -> None:
    with Strict(1) as writer, Collected(writer.handle, 0, wait=WaitPolicy.spin()) as reader:
        for _ in range(ROUNDS):
            writer.warm()
        wait_in_vain(reader)
        writer.send([1, 2])
        assert reader.recv(10) == [1, 2]
        assert Collected.gone == 0
    del reader
    gc.collect()
    assert Collected.gone == 1


class Queue(Reader, queue.SimpleQueue):  # type: ignore[type-arg]
    """A program's, whose instances `object` can't make."""


def test_a_class_whose_instances_others_make_is_practised_without_one() -> None:
    with Writer(1) as writer, Queue(writer.handle, 0, wait=WaitPolicy.spin()) as reader:
        wait_in_vain(reader)
        writer.send([1, 2])
        assert reader.recv(10) == [1, 2]


def test_what_walks_through_all_objects_finds_stand_ins_that_are_closed() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0, wait=WaitPolicy.spin()) as reader:
        writer.warm()
        wait_in_vain(reader)
        found = [each for each in gc.get_objects() if isinstance(each, Writer | Reader)]
        stand_ins = [each for each in found if each.__dict__.get("handle") is None]
        assert {type(each) for each in stand_ins} == {Writer, Reader}
        for each in stand_ins:
            assert "Reader" in repr(each) or "Writer" in repr(each)
            assert each.closed
            each.close()
        writer.warm()
        wait_in_vain(reader)
        writer.send("real")
        assert reader.recv(10) == "real"


class Held:
    """May be referred to weakly."""


def interrupted_in_vain(error: type[BaseException], at: int, is_reader: bool) -> Any:
    """Interrupt practice at a line; return a weak reference to what the caller had."""
    held = Held()
    with Writer(1) as writer, Reader(writer.handle, 0, wait=WaitPolicy.spin()) as reader:
        before = sys.gettrace()
        sys.settrace(_Interrupter(at, error))
        try:
            if is_reader:
                reader.recv(0.02)
            else:
                writer.warm()
        except (error, shmcast.Timeout):
            pass
        finally:
            sys.settrace(before)
    return weakref.ref(held)


@pytest.mark.parametrize("is_reader", [True, False])
@pytest.mark.parametrize("error", [Boom, Limit])
def test_an_interruption_keeps_nothing(
    error: type[BaseException], is_reader: bool, no_gc: None
) -> None:
    for at in range(60):
        assert interrupted_in_vain(error, at, is_reader)() is None, at


@by_core
def test_a_view_of_a_large_array_is_not_kept_for_practice(no_gc: None) -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        writer.warm()
        for count, is_kept in ((100, True), (1 << 20, False)):
            array = np.zeros(count)
            last = weakref.ref(array)
            writer.send([array[:4]])
            del array
            assert len(reader.recv(10)[0]) == 4
            assert (last() is not None) == is_kept

"""Every message arrives at every reader, whole, once and in order."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import shmcast
from shmcast import Handle, ObjectCodec, Reader, WaitPolicy, Writer, _core
from shmcast._codecs.base import Received
from tests.support.processes import Crew, results

SLOT = 256
DEFAULT_WAIT = WaitPolicy.adaptive()


class RawCodec:
    """Frames as they are: what is tested is the ring."""

    def encode(self, obj: Sequence[bytes], /) -> Sequence[bytes]:
        return obj

    def decode(self, frames: list[Received], /) -> list[Received]:
        return frames


def receive_digest(index: int, handle: Handle, count: int, wait: WaitPolicy) -> str:
    """Receive `count` messages; return a digest of them all, frame by frame."""
    digest = hashlib.sha256()
    with Reader(handle, index, wait=wait, codec=RawCodec()) as reader:
        for _ in range(count):
            add(digest, reader.recv(30))
    return digest.hexdigest()


def add(digest: Any, frames: Sequence[bytes | bytearray]) -> None:
    digest.update(b"message %d" % len(frames))
    for frame in frames:
        digest.update(b"frame %d" % len(frame))
        digest.update(frame)


def send_all(
    crew: Crew,
    messages: list[list[bytes]],
    readers: int,
    slots: int,
    wait: WaitPolicy = DEFAULT_WAIT,
) -> None:
    """Send the messages and check that every reader got just them."""
    sent = hashlib.sha256()
    with Writer(readers, slots=slots, slot_bytes=SLOT, wait=wait, codec=RawCodec()) as writer:
        jobs = crew.start(readers, receive_digest, writer.handle, len(messages), wait)
        for message in messages:
            add(sent, message)
            writer.send(message, 30)
        assert results(jobs) == [sent.hexdigest()] * readers


# Sizes from nothing to many times the ring of 2 to 8 slots of 256 bytes: readers are behind the
# writer, ahead of it, and in the middle of a message, in every combination.
frame_sizes = st.one_of(st.integers(0, 3 * SLOT), st.integers(0, 40 * SLOT))
message_shapes = st.lists(st.lists(frame_sizes, max_size=5), min_size=1, max_size=30)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=message_shapes,
    readers=st.integers(1, 8),
    slots=st.sampled_from([2, 4, 8]),
    seed=st.integers(0, 2**32),
)
def test_random_messages_arrive_in_order_under_back_pressure(
    crew: Crew, shapes: list[list[int]], readers: int, slots: int, seed: int
) -> None:
    content = random.Random(seed)  # noqa: S311 (content, not secrets)
    messages = [[content.randbytes(size) for size in shape] for shape in shapes]
    send_all(crew, messages, readers, slots)


def test_every_size_around_the_slot_boundaries(crew: Crew) -> None:
    around = [n * SLOT + d for n in range(5) for d in range(-20, 21) if n * SLOT + d >= 0]
    one = [[bytes([size % 251]) * size] for size in around]
    # With a table of 8 bytes a frame in front, boundaries fall inside the table and the frames.
    two = [[b"a" * size, b"b" * 24] for size in around]
    many = [[b"x"] * n for n in range(120)]
    send_all(crew, one + two + many, readers=2, slots=4)


def test_the_ring_wraps_many_times(crew: Crew) -> None:
    messages = [[b"%d" % k] for k in range(20_000)]
    send_all(crew, messages, readers=3, slots=2)


def test_a_message_larger_than_the_segment_streams_through(crew: Crew) -> None:
    message = [random.Random(1).randbytes(5_000_000), b"", b"end"]  # noqa: S311
    send_all(crew, [message] * 3, readers=4, slots=8)


def receive_when_told(index: int, handle: Handle, told: Handle) -> list[int]:
    with Reader(handle, index) as reader, Reader(told, 0) as permission:
        return [reader.recv(30) for _ in iter(lambda: permission.recv(30), "stop")]


def receive_all(index: int, handle: Handle, count: int) -> list[int]:
    with Reader(handle, index) as reader:
        return [reader.recv(30) for _ in range(count)]


def test_the_slowest_reader_holds_the_writer_and_the_fast_ones_lose_nothing(crew: Crew) -> None:
    with Writer(2, slots=4) as writer, Writer(1) as permission:
        slow = crew.workers[0].start(receive_when_told, 0, writer.handle, permission.handle)
        fast = crew.workers[1].start(receive_all, 1, writer.handle, 12)
        writer.wait_ready(30)
        for k in range(4):  # the ring is full then, whatever the fast reader does
            writer.send(k, 30)
        with pytest.raises(shmcast.Timeout, match=r"reader 0 is 4 fragments behind"):
            writer.send("never", timeout=0)
        for k in range(4, 12):
            permission.send("one")
            writer.send(k, 30)
        for _ in range(4):
            permission.send("one")
        permission.send("stop")
        assert slow.result() == fast.result() == list(range(12))


def test_every_policy_delivers(crew: Crew, wait: WaitPolicy) -> None:
    messages = [[b"%d" % k] * (k % 3) for k in range(300)]
    send_all(crew, messages, readers=2, slots=2, wait=wait)


_kept: dict[str, Writer] = {}  # in a worker: the writer between two calls


def open_writer(index: int) -> Handle:
    """Make a writer in the worker and keep it there."""
    _kept["writer"] = Writer(1, slots=2, wait=WaitPolicy.semaphore())
    return _kept["writer"].handle


def ping_pong(index: int, handles: list[Handle], rounds: int) -> tuple[int, int]:
    """Send only after each receive: both sides park for almost every message."""
    there = _kept.pop("writer")
    back = Reader(handles[1 - index], 0, wait=WaitPolicy.semaphore())
    total = 0
    with there, back:
        for k in range(rounds):
            if index == 0:
                there.send(k, 30)
            total += back.recv(30)
            if index == 1:
                there.send(k, 30)
    return total, back.statistics().parks


def test_no_wake_up_is_lost_when_both_sides_park_for_every_message(crew: Crew) -> None:
    rounds = 20_000
    handles = crew.run(2, open_writer)
    (total_0, parks_0), (total_1, parks_1) = crew.run(2, ping_pong, handles, rounds)
    assert total_0 == total_1 == sum(range(rounds))
    assert parks_0 + parks_1 > 100, "nobody parked: nothing was tested"


def receive_from_two(index: int, first: Handle, second: Handle, count: int) -> bool:
    with Reader(first, index) as one, Reader(second, index) as two:
        return all(one.recv(30) == -k and two.recv(30) == k for k in range(count))


def test_two_writers_of_one_process_do_not_disturb_each_other(crew: Crew) -> None:
    with Writer(3, slots=4) as one, Writer(3, slots=8) as two:
        jobs = crew.start(3, receive_from_two, one.handle, two.handle, 500)
        for k in range(500):
            two.send(k, 30)
            one.send(-k, 30)
        assert results(jobs) == [True] * 3


def receive_around_a_gap(index: int, handle: Handle) -> tuple[Any, Any]:
    with Reader(handle, index) as reader:
        return reader.recv(30), reader.recv(30)


def test_a_message_given_up_half_way_reaches_nobody_and_the_next_one_all(crew: Crew) -> None:
    huge = bytes(10_000_000)  # no reader keeps up with 40 000 fragments through 4 slots
    with Writer(2, slots=4, slot_bytes=SLOT, spill_bytes=0) as writer:
        attached_but_idle = crew.start(2, receive_around_a_gap, writer.handle)
        writer.send("before", 30)
        with pytest.raises(shmcast.Timeout):
            writer.send(huge, timeout=0)
        assert writer.statistics().abandoned == 1
        writer.send("after", 30)
        assert results(attached_but_idle) == [("before", "after")] * 2


def test_the_core_refuses_what_is_no_message_or_no_endpoint() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        outbox: Any = writer._end.outbox
        messages: Any = reader._end.messages
        with pytest.raises(TypeError, match="can't be deleted"):
            del outbox[None]
        with pytest.raises(TypeError, match="sequence of buffers"):
            outbox[None] = 1
        for call in (None, (None,), (None, 1), [None, True]):
            with pytest.raises(TypeError, match=r"reader\[timeout, copy\]"):
                messages[call]
        with pytest.raises(_core.TimedOut):
            messages[0, True]
        outbox[0] = [b"a", b""]
        assert messages[0, True] == [bytearray(b"a"), bytearray()]
    unmade = _core.RingWriter.__new__(_core.RingWriter)
    with pytest.raises(TypeError, match="__init__"):
        unmade[None] = [b"a"]
    no_list: Any = (bytearray(b"a"),)
    with pytest.raises(TypeError, match="must be a list"):
        ObjectCodec().decode(no_list)


@pytest.mark.parametrize("slot_bytes", [128, 1024, 4096, 65536])
def test_a_last_fragment_of_every_size_arrives(slot_bytes: int) -> None:
    sizes = {max(0, near + off) for near in (0, slot_bytes, 4096, 8192) for off in (-1, 0, 1)}
    with (
        Writer(1, slots=512, slot_bytes=slot_bytes, codec=RawCodec()) as writer,
        Reader(writer.handle, 0, codec=RawCodec()) as reader,
    ):
        for size in sorted(sizes):
            frame = bytes(range(256)) * (size // 256 + 1)
            writer.send([frame[:size]], 0)
            assert reader.recv(0) == [bytearray(frame[:size])]

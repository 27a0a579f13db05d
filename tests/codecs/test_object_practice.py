"""Which of the last real messages a codec decodes once more, to keep itself warm."""

from __future__ import annotations

from typing import Any

from shmcast import ObjectCodec
from tests.support.differential import sent
from tests.support.permissions import by_core

pytestmark = by_core

LONG = [*range(1000, 13_000)]
"""Takes 36 kB, fewer than are practised, and longer than is practised, on any machine."""


def can_practise(codec: ObjectCodec, obj: Any) -> bool:
    """Receive an object, and return whether the codec would decode it again."""
    codec.decode(sent(codec, obj))
    return codec.practice_frames() is not None


def practise(codec: ObjectCodec) -> None:
    """Do one round, if there is something to decode."""
    frames = codec.practice_frames()
    if frames is not None:
        codec.practise_decode(frames)


def rounds_until_given_up(codec: ObjectCodec) -> int:
    rounds = 0
    while codec.practice_frames() is not None:
        practise(codec)
        rounds += 1
    return rounds


def messages_until_tried_again(codec: ObjectCodec) -> int:
    messages = 1
    while not can_practise(codec, LONG):
        messages += 1
    return messages


def test_a_message_that_takes_long_is_given_up_for_a_while() -> None:
    codec = ObjectCodec()
    assert can_practise(codec, LONG)
    assert rounds_until_given_up(codec) == 3
    waits = []
    for _ in range(8):
        waits.append(messages_until_tried_again(codec))
        assert rounds_until_given_up(codec) == 3
    assert waits == [65, 129, 257, 513, 1025, 2049, 4097, 4097]


def test_shorter_messages_are_practised_meanwhile() -> None:
    codec = ObjectCodec()
    assert can_practise(codec, LONG)
    rounds_until_given_up(codec)
    assert can_practise(codec, {"step": 1})
    assert not can_practise(codec, LONG)


def test_one_slow_round_does_not_end_practice() -> None:
    # The first round after a pause meets cold caches; here another message makes it slow.
    codec = ObjectCodec()
    assert can_practise(codec, LONG)
    long = codec.practice_frames()
    assert long is not None
    for _ in range(5):
        codec.practise_decode(long)
        assert can_practise(codec, {"step": 1})
        for _ in range(100):  # (one of them is quick, whatever the machine does)
            practise(codec)
    assert can_practise(codec, LONG)

"""Signals whose handlers raise while a hub and its members exchange replies: none is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import shmcast
from shmcast import Codec, Hub, HubHandle, Member, ObjectCodec, PickleCodec, WaitPolicy
from tests.support.alarms import Alarmed, AlarmedError, Alarms
from tests.support.hub_roles import SECONDS, answer
from tests.support.processes import Crew, results
from tests.support.signals import not_on_310

# (An error in what the garbage collector calls goes to nobody.)
pytestmark = [pytest.mark.usefixtures("no_gc"), not_on_310]

MESSAGES = 600
ALARMS = 200
MEMBERS = 3

CALLS: dict[str, Callable[[Hub, int], Any]] = {
    "one": lambda hub, index: hub.recv(index, SECONDS),
    "any": lambda hub, _index: hub.recv_any(SECONDS),
    "all": lambda hub, _index: hub.recv_all(SECONDS),
}


@pytest.fixture(autouse=True, scope="module")
def _imported() -> None:
    """Import what large replies need: an interrupted import leaves its file to the collector."""
    codec = PickleCodec()
    assert codec.decode([bytearray(frame) for frame in codec.encode(bytes(300_000))])


class Told:
    """Becomes what it was made with by a function of Python's, in which a handler may raise."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        return _same, (self.what,)


def _same(what: Any) -> Any:
    return what


def numbers(count: int) -> list[int]:
    """Return what is sent: a few answers to it are large."""
    return [10 + k if k % 50 == 7 else k % 10 for k in range(count)]


def narrow_hub(codec: Codec | None = None) -> Hub:
    """Return a hub with little room for replies, so that large ones are streamed."""
    parks = WaitPolicy.semaphore()
    return Hub(MEMBERS, codec=codec, wait=parks, reply_slots=4, reply_slot_bytes=4096)


def echo(index: int, handle: HubHandle, codec: Codec) -> None:
    """Answer every message until the hub closes."""
    with Member(handle, index, codec=codec, wait=WaitPolicy.semaphore()) as member:
        while (number := member.recv(SECONDS)) is not None:
            reply = answer(number, index)
            member.reply(Told(reply) if number % 3 == 0 else reply, SECONDS)


@pytest.mark.parametrize("codec", [ObjectCodec(), PickleCodec()], ids=["object", "pickle"])
@pytest.mark.parametrize("how", CALLS)
def test_no_reply_is_lost_on_its_way_to_a_hub(crew: Crew, how: str, codec: Codec) -> None:
    alarms = Alarms(Alarmed, AlarmedError)
    with alarms.in_place(), narrow_hub(codec) as hub:
        jobs = crew.start(MEMBERS, echo, hub.handle, codec)
        sent: list[int] = []
        received = [0] * MEMBERS
        while len(sent) < MESSAGES or alarms.count < ALARMS:
            for number in numbers(4 * 13):
                hub.send(number)
                sent.append(number)
                if len(sent) % 4:  # some wait for the hub
                    continue
                while min(received) < len(sent):
                    index = received.index(min(received))
                    try:
                        got = alarms.during(lambda index=index: CALLS[how](hub, index), 100e-6)  # type: ignore[misc]
                    except (Alarmed, AlarmedError):
                        continue
                    if how == "any":
                        index, got = got
                    for i, reply in enumerate(got) if how == "all" else [(index, got)]:
                        assert reply == answer(sent[received[i]], i)
                        received[i] += 1
        with pytest.raises(shmcast.Timeout):
            hub.recv_any(0)
        hub.send(None)
        results(jobs)


def reply_under_alarms(index: int, handle: HubHandle) -> int:
    """Answer every message, in calls that handlers end; return how many were ended."""
    alarms = Alarms(Alarmed, AlarmedError)
    with alarms.in_place(), Member(handle, index, wait=WaitPolicy.semaphore()) as member:
        answered = 0
        while (number := member.recv(SECONDS)) is not None:
            reply = answer(number, index)
            within = 50e-6
            while member.reply_statistics().messages == answered:
                within *= 1.5  # a large one is to be sent at last
                try:
                    alarms.during(lambda reply=reply: member.reply(reply, SECONDS), within)  # type: ignore[misc]
                except (Alarmed, AlarmedError):
                    # (A signal that comes before it has begun leaves what is said of the last.)
                    is_sent = member.reply_statistics().messages > answered
                    assert member.was_replied or not is_sent
            answered += 1
    return alarms.count


def test_a_member_knows_whether_it_has_replied(crew: Crew) -> None:
    ended = 0
    while ended < ALARMS:
        with narrow_hub() as hub:
            jobs = crew.start(MEMBERS, reply_under_alarms, hub.handle)
            for number in numbers(MESSAGES):
                hub.send(number)
                assert hub.recv_all(SECONDS) == [answer(number, i) for i in range(MEMBERS)]
            hub.send(None)
            ended += sum(results(jobs))

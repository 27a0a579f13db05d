"""Keeps warm what a hub does with a reply: the same step of the core, at a private hub."""

from __future__ import annotations

from typing import NoReturn

from shmcast import _core
from shmcast._endpoints.warmup import NONCE, SLOT_BYTES, SLOTS, Warmup, no_quota
from shmcast._hub.answers import Whom

_EACH: tuple[Whom, ...] = (0, None, ...)


class ReplyWarmup(Warmup):
    """A codec's sample and a hub of one member in this process's own memory; see `Warmup`."""

    def _make_ring(self) -> None:
        replies = _core.Geometry(1, SLOTS, SLOT_BYTES, 0)
        tail = _core.tail_bytes(1, replies)
        shape = _core.Geometry(1, SLOTS, SLOT_BYTES, 0, 0, tail)
        memory, writer = self._make_ends(_core.HubWriter, shape)
        shared = (replies, NONCE, _core.WaitPolicy.park(), no_quota)
        hub = _core.Hub(memory, writer, *shared, None, None, _core.Identity(0, 0))
        self._member = _core.ReplyWriter(memory, self._reader, *shared, None)
        coder = self._coder
        decode = self._decode if coder is None else coder.practise_decode
        self._inbox = _core.ReplyInbox(
            hub, hub.keep, _death_of, _not_decoded, decode, coder, is_practice=coder is not None
        )

    def receive(self) -> None:
        """Do what a hub's calls do once a reply is there, each in its turn."""
        self._begin_round()
        frames = None if self._coder is None else self._coder.practice_frames()
        _core.RingWriter.publish(self._member, self._frames if frames is None else frames, 0)
        self._inbox[0, True, _EACH[self._rounds_left % 3]]
        self._end_round()


def _death_of(index: int) -> NoReturn:
    raise IndexError(index)  # (it does not die)


def _not_decoded(_index: int, error: BaseException) -> NoReturn:
    try:
        raise error
    finally:
        del error  # in a cycle, it would hold what its traceback knows until it is collected

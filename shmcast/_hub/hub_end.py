"""`HubEnd`: the end that publishes messages of frames and receives its members' replies."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from shmcast import _core
from shmcast._codecs.base import Received
from shmcast._endpoints.arguments import MAX_READERS, check_int, check_slots
from shmcast._endpoints.awaited_end import AwaitedEnd
from shmcast._endpoints.copying import copied_kind
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.members import identity
from shmcast._endpoints.tracing import TracedWaits, Tracer
from shmcast._endpoints.waiting import WaitPolicy, core_policy
from shmcast._host.places import Places
from shmcast._host.signals import pass_on
from shmcast._hub.answers import Answers, Whom
from shmcast._hub.handle import HubHandle, replies_of
from shmcast._hub.two_way_end import TwoWayEnd, has_or_have
from shmcast.errors import Closed, DecodeError, InvalidArgument, PeerDied, ShmcastError, Timeout

if TYPE_CHECKING:
    from shmcast._endpoints.awaiting import Waits
    from shmcast._endpoints.slow_peers import Wait
    from shmcast._endpoints.statistics import Statistics


class HubEnd(TwoWayEnd, AwaitedEnd, FrameWriter):
    """Makes a segment, publishes messages in it and receives replies from it.

    It takes the arguments of `Hub`, which stands on it, but for the codec, and raises the same.

    Args:
        warmup: called about every 100 µs of spinning for a reply, to keep the code that follows
            warm; None: nothing.
    """

    reader_noun = "member"
    writer_noun = "hub"
    _ring: _core.HubWriter
    _ring_type = _core.HubWriter
    handle: HubHandle
    replies: _core.Hub
    answers: Answers
    """What the members reply, for a hot path that gives its errors to `not_received`: with a
    time-out, `copy` and `Whom` in brackets. See `FrameReader.messages`."""
    _whom: Whom  # of the receiving call that has failed last

    def __init__(
        self,
        members: int,
        *,
        slots: int,
        slot_bytes: int,
        arena_bytes: int,
        spill_bytes: int,
        pin: bool,
        reply_slots: int,
        reply_slot_bytes: int,
        wait: WaitPolicy | None,
        on_member_death: Literal["raise", "drop"],
        on_death: Callable[[PeerDied], object] | None,
        warn_after: float | None,
        label: str,
        member_label: Callable[[int], str],
        warmup: Callable[[], object] | None,
    ) -> None:
        members = check_int("members", members, 1, MAX_READERS, label)
        self._replies_shape = check_slots(reply_slots, reply_slot_bytes, label, "reply_")
        if on_member_death not in ("raise", "drop"):
            raise InvalidArgument(
                f'{label}: on_member_death={on_member_death!r} is neither "raise" nor "drop"'
            )
        self._receives = warmup
        super().__init__(
            members,
            slots=slots,
            slot_bytes=slot_bytes,
            arena_bytes=arena_bytes,
            spill_bytes=spill_bytes,
            pin=pin,
            wait=wait,
            on_reader_death=on_member_death,
            on_death=on_death,
            warn_after=warn_after,
            label=label,
            reader_label=member_label,
        )

    def _handle(self, ring: Handle) -> HubHandle:
        fields = {field.name: getattr(ring, field.name) for field in dataclasses.fields(ring)}
        slots, slot_bytes = self._replies_shape
        return HubHandle(**fields, reply_slots=slots, reply_slot_bytes=slot_bytes)

    def _begin(self, memory: _core.Mapping, places: Places) -> None:
        self._reply_watch = self._watch_replies()
        self.replies = _core.Hub(
            memory,
            self._ring,
            replies_of(self.handle),
            self.handle.nonce,
            core_policy(self.wait_policy),
            self._cpu_quota,
            self._warm_by(self._receives),
            self._reply_watch,
            identity(None),
        )
        self.answers = self.replies
        self._watch.begin(self.replies, places)

    def traced_replies(self, tracer: Tracer) -> Any:
        """Return the replies with a range around each wait for some."""
        return TracedWaits(tracer, self.answers, lambda asked: len(asked) == 3, self.answers.keep)

    def _wait_of_replies(self, peers: Sequence[_core.Peer]) -> Wait:
        from shmcast._endpoints.slow_peers import Wait  # rarely needed

        awaited = self._awaited_seats()
        who = [
            (peer, "not attached" if peer.state == "vacant" else "")
            for peer in peers
            if peer.index in awaited
        ]
        goal = "a reply" if len(awaited) == 1 else "replies"
        return Wait(_action(self.answers.asked()), goal, who)

    def _awaited_seats(self) -> Collection[int]:
        """Return whose replies the call that receives waits for, as they sit here."""
        return self.replies.awaited()

    def _watch_of_receiving(self) -> Waits:
        return self._reply_watch

    def _awaited(self) -> tuple[_core.Awaitable, Callable[[], int]]:
        return self.replies, self._ring.attached

    @property
    def members(self) -> int:
        """How many members there are."""
        return self.handle.readers

    def member_name(self, index: int) -> str:
        """Return how errors name a member."""
        return self._reader_label(index)

    def _named_members(self, members: Sequence[int]) -> str:
        return " and ".join(map(self.member_name, members)) or "any member"

    def check_index(self, index: Any, action: str = "recv") -> int:
        """Return a member's index as an int; raise InvalidArgument for what is none.

        To the core, None is any member.
        """
        return check_int("index", index, 0, self.members - 1, f"{self.label}: {action}")

    def death_of(self, index: int) -> PeerDied:
        """Return how a member has died, whose replies end with that."""
        if index not in self._watch.dropped:  # its place was taken before anybody looked
            self._watch.observe(self._ring.peers())
        known = self._watch.dropped.get(index)
        name = self._reader_label(index)
        if known is None:
            return PeerDied(f"{self.label}: {name} has died: unknown how", name, 0, "")
        return PeerDied(str(known), known.peer, known.pid, known.how)

    def collect(self, timeout: float | None) -> list[list[Received] | None]:
        """Receive the frames of the next reply of each member; None for one that has died.

        Raises:
            ShmcastError: what `Hub.recv_all` raises.
        """
        try:
            return self.replies[timeout, True, ...]
        except Exception as error:
            self.not_received(error, ..., timeout)

    def not_received(self, error: Exception, whom: Whom, timeout: float | None) -> NoReturn:
        """Raise what an error of `replies` means here; others pass unchanged."""
        if whom is not None and whom is not ...:
            self.check_index(whom)
        if isinstance(error, MemoryError):
            raise DecodeError(
                f"{self.label}: can't decode a reply (no memory for its frames): {error}; it is "
                "consumed, the next recv gets the next reply"
            ) from error
        self._whom = whom
        self._note_time_out(error)
        self._raise(error, _action(whom), timeout)

    def check_copy(self, copy: object, whom: Whom) -> None:
        """Raise InvalidArgument if `copy`, which is no bool, is nothing else that there is."""
        copied_kind(copy, f"{self.label}: {_action(whom)}")

    def not_decoded(self, index: int, error: BaseException) -> NoReturn:
        """Raise what it means that the reply of a member, which was kept, was not made an object.

        If it is an error of the codec, the reply is consumed. If a signal's handler has raised it,
        the next call has the reply again.
        """
        try:
            pass_on(error)
            count = len(self.answers.discard(index) or ())
            if not isinstance(error, Exception):
                raise error
            raise DecodeError(
                f"{self.label}: can't decode a reply of {self.member_name(index)} ({count} "
                f"frame(s)): {type(error).__name__}: {error}; it is consumed, the next recv gets "
                "the next reply"
            ) from error
        finally:
            del error  # in a cycle, it would hold what its traceback knows until it is collected

    def _meaning(
        self, error: Exception, action: str, timeout: float | None
    ) -> ShmcastError | SystemExit | None:
        is_receiving = action.startswith("recv")
        if is_receiving and isinstance(error, _core.TimedOut):
            missing = self._named_members(self.answers.awaited())
            return Timeout(
                f"{self.label}: {action} timed out after {timeout} s: no reply of {missing}; "
                "nothing is lost"
            )
        is_over = self._closed or self._is_told_of_the_exit()
        if is_receiving and isinstance(error, _core.EndpointClosed) and not is_over:
            return self._nobody_answers(action, self._whom)
        return super()._meaning(error, action, timeout)

    def _nobody_answers(self, action: str, whom: Whom) -> ShmcastError:
        try:
            self.check_peers()  # they may have closed because another has died
        except PeerDied as error:
            return error
        what = f"{self.label}: {action}"
        if whom is None and self.dropped():
            return self._end_error(what)
        if whom is None:
            return Closed(f"{what}: every member has closed, and all replies were received")
        left = [index for index in self.left() if whom in (..., index)]
        who = f"{self._named_members(left)} {has_or_have(left)}"
        return Closed(f"{what}: {who} closed, and will reply no more")

    def left(self) -> list[int]:
        """Return which members have closed, by index."""
        return [peer.index for peer in self._ring.peers()[:-1] if peer.state == "left"]

    def reply_statistics(self) -> Statistics:
        """Return what was received of replies so far; see `Hub.reply_statistics`."""
        from shmcast._endpoints.statistics import Statistics  # (not to be imported at once)

        members = [Statistics(**figures) for figures in self.replies.member_figures()]
        waits = self.replies.figures()
        for count in ("messages", "payload_bytes", "fragments", "abandoned"):
            waits[count] = sum(getattr(member, count) for member in members)
        return Statistics(**waits, lag=tuple(self.replies.lags()), readers=tuple(members))


def _action(whom: Whom) -> str:
    if isinstance(whom, int):
        return f"recv({whom})"
    return "recv_any" if whom is None else "recv_all"

"""Gather, all-gather, scatter and barrier: what ranks do together beside the broadcasts.

Each rank speaks with the leader of its node through the node's hub, and each leader with the source
over a stream: one message a node in each direction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from shmcast._codecs.base import Codec, Frame
from shmcast._endpoints import tracing
from shmcast._endpoints.arguments import check_timeout
from shmcast._endpoints.objects import unsendable
from shmcast._group.collective_call import Call, Step
from shmcast._group.company import Company
from shmcast._group.node_hub import NodeHub
from shmcast._group.shares import ALL_GATHER, BARRIER, GATHER, SCATTER, Shares
from shmcast._group.trunk import Trunk
from shmcast._host.signals import is_interruption
from shmcast._nodes.deadline import Deadline
from shmcast._nodes.failure import Failure
from shmcast._nodes.parcel import Part
from shmcast.errors import (
    Closed,
    ConcurrentUse,
    Interrupted,
    InvalidArgument,
    NodeLost,
    PeerDied,
    Timeout,
)


class Collectives:
    """What a rank needs for them, made when it is first needed.

    Args:
        company: the group's.
        codec: makes frames of objects, and objects of frames.
    """

    def __init__(self, company: Company, codec: Codec) -> None:
        self._company = company
        self._codec = codec
        self._tracer = tracing.chosen()
        self._hub = NodeHub(company)
        self._trunk = Trunk(company)
        self._call: Call | None = None
        self._is_called = False
        self._end: Failure | None = None
        """Why there can be no more collectives over nodes: one has ended in the middle."""
        self._shares = Shares(company, codec)
        self._lost: set[int] = set()  # leaders of other nodes
        self._is_in_hub = False  # a call of this rank is
        self._is_leader = company.me == company.here.leader
        self._is_src = company.me == company.src
        self._has_nodes = len(company.topology.nodes) > 1

    def gather(self, obj: Any, timeout: float | None) -> list[Any] | None:
        """See `ShmBroadcaster.gather_object`."""

        def begin() -> Call:
            self._shares.parts = {
                self._company.me: [] if self._is_src else self._shares.encode(obj)
            }
            call = Call(GATHER, lambda: self._shares.objects(obj) if self._is_src else None)
            self._add_steps_up(call)
            return call

        gathered: list[Any] | None = self._run(GATHER, begin, timeout)
        return gathered

    def all_gather(self, obj: Any, timeout: float | None) -> list[Any]:
        """See `ShmBroadcaster.all_gather_object`."""

        def begin() -> Call:
            self._shares.parts = {self._company.me: self._shares.encode(obj)}
            call = Call(ALL_GATHER, lambda: self._shares.objects(obj))
            self._add_steps_up(call)
            self._add_steps_down(call, lambda _ranks: self._shares.parts)
            return call

        gathered: list[Any] = self._run(ALL_GATHER, begin, timeout)
        return gathered

    def scatter(self, objs: Sequence[Any] | None, timeout: float | None) -> Any:
        """See `ShmBroadcaster.scatter_object`."""
        company = self._company

        def begin() -> Call:
            if self._is_src:
                given = self._shares.checked(objs)
                self._shares.parts = {
                    rank: self._shares.encode(obj)
                    for rank, obj in zip(company.ranks, given, strict=True)
                    if rank != company.me
                }
                call = Call(SCATTER, lambda: given[company.rank])
            else:
                self._shares.parts = {}
                call = Call(SCATTER, lambda: self._shares.object(company.me, company.src))
            self._add_steps_down(
                call,
                lambda ranks: {r: part for r, part in self._shares.parts.items() if r in ranks},
            )
            return call

        return self._run(SCATTER, begin, timeout)

    def barrier(self, timeout: float | None) -> None:
        """See `ShmBroadcaster.barrier`."""
        if self._has_nodes or self._call is not None or not self._hub.is_complete:
            self._run(BARRIER, self._begin_barrier, timeout)
            return
        self._is_in_hub = True  # nothing but that: it is over in microseconds
        passed = self._hub.barriers_passed
        try:
            tracing.call(self._tracer, f"shmcast.{BARRIER}", self._hub.barrier)(timeout)
        except BaseException as error:
            if isinstance(error, Timeout | Interrupted) or is_interruption(error):
                self._call = self._begin_barrier()
                self._call.barriers_passed = passed
            with self._company.telling_causes():
                raise
        finally:
            self._is_in_hub = False

    def _begin_barrier(self) -> Call:
        call = Call(BARRIER, lambda: None)

        def take(left: Deadline) -> None:
            if call.barriers_passed is None:
                call.barriers_passed = self._hub.barriers_passed
            if self._hub.barriers_passed == call.barriers_passed:
                self._hub.barrier(left.left())
            call.barriers_passed = None

        def names() -> str:
            return self._company.names(self._hub.absent())

        here = Step(take, names, True)
        call.steps.append(here)
        if self._has_nodes:
            if self._is_leader:
                self._shares.parts = {}
                self._add_trunk_up(call)
                self._add_trunk_down(call, lambda _ranks: {})
            call.steps.append(here)
        return call

    def interrupt(self) -> bool:
        """End the call that waits in another thread; return whether there is one."""
        if self._is_in_hub:
            self._hub.interrupt()
        elif self._is_called:
            self._company.interrupt()
        else:
            return False
        return True

    def close(self, in_order: bool) -> None:
        """End this rank's part; idempotent."""
        self._hub.close(in_order)
        self._trunk.close(in_order)

    # A call, and how it goes on.

    def _run(self, name: str, begin: Callable[[], Call], timeout: float | None) -> Any:
        company = self._company
        deadline = Deadline.after(check_timeout(timeout, company.label, name))
        company.check_open()
        company.begin_to_wait(name)
        # No signal is handled, and the GIL is not let go, between a look and a note of it. (Without
        # a GIL, two threads may come this far: the ends refuse the second.)
        if self._is_called:
            raise ConcurrentUse(
                f"{company.label}: {name} while another thread is in a collective of this "
                "broadcaster; give each thread a broadcaster of its own"
            )
        self._is_called = True
        try:
            with company.telling_causes():
                if self._end is not None:
                    raise self._end.error(company.label)
                if self._call is None:
                    call = begin()  # (what can't be encoded is told before anything is waited for)
                    self._hub.begin(name, deadline)
                    self._trunk.begin(name, deadline)
                    self._call = call
                elif self._call.name != name:
                    raise InvalidArgument(
                        f"{company.label}: {name} while {self._call.name} is not over, which has "
                        f"timed out or was interrupted: call {self._call.name} again first"
                    )
                result = self._go_on(self._call, deadline)
        finally:
            self._is_in_hub = False
            self._is_called = False
        self._call = None  # at the very end: whoever is called again by a signal's is to get it
        return result

    def _go_on(self, call: Call, deadline: Deadline) -> Any:
        try:
            tracing.call(self._tracer, f"shmcast.{call.name}", self._take_steps)(call, deadline)
            return call.result()
        except Interrupted:
            raise
        except Timeout:
            raise Timeout(
                f"{self._company.label}: {call.name} timed out after {deadline.timeout} s: nothing "
                f"came from {call.steps[0].waits_for()}; call it again to go on waiting"
            ) from None
        except BaseException as error:
            if not is_interruption(error):
                self._call = None
            # (Else who waits in this one would take the next one's first step for its own.)
            if self._has_nodes and isinstance(error, Closed | PeerDied | NodeLost):
                self._end = Failure.of(error, self._company.label)
            raise

    def _take_steps(self, call: Call, deadline: Deadline) -> None:
        while call.steps:
            step = call.steps[0]
            self._is_in_hub = step.is_in_hub
            try:
                step.take(deadline)
            except BaseException as error:
                if is_interruption(error) and step.is_over():
                    call.steps.popleft()
                raise
            call.steps.popleft()  # (a signal is handled after this, and not before)

    # What a rank says goes up to the source, by way of its leader.

    def _add_steps_up(self, call: Call) -> None:
        if not self._is_leader:
            frames = self._shares.packed(call.name, self._shares.parts)
            self._add_send(call, self._hub.reply, lambda: frames, [self._company.here.leader])
            return

        def collect(left: Deadline) -> None:
            if call.replies is None:
                call.replies = self._hub.collect(left)
            for rank, frames in self._hub.by_rank(call.replies).items():
                if isinstance(frames, PeerDied):
                    self._shares.parts[rank] = frames
                else:
                    self._shares.take_in(frames, call.name, rank)

        def missing() -> str:
            return self._company.names(self._hub.missing())

        call.steps.append(Step(collect, missing, True))
        self._add_trunk_up(call)

    def _add_trunk_up(self, call: Call) -> None:
        company = self._company
        if not self._has_nodes:
            return

        def send(left: Deadline) -> None:
            frames = self._shares.packed(call.name, self._shares.parts)
            self._trunk.send(company.src, frames, left, call.name, call.turns[company.src])

        if not self._is_src:
            self._add_on_trunk(call, company.src, send)
            return
        for leader in self._trunk.leaders:
            self._add_on_trunk(call, leader, functools.partial(self._receive, call, leader))

    # And down to all, by way of the leaders.

    def _add_steps_down(
        self, call: Call, parts_for: Callable[[Sequence[int]], dict[int, Part]]
    ) -> None:
        company = self._company
        if not self._is_leader:
            leader = company.here.leader

            def consume(left: Deadline) -> None:
                if call.received is None:
                    call.received = self._hub.consume(left)
                self._shares.take_in(call.received, call.name, leader)

            call.steps.append(Step(consume, lambda: company.name(leader), True))
            return
        self._add_trunk_down(call, parts_for)

        def parcel() -> list[Frame]:
            return self._shares.packed(call.name, parts_for(company.here.ranks))

        others = [rank for rank in company.here.ranks if rank != company.me]
        self._add_send(call, self._hub.publish, parcel, others)

    def _add_trunk_down(
        self, call: Call, parts_for: Callable[[Sequence[int]], dict[int, Part]]
    ) -> None:
        company = self._company

        def send(rank: int, left: Deadline) -> None:
            parts = parts_for(company.topology.node_of(rank).ranks)
            frames = self._shares.packed(call.name, parts)
            self._trunk.send(rank, frames, left, call.name, call.turns[rank])

        if not self._has_nodes:
            return
        if not self._is_src:
            receive = functools.partial(self._receive, call, company.src)
            self._add_on_trunk(call, company.src, receive)
            return
        for leader in self._trunk.leaders:
            self._add_on_trunk(call, leader, functools.partial(send, leader))

    def _add_send(
        self,
        call: Call,
        send: Callable[[Sequence[Frame], Deadline], None],
        frames: Callable[[], list[Frame]],
        whom: Sequence[int],
    ) -> None:
        """Add a step that sends a message in the hub, once."""

        def take(left: Deadline) -> None:
            message = frames()
            self._hub.begin_to_send()
            call.is_sending = True  # (from here on `was_sent` speaks of this message)
            self._sent(send, message, left)

        names = functools.partial(self._company.names, whom)
        call.steps.append(Step(take, names, True, lambda: call.is_sending and self._hub.was_sent))

    def _add_on_trunk(self, call: Call, rank: int, take: Callable[[Deadline], object]) -> None:
        """Add a step that needs the leader of another node: it may be dropped, with all of it."""
        company, ranks = self._company, self._company.topology.node_of(rank).ranks

        def take_or_drop(left: Deadline) -> None:
            if rank not in self._lost:
                try:
                    take(left)
                except PeerDied as error:
                    if not (self._is_src and company.drops):
                        raise
                    self._lost.add(rank)  # (to find it out anew would take a while each time)
                    company.deaths.update(dict.fromkeys(ranks, error))
            if rank in self._lost:
                for dead in ranks:
                    self._shares.parts.setdefault(dead, company.dropped(dead))

        call.steps.append(Step(take_or_drop, lambda: self._company.name(rank), False))

    def _receive(self, call: Call, rank: int, left: Deadline) -> None:
        frames = self._trunk.receive(rank, left, call.name, call.turns[rank])
        self._shares.take_in(frames, call.name, rank)

    def _sent(
        self, send: Callable[[Sequence[Frame], Deadline], None], frames: list[Frame], left: Deadline
    ) -> None:
        try:
            send(frames, left)
        except (TypeError, BufferError) as error:
            told = unsendable(error, self._codec, self._company.label)
            raise told or error from error

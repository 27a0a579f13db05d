"""What ranks do together beside broadcasts: on one node and over nodes, and when it goes wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore
from torch.distributed import distributed_c10d

import shmcast
from shmcast import ShmBroadcaster, WaitPolicy
from tests.support import ranks
from tests.support.fake_nodes import ONE, TWO, opened
from tests.support.objects import OBJECTS, Undecodable, Unsendable, fingerprint
from tests.support.processes import Crew, WorkerFailed, results
from tests.support.subprocess_programs import wait_until

HOSTS = {
    "one node": ONE,
    "two nodes": TWO,
    "mixed": ("a", "b", "a", "b"),
    "one each": tuple("abcd"),
}
SECONDS = 30.0
on_hosts = pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)


def everything(rank: int, hosts: tuple[str, ...], src: int) -> list[Any]:
    with opened(rank, hosts, src=src) as bc:
        told: list[Any] = []
        for k, obj in enumerate([*OBJECTS, b"z" * 3_000_000]):
            mine = (rank, k, obj)
            gathered = bc.gather_object(mine, SECONDS)
            assert (gathered is None) == (rank != src)
            if gathered is not None:
                assert gathered[src] is mine
                told.append([fingerprint(other) for other in gathered])
            everybody = bc.all_gather_object(mine, SECONDS)
            assert everybody[rank] is mine
            told.append([fingerprint(other) for other in everybody])
            objs = [(k, obj, for_rank) for for_rank in range(4)] if bc.is_src else None
            got = bc.scatter_object(objs, SECONDS)
            assert fingerprint(got) == fingerprint((k, obj, rank))
            bc.barrier(SECONDS)
    return told


@on_hosts
@pytest.mark.parametrize("src", [0, 2])
def test_all_objects_reach_whom_they_are_for(world: Crew, hosts: tuple[str, ...], src: int) -> None:
    expected = [
        [fingerprint((rank, k, obj)) for rank in range(4)]
        for k, obj in enumerate([*OBJECTS, b"z" * 3_000_000])
    ]
    told = world.run(4, everything, hosts, src)
    for rank in range(4):
        each = [line for line in expected for _ in range(2 if rank == src else 1)]
        assert told[rank] == each


def many_without_waiting(rank: int, hosts: tuple[str, ...]) -> list[Any]:
    with opened(rank, hosts) as bc:
        for k in range(200):
            got = bc.gather_object((rank, k), SECONDS)
            if got is not None:
                assert got == [(r, k) for r in range(4)]
            if k % 50 == 0:
                assert bc.broadcast_object(k if bc.is_src else None, SECONDS) == k
        return bc.all_gather_object(rank, SECONDS)


@on_hosts
def test_gathers_do_not_wait_for_the_source_and_stay_in_order(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    assert world.run(4, many_without_waiting, hosts) == [[0, 1, 2, 3]] * 4


def passes(rank: int, hosts: tuple[str, ...], wait: WaitPolicy) -> list[int]:
    """Return, for each of many barriers, how many ranks had come to it when it was passed."""
    store = PrefixStore(f"passes {hosts} {wait}", distributed_c10d._get_default_store())
    with opened(rank, hosts, wait=wait) as bc:
        seen = []
        for k in range(50):
            store.add(f"{k}", 1)
            bc.barrier(SECONDS)
            seen.append(store.add(f"{k}", 0))
        return seen


@on_hosts
def test_nobody_passes_a_barrier_before_all_have_come(
    world: Crew, hosts: tuple[str, ...], wait: WaitPolicy
) -> None:
    assert world.run(4, passes, hosts, wait) == [[4] * 50] * 4


def alone(rank: int) -> tuple[Any, ...]:
    groups = [dist.new_group([r]) for r in range(4)]
    with ShmBroadcaster(groups[rank]) as bc:
        bc.barrier()
        with pytest.raises(shmcast.InvalidArgument, match=r"isend_object\(dst=.*is this rank"):
            bc.isend_object(1, rank)
        return bc.gather_object(rank), bc.all_gather_object(rank), bc.scatter_object([rank])


def test_a_group_of_one_needs_nobody(world: Crew) -> None:
    assert world.run(4, alone) == [([rank], [rank], rank) for rank in range(4)]


def calls_that_can_not_work(rank: int, hosts: tuple[str, ...]) -> None:
    with opened(rank, hosts) as bc:
        if rank == 0:
            for bad in (None, [1, 2, 3], [1] * 5, "four", 4, {1, 2, 3, 4}):
                with pytest.raises(shmcast.InvalidArgument, match="a list of 4 objects"):
                    bc.scatter_object(bad)  # type: ignore[arg-type]
        for timeout in (-1, "soon"):
            for call in (bc.barrier, bc.gather_object, bc.all_gather_object, bc.scatter_object):
                with pytest.raises(shmcast.InvalidArgument, match=r"timeout=.* must be None or"):
                    call(timeout=timeout)  # type: ignore[arg-type]
        with pytest.raises(shmcast.EncodeError, match=r"it can't be sent; nothing was sent"):
            bc.all_gather_object(Unsendable())
        assert bc.all_gather_object(rank, SECONDS) == [0, 1, 2, 3]
    for call in (bc.barrier, bc.gather_object, bc.all_gather_object, bc.scatter_object):
        with pytest.raises(shmcast.Closed, match=r"rank \d.*after close\(\)"):
            call()


@on_hosts
def test_a_call_that_can_not_work_says_why_and_harms_nobody(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    world.run(4, calls_that_can_not_work, hosts)


def undecodable(rank: int, hosts: tuple[str, ...]) -> Any:
    with opened(rank, hosts) as bc:
        obj = Undecodable() if rank == 3 else rank
        if rank == 0:
            with pytest.raises(shmcast.DecodeError, match=r"can't decode the object of rank 3"):
                bc.gather_object(obj, SECONDS)
        else:
            bc.gather_object(obj, SECONDS)
        return bc.gather_object(rank, SECONDS)


@on_hosts
def test_an_object_that_can_not_be_decoded_is_over_for_all(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    assert world.run(4, undecodable, hosts) == [[0, 1, 2, 3], None, None, None]


def undecodable_share(rank: int, hosts: tuple[str, ...]) -> Any:
    with opened(rank, hosts) as bc:
        objs = [0, 1, 2, Undecodable()] if bc.is_src else None
        if rank == 3:
            with pytest.raises(shmcast.DecodeError, match=r"can't decode the object of rank 0"):
                bc.scatter_object(objs, SECONDS)
        else:
            bc.scatter_object(objs, SECONDS)
        return bc.scatter_object([4, 5, 6, 7] if bc.is_src else None, SECONDS)


@on_hosts
def test_a_share_that_can_not_be_decoded_is_the_source_s(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    assert world.run(4, undecodable_share, hosts) == [4, 5, 6, 7]


def late(rank: int, hosts: tuple[str, ...], is_first: bool) -> list[Any]:
    """Come late to each collective on rank 3; the others try again after a time-out."""
    with opened(rank, hosts) as bc:
        if not is_first:
            bc.barrier(SECONDS)
        got: list[Any] = []
        calls: list[tuple[str, Callable[[], Any]]] = [
            ("barrier", lambda: bc.barrier(0.05)),
            ("all_gather_object", lambda: bc.all_gather_object(rank, 0.05)),
        ]
        for name, call in calls:
            tries = 0
            dist.barrier()
            if rank == 3:
                dist.barrier()
            while True:
                try:
                    got.append(call())
                    break
                except shmcast.Timeout as error:
                    told = str(error)
                    tries += 1
                    if tries == 1 and rank != 3:
                        dist.barrier()
            if rank != 3:
                assert tries
                assert f"{name} timed out after 0.05 s" in told
                assert "rank 3" in told or rank or hosts != ONE
        return got


@on_hosts
@pytest.mark.parametrize("is_first", [True, False], ids=["at first", "later"])
def test_a_call_that_timed_out_goes_on_when_it_is_called_again(
    world: Crew, hosts: tuple[str, ...], is_first: bool
) -> None:
    assert world.run(4, late, hosts, is_first) == [[None, [0, 1, 2, 3]]] * 4


def another_after_a_time_out(rank: int) -> list[Any]:
    with ShmBroadcaster() as bc:
        bc.barrier(SECONDS)
        if rank == 0:
            with pytest.raises(shmcast.Timeout, match=r"barrier timed out .* rank \d"):
                bc.barrier(0.02)
            with pytest.raises(shmcast.InvalidArgument, match="barrier is not over"):
                bc.all_gather_object(0)
        dist.barrier()
        bc.barrier(SECONDS)
        if rank == 0:
            with pytest.raises(shmcast.Timeout, match=r"nothing came from rank \d"):
                bc.gather_object(0, 0.02)
            with pytest.raises(shmcast.InvalidArgument, match="gather_object is not over"):
                bc.all_gather_object(0)
        dist.barrier()
        bc.gather_object(rank, SECONDS)
        return bc.all_gather_object(rank, SECONDS)


def test_a_call_that_is_not_over_comes_before_others(world: Crew) -> None:
    assert world.run(4, another_after_a_time_out) == [[0, 1, 2, 3]] * 4


def different_calls(rank: int, hosts: tuple[str, ...]) -> str:
    bc = opened(rank, hosts)
    bc.barrier(SECONDS)
    try:
        with bc:
            bc.gather_object(rank, SECONDS) if rank == 3 else bc.all_gather_object(rank, SECONDS)
            bc.barrier(SECONDS)
    except shmcast.ShmcastError as error:
        return str(error)
    return ""


@on_hosts
def test_ranks_that_call_different_collectives_are_told(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    told = world.run(4, different_calls, hosts)
    assert all(told)
    assert any("all ranks must call the same collectives in the same order" in t for t in told)


def interrupted(rank: int, hosts: tuple[str, ...]) -> list[Any]:
    with opened(rank, hosts) as bc:
        bc.barrier(SECONDS)
        got: list[Any] = []
        calls = (lambda: bc.barrier(SECONDS), lambda: bc.all_gather_object(rank, SECONDS))
        for call in calls:
            dist.barrier()
            if rank == 3:
                dist.barrier()  # when all others were interrupted
                got.append(call())
                continue
            told: list[str] = []

            def wait(call: Callable[[], Any] = call, told: list[str] = told) -> None:
                with pytest.raises(shmcast.Interrupted, match=r"ended by interrupt\(\)"):
                    call()
                told.append("interrupted")

            thread = threading.Thread(target=wait)
            thread.start()
            while not told:
                bc.interrupt()
                thread.join(0.05)
            thread.join(SECONDS)
            dist.barrier()
            while True:
                try:
                    got.append(call())
                    break
                except shmcast.Interrupted:  # one more than needed was on its way
                    pass
        return got


@on_hosts
def test_an_interrupt_ends_a_wait_and_the_call_goes_on(world: Crew, hosts: tuple[str, ...]) -> None:
    assert world.run(4, interrupted, hosts) == [[None, [0, 1, 2, 3]]] * 4


def until_it_is_told(rank: int, store: str, hosts: tuple[str, ...], call: str, warm: bool) -> str:
    ranks.join(rank, 4, store)
    bc = opened(rank, hosts)
    if warm:
        bc.barrier(SECONDS)
    if rank == 3:
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    objs = [1] * 4 if bc.is_src else None
    calls: dict[str, Callable[[], Any]] = {
        "barrier": lambda: bc.barrier(SECONDS),
        "gather": lambda: bc.gather_object(rank, SECONDS),
        "all_gather": lambda: bc.all_gather_object(rank, SECONDS),
        "scatter": lambda: bc.scatter_object(objs, SECONDS),
    }
    try:
        with bc:
            while True:
                calls[call]()
    except shmcast.PeerDied as error:
        printed = "".join(traceback.format_exception(error))
        assert printed.count(" has died") == 1, printed
        return f"{error.peer}: {error}"


@on_hosts
@pytest.mark.parametrize("call", ["barrier", "gather", "all_gather"])
@pytest.mark.parametrize("warm", [False, True], ids=["at first", "later"])
def test_a_dead_rank_ends_every_collective_by_name(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], call: str, warm: bool
) -> None:
    crew, store = fresh
    jobs = crew.start(4, until_it_is_told, store, hosts, call, warm)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[3].result()
    told = results(jobs[:3])
    assert all(text.startswith("rank 3") and "has died" in text for text in told), told


def goes_on(rank: int, store: str, call: str) -> list[str]:
    ranks.join(rank, 4, store)
    bc = ShmBroadcaster(on_reader_death="drop")
    bc.barrier(SECONDS)
    if rank == 3:
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()
    with bc:
        for _ in range(3):
            if call == "barrier":
                bc.barrier(SECONDS)
        got = bc.all_gather_object(rank, SECONDS)
    return [
        repr(obj) if isinstance(obj, int) else f"{type(obj).__name__} {obj.peer}" for obj in got
    ]


@pytest.mark.parametrize("call", ["barrier", "all_gather"])
def test_dropping_the_dead_the_others_go_on(fresh: tuple[Crew, str], call: str) -> None:
    crew, store = fresh
    jobs = crew.start(4, goes_on, store, call)
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[3].result()
    assert results(jobs[:3]) == [["0", "1", "2", "PeerDied rank 3"]] * 3


def leaves(rank: int, hosts: tuple[str, ...], call: str) -> str:
    """Close in order on rank 3, while the others wait for it."""
    with opened(rank, hosts) as bc:
        bc.barrier(SECONDS)
        if rank == 3:
            return ""
        try:
            bc.barrier(SECONDS) if call == "barrier" else bc.all_gather_object(rank, SECONDS)
        except (shmcast.Closed, shmcast.PeerDied) as error:
            return str(error)
    return "nothing"


@on_hosts
@pytest.mark.parametrize("call", ["barrier", "all_gather"])
def test_whoever_waits_for_a_rank_that_has_closed_is_told(
    world: Crew, hosts: tuple[str, ...], call: str
) -> None:
    told = world.run(4, leaves, hosts, call)
    assert told[3] == ""
    assert all("closed" in text or "ended" in text for text in told[:3])


CALLS = ("barrier", "gather_object", "all_gather_object", "scatter_object")


def call_without_one(rank: int, hosts: tuple[str, ...], call: str, ending: str) -> list[str]:
    """Return what is told by a collective for which one rank does not come.

    For gather, that is rank 3; for scatter, on which the others wait, the source.
    """
    missing = 0 if call == "scatter_object" else 3
    bc = opened(rank, hosts, warn_after=0.2)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("shmcast").addHandler(handler)
    bc.barrier(SECONDS)
    dist.barrier()
    if rank == missing:
        if ending == "closes":
            bc.close()
        dist.barrier()
        bc.close()
        return []
    told = []
    try:
        getattr(bc, call)(timeout=0.3 if ending == "slow" else SECONDS)
    except shmcast.ShmcastError as error:
        told.append(f"{type(error).__name__}: {error}")
    if ending == "closes":
        bc.close()  # others may wait for this one
    dist.barrier()
    bc.close()
    return told + lines


@pytest.mark.parametrize("hosts", [ONE, TWO], ids=["one node", "two nodes"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("ending", ["slow", "closes"])
def test_what_is_told_is_of_ranks_and_collectives(
    world: Crew, hosts: tuple[str, ...], call: str, ending: str
) -> None:
    told = world.run(4, call_without_one, hosts, call, ending)
    texts = [text for texts in told for text in texts]
    assert any(re.match(rf"\w+: rank \d of 4: {call}\b", text) for text in texts), texts
    missing = 0 if call == "scatter_object" else 3
    kind = "Timeout" if ending == "slow" else "Closed"
    assert any(text.startswith(kind) and f"rank {missing}" in text for text in texts), texts
    for text in texts:
        assert not re.search(r"\b(hub|members?|recv\w*|reply|replies|send)\b", text), text


def two_threads(rank: int) -> str:
    with ShmBroadcaster() as bc:
        bc.barrier(SECONDS)
        told = ""
        if rank == 0:
            thread = threading.Thread(target=lambda: bc.gather_object(0, SECONDS))
            thread.start()
            wait_until(lambda: bc._collectives is not None and bc._collectives._is_called)
            with pytest.raises(shmcast.ConcurrentUse, match="another thread") as caught:
                bc.all_gather_object(0)
            told = str(caught.value)
        dist.barrier()
        if rank == 0:
            thread.join(SECONDS)
        else:
            bc.gather_object(rank, SECONDS)
        return told


def test_one_thread_at_a_time(world: Crew) -> None:
    assert "gather_object" in world.run(4, two_threads)[0]


def other_source(rank: int) -> None:
    with ShmBroadcaster(src=1) as bc:
        for call in (bc.broadcast_object, bc.broadcast_tensor_dict):
            with pytest.raises(shmcast.WrongRole, match=r"source is rank 1.*src=2.*gather_object"):
                call({}, src=2)
            assert call({"a": 1} if rank == 1 else None, src=1) == {"a": 1}


def test_a_broadcast_from_another_source_says_what_to_do(world: Crew) -> None:
    world.run(4, other_source)


def answers_by_another_broadcaster(rank: int) -> str:
    """Rank 1 answers rank 0 by a broadcaster of its own, which ranks 2 and 3 don't receive from."""
    told: list[str] = []
    options: dict[str, Any] = {"slots": 8, "spill_bytes": 0}
    with ShmBroadcaster(**options) as bc, ShmBroadcaster(src=1, **options) as back:
        for k in range(20):
            assert bc.broadcast_object(k if rank == 0 else None, SECONDS) == k
            if rank == 1 and not told:
                try:
                    back.send(k, 0.05)
                except shmcast.Timeout as error:
                    told.append(str(error))
            elif rank == 0 and k < 8:
                assert back.recv(SECONDS) == k
        dist.barrier()
    return "".join(told)


def test_a_broadcaster_as_a_way_back_says_what_to_use(world: Crew) -> None:
    told = world.run(4, answers_by_another_broadcaster)
    assert "rank 2 is 8 fragments behind" in told[1]
    assert "every rank must receive" in told[1]
    assert "gather_object" in told[1]


def forked(rank: int) -> int:
    with ShmBroadcaster() as bc:
        bc.barrier(SECONDS)
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                for call in (bc.barrier, bc.gather_object, lambda: bc.isend_object(1, rank ^ 1)):
                    with pytest.raises(shmcast.Forked, match="forked"):
                        call()
                bc.close()
                code = 0
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert bc.all_gather_object(rank, SECONDS) == [0, 1, 2, 3]
        return code


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_is_told_and_harms_nobody(world: Crew) -> None:
    assert world.run(4, forked) == [0] * 4

"""Broadcasters without a process group, over an all-gather of the program's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

import shmcast
from shmcast import ObjectCodec, PickleCodec, ShmBroadcaster
from shmcast._nodes import gloo_group
from tests.support.exchanges import StoreExchange, file_store, over_store
from tests.support.fake_nodes import SPREADS, on_host
from tests.support.processes import Crew
from tests.support.subprocess_programs import run_to_its_end

SECONDS = 30.0


def everything(rank: int, hosts: tuple[str, ...], path: str) -> tuple[list[Any], int, bool]:
    with over_store(rank, hosts, path, src=1) as bc:
        got = []
        for number in range(100):
            got.append(bc.broadcast_object((number, "x" * number) if rank == 1 else None, SECONDS))
        bc.barrier(SECONDS)
        assert bc.all_gather_object(rank, SECONDS) == [*range(4)]
        assert bc.scatter_object([*range(4)] if bc.is_src else None, SECONDS) == rank
        bc.isend_object(("to", rank ^ 2), rank ^ 2, SECONDS)
        assert bc.recv_object(rank ^ 2, SECONDS) == ("to", rank)
        d = {"t": torch.arange(5)} if bc.is_src else None
        out = {"t": torch.zeros(5, dtype=torch.int64)}
        assert bc.broadcast_tensor_dict(d, SECONDS, out=out)["t"].tolist() == [*range(5)]
        assert bc.is_src or out["t"].tolist() == [*range(5)]
        bc.barrier(SECONDS)
        return got, len(bc.topology.nodes), dist.is_initialized()


@pytest.mark.parametrize("hosts", [("a",) * 4, *SPREADS])
def test_all_that_a_group_can_do_works_without_one(
    fresh: tuple[Crew, str], hosts: tuple[str, ...]
) -> None:
    crew, path = fresh
    for told in crew.run(4, everything, hosts, path):
        assert told == ([(n, "x" * n) for n in range(100)], len({*hosts}), False)


NO_TORCH = """
import os, sys
pipes = [os.pipe(), os.pipe()]
rank = 0 if os.fork() else 1
from shmcast import ShmBroadcaster

def exchange(mine):
    os.write(pipes[rank][1], len(mine).to_bytes(4, "big") + mine)
    size = int.from_bytes(os.read(pipes[1 - rank][0], 4), "big")
    other = os.read(pipes[1 - rank][0], size)
    return [mine, other] if rank == 0 else [other, mine]

with ShmBroadcaster.over(rank, 2, exchange) as bc:
    assert bc.broadcast_object("step" if rank == 0 else None, 30) == "step"
    assert bc.all_gather_object(rank, 30) == [0, 1]
    bc.isend_object(rank, 1 - rank)
    assert bc.recv_object(1 - rank, 30) == 1 - rank
    bc.barrier(30)
assert "torch" not in sys.modules
if rank == 1:
    os._exit(0)
assert os.wait()[1] == 0
"""


def test_one_node_needs_no_torch() -> None:
    ran = run_to_its_end(NO_TORCH)
    assert ran.returncode == 0, ran.stderr


def test_a_rank_that_is_alone_exchanges_once() -> None:
    calls = []

    def exchange(mine: bytes) -> list[bytes]:
        calls.append(mine)
        return [mine]

    with ShmBroadcaster.over(0, 1, exchange) as bc:
        assert bc.broadcast_object("alone") == "alone"
        assert bc.gather_object("me") == ["me"]
        bc.barrier()
    assert len(calls) == 1


def fails(
    rank: int, path: str, faulty: tuple[int, ...], fault: str, hosts: tuple[str, ...]
) -> tuple[str, str, int]:
    """Make a broadcaster, with a fault on some ranks; return the error, and how many calls."""
    gathered_of_call_1: list[bytes] = []

    def spoil(call: int, gathered: list[bytes]) -> Any:
        nonlocal gathered_of_call_1
        if call == 1:
            gathered_of_call_1 = gathered
        name, _, at = fault.partition("@")
        if rank not in faulty or call != int(at or 1):
            return gathered
        match name:
            case "few":
                return gathered[:-1]
            case "many":
                return [*gathered, gathered[0]]
            case "order":
                return gathered[::-1]
            case "strings":
                return [part.hex() for part in gathered]
            case "dict":
                return dict(enumerate(gathered))
            case "garbage":
                return [gathered[rank]] * rank + [b"garbage"] * (len(gathered) - rank)
            case "stale":
                return gathered_of_call_1
            case "raises":
                raise ConnectionResetError("the caller's network is down")
        return gathered

    place, size, src, codec = rank, 3, 0, ObjectCodec()
    options: dict[str, Any] = {}
    if rank in faulty:
        match fault:
            case "rank":
                place = 3
            case "negative":
                place = -1
            case "no size":
                size = 0
            case "size":
                size = 4
            case "twin":
                place = 1
            case "src":
                src = 3
            case "sources":
                src = 1
            case "codec":
                options["codec"] = PickleCodec()
            case "devices":
                options["device_types"] = {"cuda"}
            case "slots":
                options["slots"] = -1
    options.setdefault("codec", codec)
    if fault == f"raises@{BEFORE_GLOO}" and len({*hosts}) > 1:
        gloo_group.CONNECT_SECONDS = 3.0  # for which the source waits for the leader that fails
    exchange = StoreExchange(file_store(path), rank, 3, spoil)

    def make_and_receive() -> None:
        # (Where the last step has failed elsewhere, this rank has a broadcaster.)
        ShmBroadcaster.over(place, size, exchange, src, **options).recv(SECONDS)

    with on_host(hosts[rank]), pytest.raises(shmcast.ShmcastError) as caught:
        make_and_receive()
    cause = type(caught.value.__cause__).__name__
    assert fault != "raises" or rank not in faulty or cause == "ConnectionResetError"
    return type(caught.value).__name__, str(caught.value), exchange.calls


BEFORE_GLOO = 5
"""The step behind which the source and the leaders connect."""

ONE, TWO = ("a",) * 3, ("a", "b", "b")


@pytest.mark.parametrize(
    ("fault", "faulty", "why"),
    [
        ("few", (1,), "it has 2 of them"),
        ("many", (1,), "it has 4 of them"),
        ("order", (0, 1, 2), "in the order of ranks [2, 1, 0]"),
        ("order", (2,), "in the order of ranks [2, 1, 0]"),
        ("strings", (1,), "a str is at place 0"),
        ("dict", (0, 1, 2), "it is a dict"),
        ("garbage", (1,), "what is at place 1 is no message of a set-up"),
        ("stale@2", (1,), "the steps [1, 1, 1] of the set-up, this is 2"),
        ("raises", (1,), "exchange failed: ConnectionResetError: the caller's network is down"),
        ("raises", (0, 1, 2), "exchange failed: ConnectionResetError"),
        ("raises@2", (0,), "exchange failed: ConnectionResetError"),
        ("rank", (2,), "rank=3 is no rank of size=3: they are numbered from 0 to 2"),
        ("negative", (0,), "rank=-1 is no rank of size=3"),
        ("no size", (1,), "size=0 is no number of ranks"),
        ("no size", (0, 1, 2), "size=0 is no number of ranks"),
        ("size", (1,), "the ranks name different sizes, in the order of exchange's list [3, 4, 3]"),
        ("twin", (2,), "several processes say that they are the same rank"),
        ("src", (1,), "src=3 is not one of"),
        ("src", (0, 1, 2), "src=3 is not one of"),
        ("sources", (1,), "the ranks name different sources"),
        ("codec", (1,), "the ranks have different codecs"),
        ("devices", (0, 1, 2), "without a process group, they travel by host memory"),
        ("slots", (0,), "slots=-1"),
    ],
)
def test_what_is_wrong_is_told_on_every_rank(
    fresh: tuple[Crew, str], fault: str, faulty: tuple[int, ...], why: str
) -> None:
    crew, path = fresh
    told = crew.run(3, fails, path, faulty, fault, ONE)
    for rank, (kind, error, _) in enumerate(told):
        assert why in error, told
        assert error.startswith(("rank", "size=0", "src=3")), error
        assert rank in faulty or "rank " in error
        assert kind in ("InvalidArgument", "SegmentError")


@pytest.mark.parametrize(
    ("hosts", "call", "last"),
    [*((ONE, call, 3) for call in range(1, 4)), *((TWO, call, 7) for call in range(1, 8))],
)
def test_a_rank_whose_exchange_fails_leaves_nobody_waiting(
    fresh: tuple[Crew, str], hosts: tuple[str, ...], call: int, last: int
) -> None:
    crew, path = fresh
    told = crew.run(3, fails, path, (1,), f"raises@{call}", hosts)
    for rank, (kind, error, calls) in enumerate(told):
        assert calls == min(call + 1, last), told
        if call < last or rank == 1:
            assert "exchange failed: ConnectionResetError" in error
            assert kind == "SegmentError"
        else:
            assert (kind, rank) in (("PeerDied", 2), ("WrongRole", 0)), told


def carries_devices(rank: int, path: str) -> str:
    """Have device tensors carried by a group, which only some ranks say."""
    dist.init_process_group("gloo", f"file://{path}-world", rank=rank, world_size=2)
    exchange = StoreExchange(file_store(path), rank, 2)
    world = dist.group.WORLD
    with ShmBroadcaster.over(rank, 2, exchange, device_group=world, device_types={"cpu"}) as bc:
        got = bc.broadcast_tensor_dict({"t": torch.ones(4)} if bc.is_src else None, SECONDS)
        assert got["t"].tolist() == [1.0] * 4
        bc.barrier(SECONDS)
    with pytest.raises(shmcast.InvalidArgument) as caught:
        ShmBroadcaster.over(rank, 2, exchange, device_group=None if rank else world)
    return str(caught.value)


def test_a_device_group_carries_device_tensors_if_all_ranks_give_it(
    fresh: tuple[Crew, str],
) -> None:
    crew, path = fresh
    for error in crew.run(2, carries_devices, path):
        assert "the ranks differ in what carries device tensors" in error


@pytest.mark.parametrize("exchange", [None, 7])
def test_an_exchange_that_can_not_be_called_is_refused(exchange: Any) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="is no function that takes"):
        ShmBroadcaster.over(0, 2, exchange)


@pytest.mark.parametrize(("rank", "size"), [(0, 0), (0, -1), (1, 1), ("0", 1), (0, 1.0), (-1, 1)])
def test_a_rank_or_size_that_can_not_be_is_refused(rank: Any, size: Any) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="is no "):
        ShmBroadcaster.over(rank, size, lambda mine: [mine])

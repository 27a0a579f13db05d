"""The relay between nodes, over ranks of one host that take themselves for several."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import pretend
import ranks
import shmcast
from objects import describe
from processes import Crew
from shmcast import ShmBroadcaster
from shmcast._nodes import control as _control
from shmcast._nodes import envelope
from shmcast._nodes import leader as _relay_leader
from shmcast._nodes import outbox as _window
from shmcast._nodes import source as _relay_source
from shmcast._nodes.addresses import Address
from shmcast._nodes.node_ring import NoRing
from test_broadcaster import OBJECTS, fingerprint
from test_device import CPU, MAKERS

SECONDS = 30

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")
TWO = ("a", "a", "b", "b")
SPREADS = [TWO, ("a", "b", "c", "d"), ("a", "b", "b", "b"), ("a", "b", "a", "c")]


def opened(rank: int, hosts: tuple[str, ...], **options: Any) -> ShmBroadcaster:
    """A broadcaster of ranks that are on these hosts."""
    with pretend.on_host(hosts[rank]):
        return ShmBroadcaster(**options)


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "shmcast-relay"]


def until(condition: Any) -> None:
    """Waits for what happens soon; the test's time-out is the limit."""
    while not condition():
        time.sleep(1e-3)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[tuple[Crew, str]]:
    crew = Crew(4)
    yield crew, str(tmp_path / "store")
    crew.end()


def everything(rank: int, hosts: tuple[str, ...], src: int) -> tuple[list[str], list[str], Any]:
    many = [np.full(5000 + k, k, np.uint8) for k in range(40)]
    objects = [*OBJECTS, many, *range(100), b"y" * 6_000_000, {"after": 1}]
    with opened(rank, hosts, src=src) as bc:
        got = [bc.broadcast_object(obj if bc.is_src else None, SECONDS) for obj in objects]
        statistics, topology = bc.statistics(), bc.topology
        dist.barrier()
    assert statistics.messages == len(objects)
    if rank in {node.leader for node in topology.nodes}:
        if rank != src or len(topology.nodes) > 1:
            assert statistics.relayed == len(objects)
            assert statistics.estimate_hits + statistics.estimate_misses == len(objects)
            assert statistics.estimate_misses >= 3
            assert statistics.relayed_bytes > 6_300_000
    else:
        assert statistics.relayed == 0
    until(lambda: not threads())
    return [*map(fingerprint, got)], [*map(fingerprint, objects)], topology


@pytest.mark.parametrize("hosts", SPREADS, ids="".join)
@pytest.mark.parametrize("src", [0, 2])
def test_every_rank_of_every_node_gets_all_in_order(
    world: Crew, hosts: tuple[str, ...], src: int
) -> None:
    results = world.run(4, everything, hosts, src)
    topologies = {topology for _, _, topology in results}
    assert len(topologies) == 1
    (topology,) = topologies
    assert {node.host for node in topology.nodes} == set(hosts)
    assert topology.node_of(src).leader == src
    for got, expected, _ in results:
        assert got == expected


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def opened_and_closed(rank: int, hosts: tuple[str, ...], rounds: int) -> None:
    first = 0
    gc.collect()
    gc.disable()
    for number in range(rounds):
        bc = opened(rank, hosts)
        assert bc.broadcast_object(number if bc.is_src else None, SECONDS) == number
        dist.barrier()
        bc.close()
        del bc
        until(lambda: not threads())
        if number == 0:
            first = descriptors()
    until(lambda: descriptors() <= first)  # (gloo closes its own a little later)
    gc.enable()


def test_closed_broadcasters_leave_nothing_even_without_the_garbage_collector(world: Crew) -> None:
    world.run(4, opened_and_closed, TWO, 6)


def interrupted_between_nodes(rank: int, hosts: tuple[str, ...]) -> list[Any]:
    got: list[Any] = []
    with opened(rank, hosts) as bc, pytest.MonkeyPatch.context() as patch:
        bc.broadcast_object(0 if bc.is_src else None, SECONDS)
        dist.barrier()
        if bc.is_src:

            def interrupt(*_args: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr("shmcast._nodes.outbox.pack", interrupt)
            with pytest.raises(KeyboardInterrupt):
                bc.send(1)
        try:
            while True:
                got.append(bc.broadcast_object(2 if bc.is_src else None, SECONDS))
        except shmcast.Closed as error:
            got.append(str(error))
        dist.barrier()
    return got


def test_a_send_that_is_interrupted_between_two_nodes_is_told_to_all(world: Crew) -> None:
    source, near, *far = world.run(4, interrupted_between_nodes, TWO)
    assert [len(source), len(near), *map(len, far)] == [1, 2, 1, 1]
    assert near[0] == 1
    for got in (source, near, *far):
        assert "interrupted by KeyboardInterrupt when one node had the message" in got[-1]


class Frames:
    """A codec whose objects are lists of frames."""

    def encode(self, frames: list[Any], /) -> list[Any]:
        return frames

    def decode(self, frames: list[Any], /) -> list[bytes]:
        return [bytes(frame) for frame in frames]


def odd_frames(rank: int, hosts: tuple[str, ...]) -> Any:
    frames = [np.empty((0, 3)).data, np.ones(2, complex).data, b"end"]
    with opened(rank, hosts, codec=Frames()) as bc:
        if bc.is_src:
            for wrong in (np.ones(8)[::2].data, 5):
                with pytest.raises(shmcast.EncodeError, match="nothing was sent"):
                    bc.send([b"good", wrong])
        got = bc.broadcast_object(frames if bc.is_src else None, SECONDS)
        dist.barrier()
    return [bytes(frame) for frame in got]


@pytest.mark.parametrize("hosts", [TWO, ("a", "b", "b", "b")], ids="".join)
def test_any_contiguous_frame_goes_to_all_nodes_and_any_other_to_none(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    expected = [b"", np.ones(2, complex).tobytes(), b"end"]
    assert world.run(4, odd_frames, hosts) == [expected] * 4


def test_a_message_too_large_for_other_nodes_is_refused_where_there_is_no_ring() -> None:
    with pytest.raises(shmcast.MessageTooLarge, match=r"source: .* 8388608 frames .* in parts"):
        NoRing("source").publish([b""] * 2**23)


def with_arenas(rank: int, hosts: tuple[str, ...]) -> tuple[int, bool, list[bool]]:
    with opened(rank, hosts, arena_bytes=8 << 20) as bc:
        loan = bc.empty((1 << 20,), np.uint8) if bc.is_src else None
        if loan is not None:
            loan.fill(1)
        sent = [np.arange(1 << 18), loan]
        got = bc.broadcast_object(sent if bc.is_src else None, SECONDS, copy=False)
        right = np.array_equal(got[0], np.arange(1 << 18)) and bool(np.all(got[1] == 1))
        is_writable = [array.flags.writeable for array in got]
        frames = bc.statistics().arena_frames
        dist.barrier()
        del got, sent
        dist.barrier()
        if loan is not None:
            assert bc.thaw(loan)
    return frames, right, is_writable


@pytest.mark.parametrize("hosts", [TWO, ("a", "b", "b", "b")], ids="".join)
def test_each_node_has_an_arena_of_its_own(world: Crew, hosts: tuple[str, ...]) -> None:
    source, *others = world.run(4, with_arenas, hosts)
    is_alone = hosts.count(hosts[0]) == 1
    assert source == (0 if is_alone else 2, True, [True, is_alone])
    assert others == [(2, True, [False, False])] * 3


def with_device_tensors(rank: int, hosts: tuple[str, ...]) -> list[Any]:
    got = []
    with opened(rank, hosts, src=1, device_types=CPU) as bc:
        for make in MAKERS.values():
            got.append(describe(bc.broadcast_object(make() if bc.is_src else None, SECONDS)))
    return got


@pytest.mark.parametrize("hosts", [TWO, ("a", "b", "c", "d")], ids="".join)
def test_device_tensors_go_over_the_device_group_to_all_nodes(
    world: Crew, hosts: tuple[str, ...]
) -> None:
    expected = [describe(make()) for make in MAKERS.values()]
    assert world.run(4, with_device_tensors, hosts) == [expected] * 4


def one_stays_away(rank: int, folder: Path) -> str:
    """Rank 1 takes no part: in gloo's tree 0 sends to it, and it would send to 3."""
    with opened(rank, TWO, device_types=CPU) as bc:
        error = ""
        if rank != 1:
            try:
                bc.broadcast_object([torch.ones(10)] if bc.is_src else None, timeout=1)
            except shmcast.DeviceTimeout as caught:
                error = str(caught)
        (folder / str(rank)).touch()  # (gloo's own group is of no use any more)
        until(lambda: len([*folder.iterdir()]) == 4)
        return error


def test_a_missing_rank_is_named_on_its_node_and_said_to_be_unseen_elsewhere(
    tmp_path: Path, fresh: tuple[Crew, str]
) -> None:
    crew, store = fresh
    (tmp_path / "seen").mkdir()
    crew.run(4, ranks.join, 4, store)
    source, _, _, remote = crew.run(4, one_stays_away, tmp_path / "seen")
    assert "rank 1 did not take part" in source
    assert "all ranks of this node had begun; of ranks 0, 1 on other nodes it is unknown" in remote


def many_at_once(rank: int) -> list[str]:
    groups = [dist.new_group(pair) for pair in ([0, 2], [1, 3], [0, 3], [1, 2])]
    mine = [group for group in groups if group is not dist.GroupMember.NON_GROUP_MEMBER]
    broadcasters = [opened(rank, TWO, group=group, group_src=1) for group in mine]
    broadcasters.append(opened(rank, TWO, src=3))
    got = []
    for k in range(60):
        for bc in broadcasters:
            received = bc.broadcast_object(f"{k} from {rank}" if bc.is_src else None, SECONDS)
            assert received == f"{k} from {bc.src}"
            got.append(received)
    for bc in broadcasters:
        bc.close()
    return got


def test_several_groups_across_nodes_do_not_disturb_each_other(world: Crew) -> None:
    assert [len(got) for got in world.run(4, many_at_once)] == [180] * 4


def slow_node(rank: int, hosts: tuple[str, ...]) -> tuple[int, str, list[int]]:
    """The source sends until nothing goes any more; then the others begin to receive."""
    with opened(rank, hosts, slots=2) as bc:
        sent, error = 0, ""
        if bc.is_src:
            with pytest.raises(shmcast.InvalidArgument, match="timeout=-1"):
                bc.send(0, timeout=-1)
            with pytest.raises(shmcast.Timeout) as caught:  # noqa: PT012 (until then)
                while True:
                    bc.send(sent, timeout=0.3)
                    sent += 1
            error = str(caught.value)
        box = [sent]
        dist.broadcast_object_list(box, src=0)
        if bc.is_src:
            bc.send("last", SECONDS)
            dist.barrier()
            return sent, error, []
        with pytest.raises(shmcast.Timeout) as caught:  # noqa: PT012 (until then)
            got: list[Any] = []
            while True:
                got.append(bc.recv(0.5 if len(got) > box[0] else SECONDS))
        dist.barrier()
        assert got.pop() == "last"
        return box[0], str(caught.value), got


def test_a_full_window_times_out_and_names_the_node(world: Crew) -> None:
    hosts = ("a", "b", "b", "b")
    (sent, error, _), *others = world.run(4, slow_node, hosts)
    assert _window.WINDOW_MESSAGES <= sent <= 2 * _window.WINDOW_MESSAGES
    assert error.startswith("rank 0 (rank 0 of 4")
    assert "send timed out after 0.3 s" in error
    assert "node 1 (b) (leader rank 1 of ranks 1, 2, 3) has taken" in error
    for rank, (_, error, got) in enumerate(others, 1):
        assert got == [*range(sent)]
        assert f"rank {rank} " in error
        assert "nothing came from rank 0 on node 0 (a), through rank 1 on node 1 (b)" in error


def close_orders(rank: int, first: int) -> list[Any]:
    bc = opened(rank, TWO)
    dist.barrier()
    got: list[Any] = []
    if rank == first:
        bc.close()
    dist.barrier()
    if bc.is_src:
        if first != 0:
            for k in range(100):
                bc.send(k, SECONDS)
        bc.close()
        with pytest.raises(shmcast.Closed, match=r"send after close"):
            bc.send("too late")
    elif rank != first:
        with pytest.raises(shmcast.Closed) as caught:  # noqa: PT012 (until then)
            while True:
                got.append(bc.recv(SECONDS))
        assert f"rank {rank} " in str(caught.value)
    bc.close()
    until(lambda: not threads() and not _relay_source._open)
    dist.barrier()
    return got


@pytest.mark.parametrize("first", [0, 1, 2, 3], ids=["source", "near", "leader", "remote"])
def test_closed_in_any_order_the_others_get_all_that_was_sent(world: Crew, first: int) -> None:
    _, *others = world.run(4, close_orders, first)
    for rank, got in enumerate(others, 1):
        assert got == ([] if first in (0, rank) else [*range(100)])


def all_leave_during_close(rank: int) -> bool:
    """The leaders' farewells come between the source's look at them and its last message."""
    with opened(rank, ("a", "b", "c", "d")) as bc, pytest.MonkeyPatch.context() as patch:
        if isinstance(bc._end, _relay_source.SourceRelay):
            leaders = bc._end._remote._leaders
            pack = envelope.pack

            def pack_late(*args: Any) -> envelope.Envelope:
                until(lambda: not leaders.live())
                return pack(*args)

            patch.setattr("shmcast._nodes.outbox.pack", pack_late)
        bc.close()
        until(lambda: not _relay_source._open)
    dist.barrier()
    return True


def test_a_source_that_all_leave_while_it_closes_ends(world: Crew) -> None:
    assert world.run(4, all_leave_during_close) == [True] * 4


def one_leaves_after_close(rank: int) -> list[int]:
    """Rank 1 leaves with the source closed: in gloo's tree, rank 3 got everything through it."""
    got: list[int] = []
    with opened(rank, ("a", "b", "c", "d"), slots=2) as bc:
        if bc.is_src:
            for k in range(40):
                bc.send(k, SECONDS)
            bc.close()
        dist.barrier()
        if rank == 1:
            bc.close()
        dist.barrier()
        if rank > 1:
            with pytest.raises(shmcast.Closed):  # noqa: PT012 (until then)
                while True:
                    got.append(bc.recv(SECONDS))
        until(lambda: not _relay_source._open)
    return got


def test_what_was_sent_arrives_though_a_node_leaves_after_close(world: Crew) -> None:
    assert world.run(4, one_leaves_after_close) == [[], [], [*range(40)], [*range(40)]]


def all_but_the_source_close(rank: int, hosts: tuple[str, ...]) -> str:
    with opened(rank, hosts) as bc:
        bc.broadcast_object("one" if bc.is_src else None, SECONDS)
        if not bc.is_src:
            bc.close()
        dist.barrier()
        if bc.is_src:
            with pytest.raises(shmcast.Closed) as caught:  # noqa: PT012 (until then)
                while True:
                    bc.send("for nobody", SECONDS)
            return str(caught.value)
    return ""


@pytest.mark.parametrize("hosts", SPREADS, ids="".join)
def test_a_source_that_all_have_left_is_told(world: Crew, hosts: tuple[str, ...]) -> None:
    error = world.run(4, all_but_the_source_close, hosts)[0]
    assert "nobody is left to receive" in error


def near_ones_close(rank: int) -> list[int]:
    """Those of the source's node leave; the other node goes on."""
    with opened(rank, TWO) as bc:
        if rank == 1:
            bc.close()
        dist.barrier()
        if rank != 1:
            return [bc.broadcast_object(k if bc.is_src else None, SECONDS) for k in range(50)]
    return []


def test_the_source_goes_on_for_other_nodes_when_its_own_has_left(world: Crew) -> None:
    assert world.run(4, near_ones_close) == [[*range(50)], [], [*range(50)], [*range(50)]]


def a_node_leaves(rank: int) -> list[int]:
    """One node's only rank leaves in the middle; the source regroups and loses nothing."""
    with opened(rank, ("a", "b", "c", "d")) as bc:
        got = []
        for k in range(300):
            if rank == 2 and k == 100:
                break
            got.append(bc.broadcast_object(k if bc.is_src else None, SECONDS))
    return got


def test_a_node_that_leaves_costs_the_others_nothing(world: Crew) -> None:
    lengths = {0: 300, 1: 300, 2: 100, 3: 300}
    for rank, got in enumerate(world.run(4, a_node_leaves)):
        assert got == [*range(lengths[rank])]


def another_leaves_when_asked_to_regroup(rank: int) -> list[int]:
    with opened(rank, ("a", "b", "c", "d")) as bc, pytest.MonkeyPatch.context() as patch:
        if rank == 2:
            relay = _relay_leader.LeaderRelay
            patch.setattr(relay, "_make_ready", relay._leave)
        got = []
        try:
            for k in range(300):
                if rank == 1 and k == 100:
                    break
                got.append(bc.broadcast_object(k if bc.is_src else None, SECONDS))
        except shmcast.Closed:
            assert rank == 2
    return got


def test_nobody_waits_for_a_node_that_leaves_while_the_others_regroup(world: Crew) -> None:
    source, _, _, other = world.run(4, another_leaves_when_asked_to_regroup)
    assert source == other == [*range(300)]


def set_up_fails(rank: int, culprit: int) -> tuple[str, str]:
    before = set(Path("/dev/shm").iterdir())
    options = {"slots": 48} if rank == culprit else {}
    with pytest.raises(shmcast.ShmcastError) as caught:
        opened(rank, TWO, **options)
    dist.barrier()
    assert {
        p for p in set(Path("/dev/shm").iterdir()) - before if f"-{os.getpid()}-" in p.name
    } == set()
    return type(caught.value).__name__, str(caught.value)


@pytest.mark.parametrize("culprit", [0, 2], ids=["source", "leader"])
def test_whoever_fails_in_set_up_is_named_everywhere(world: Crew, culprit: int) -> None:
    for rank, (kind, error) in enumerate(world.run(4, set_up_fails, culprit)):
        assert kind == ("InvalidArgument" if rank == culprit else "SegmentError")
        assert "slots=48 is not a power of two" in error
        assert f"rank {culprit}" in error


def nowhere(port: int) -> list[Address]:
    assert port > 0
    return [("127.0.0.1", 9)]


def is_unreachable(rank: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        if rank == 0:
            patch.setattr("shmcast._nodes.leaders.local_addresses", nowhere)
        with pytest.raises((shmcast.SegmentError, ConnectionError)) as caught:
            opened(rank, TWO)
    return str(caught.value)


def test_a_leader_that_cannot_connect_tells_every_rank_where_it_tried(world: Crew) -> None:
    for error in world.run(4, is_unreachable):
        assert "127.0.0.1 port 9" in error
        assert "GLOO_SOCKET_IFNAME" in error


def one_dies(rank: int, store: str, victim: int, drops: bool) -> tuple[str, str, list[int], int]:
    ranks.join(rank, 4, store)
    got: list[int] = []
    with opened(rank, TWO, on_reader_death="drop" if drops else "raise") as bc:
        try:
            for k in range(200 if drops else 10**9):
                if rank == victim and k == 50:
                    os.kill(os.getpid(), signal.SIGKILL)
                got.append(bc.broadcast_object(k if bc.is_src else None, SECONDS))
        except shmcast.ShmcastError as error:
            return type(error).__name__, str(error), got, os.getpid()
    return "", "", got, os.getpid()


@pytest.mark.parametrize("victim", [0, 1, 2, 3], ids=["source", "near", "leader", "remote"])
def test_a_dead_rank_is_named_on_every_node(fresh: tuple[Crew, str], victim: int) -> None:
    crew, store = fresh
    jobs = crew.start(4, one_dies, store, victim, False)
    pid = jobs[victim].worker.process.pid
    for rank in {0, 1, 2, 3} - {victim}:
        kind, error, got, _ = jobs[rank].result()
        assert kind == "PeerDied"
        assert error.startswith(f"rank {rank} (rank {rank} of 4")
        assert f"rank {victim}" in error.partition(": ")[2]
        assert f"node {victim // 2} ({TWO[victim]})" in error
        assert f"(pid {pid})" in error
        assert got == [*range(len(got))]


@pytest.mark.parametrize("victim", [2, 3], ids=["leader", "remote"])
def test_dropping_goes_on_without_a_dead_rank_and_with_a_dead_leader_without_its_node(
    fresh: tuple[Crew, str], victim: int
) -> None:
    crew, store = fresh
    jobs = crew.start(4, one_dies, store, victim, True)
    for rank in {0, 1, 2, 3} - {victim}:
        kind, error, got, _ = jobs[rank].result()
        assert got == [*range(len(got))]
        if victim == 2 and rank == 3:
            assert kind == "PeerDied"
            assert "rank 2" in error
            assert "on node 1 (b)" in error
        else:
            assert len(got) == 200


def stopped_then_continued(rank: int, store: str) -> tuple[int, list[int], str]:
    ranks.join(rank, 3, store)
    with opened(rank, ("a", "b", "c")) as bc:
        pids = [0] * 3
        dist.all_gather_object(pids, os.getpid())
        if not bc.is_src:
            got = []
            while (k := bc.recv(SECONDS)) is not None:
                got.append(k)
            return 0, got, ""
        os.kill(pids[2], signal.SIGSTOP)
        sent = 0
        try:
            while True:
                bc.send(sent, timeout=0.3)
                sent += 1
        except shmcast.Timeout as caught:
            error = str(caught)
        finally:
            os.kill(pids[2], signal.SIGCONT)
        bc.send(None, SECONDS)
        return sent, [], error


def test_a_stopped_rank_is_back_pressure_and_not_dead(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    (sent, _, error), *others = crew.run(3, stopped_then_continued, store)
    assert "node 2 (c) (leader rank 2 of ranks 2) has taken" in error
    assert "does not answer" in error
    for _, got, _ in others:
        assert got == [*range(sent)]


EXITS = """
import os, sys
sys.path[:0] = [{tests!r}]
import pretend, ranks, shmcast
rank = int(sys.argv[1])
ranks.join(rank, 3, sys.argv[2])
with pretend.on_host("abb"[rank]):
    bc = shmcast.ShmBroadcaster()
if rank == 0:
    for k in range(40):
        bc.send(k, 30)
else:
    assert [bc.recv(30) for _ in range(40 if rank == 2 else 1)]
if rank == 1:
    sys.stdin.read()  # until rank 2 has ended: its relay waits in a collective
print("end", flush=True)
"""


@pytest.mark.parametrize("source_first", [True, False])
def test_the_interpreter_exits_while_a_relay_waits(tmp_path: Path, source_first: bool) -> None:
    script = tmp_path / "script.py"
    script.write_text(EXITS.format(tests=str(Path(__file__).parent)))
    if not source_first:
        script.write_text(script.read_text().replace("if rank == 1:", "if rank < 2:"))
    processes = [
        subprocess.Popen(  # noqa: S603
            [sys.executable, str(script), str(rank), str(tmp_path / "store")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(3)
    ]  # fmt: skip
    try:
        for rank in (2, 0, 1) if source_first else (2, 1, 0):
            out, err = processes[rank].communicate(timeout=40)
            assert (processes[rank].returncode, out) == (0, "end\n"), err
    finally:
        for process in processes:
            process.kill()
            process.wait()


def strangers(rank: int) -> str:
    """Somebody who knows no secret connects while the leaders do."""
    real = _control.connect
    heard = []

    def connect(addresses: Any, secret: str, rank: int) -> Any:
        for words in (b"1 guess\n", b"\xff" * 2000, b""):
            with socket.create_connection(addresses[-1], 5) as stranger:
                stranger.sendall(words)
                stranger.shutdown(socket.SHUT_WR)
                heard.append(stranger.recv(100))
        return real(addresses, secret, rank)

    _control.connect = connect
    try:
        with opened(rank, TWO) as bc:
            got: str = bc.broadcast_object("fine" if bc.is_src else None, SECONDS)
    finally:
        _control.connect = real
    assert heard == ([b""] * 3 if rank == 2 else [])
    return got


def test_a_stranger_is_not_welcome_and_disturbs_nobody(world: Crew) -> None:
    assert world.run(4, strangers) == ["fine"] * 4


def test_acks_come_before_the_window_is_full() -> None:
    assert 2 * _relay_leader.ACK_MESSAGES <= _window.WINDOW_MESSAGES
    assert 2 * _relay_leader.ACK_BYTES <= _window.WINDOW_BYTES


def forked(rank: int) -> list[str]:
    """A fork's exit and close() must not speak for its parent."""
    with opened(rank, ("a", "b", "c", "d")) as bc:
        dist.barrier()
        if rank in (0, 1):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                child = os.fork()
            if child == 0:
                code = 1
                try:
                    bc.close()
                    if bc.is_src:
                        bc.send("from a fork")
                except shmcast.Forked:
                    code = 0
                finally:
                    os._exit(code if bc.is_src else 0)
            assert os.waitpid(child, 0)[1] == 0
        dist.barrier()
        return [bc.broadcast_object(k if bc.is_src else None, SECONDS) for k in "abc"]


def test_a_fork_neither_sends_nor_closes_for_its_parent(world: Crew) -> None:
    assert world.run(4, forked) == [["a", "b", "c"]] * 4

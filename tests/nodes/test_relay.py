"""The relay between nodes, over ranks of one host that take themselves for several."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import shmcast
from shmcast._nodes import control as _control
from shmcast._nodes import gloo_group
from shmcast._nodes import leader as _relay_leader
from shmcast._nodes import outbox as _window
from shmcast._nodes.node_ring import NoRing
from tests.support import ranks
from tests.support.device_objects import CPU, MAKERS
from tests.support.fake_nodes import SPREADS, TWO, opened, threads
from tests.support.objects import OBJECTS, describe, fingerprint
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until

SECONDS = 30
pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf")


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
    wait_until(lambda: not threads())
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


def descriptors() -> list[str]:
    """Return what this process has open, by kind."""
    kinds = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            kinds.append(str(fd.readlink()).partition(":")[0])
    return sorted(kinds)


def opened_and_closed(rank: int, hosts: tuple[str, ...], rounds: int) -> None:
    first: list[str] = []
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds):
            bc = opened(rank, hosts)
            assert bc.broadcast_object(number if bc.is_src else None, SECONDS) == number
            dist.barrier()
            bc.close()
            del bc
            wait_until(lambda: not threads())
            first = first or descriptors()

        def is_all_closed() -> bool:
            gloo_group.collect_finished()  # (a last broadcast may end after its group was closed)
            return len(descriptors()) <= len(first)

        wait_until(is_all_closed, lambda: f"{Counter(descriptors()) - Counter(first)} are left")
    finally:
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


def beside_a_busy_rank(rank: int, hosts: tuple[str, ...], spill_bytes: int) -> list[Any]:
    """Receive what is larger than a ring; rank 3 begins when all others have received it."""
    with opened(rank, hosts, spill_bytes=spill_bytes) as bc:
        if rank == 3:
            dist.barrier()
        sent: list[Any] = [bytes([k]) * (16 << 20) for k in range(2)]
        got = [bc.broadcast_object(each if bc.is_src else None, SECONDS) for each in [*sent, 3]]
        if rank != 3:
            dist.barrier()
        return [got == [*sent, 3], bc.statistics().spilled]


@pytest.mark.parametrize("hosts", ["aaaa", "abbb"])
def test_no_large_message_waits_for_a_busy_rank(world: Crew, hosts: str) -> None:
    source, *others = world.run(4, beside_a_busy_rank, tuple(hosts), 1 << 30)
    assert source == [True, 2 if hosts == "aaaa" else 0]  # elsewhere, the leader's relay spills
    assert others == [[True, 0]] * 3


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
    """Leave rank 1 out: in gloo's tree 0 sends to it, and it would send to 3."""
    with opened(rank, TWO, device_types=CPU) as bc:
        error = ""
        if rank != 1:
            try:
                bc.broadcast_object([torch.ones(10)] if bc.is_src else None, timeout=1)
            except shmcast.DeviceTimeout as caught:
                error = str(caught)
        (folder / str(rank)).touch()  # (gloo's own group is of no use any more)
        wait_until(lambda: len([*folder.iterdir()]) == 4)
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
    """Send until nothing goes any more; then the others begin to receive."""
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
    assert error.startswith("rank 0 of 4: ")
    assert "send timed out after 0.3 s" in error
    assert "node 1 (b) (leader rank 1 of ranks 1, 2, 3) has taken" in error
    for rank, (_, error, got) in enumerate(others, 1):
        assert got == [*range(sent)]
        assert f"rank {rank} " in error
        assert "nothing came from rank 0 on node 0 (a), through rank 1 on node 1 (b)" in error


def strangers(rank: int) -> str:
    """Connect as somebody who knows no secret while the leaders do."""
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
    """Close and exit in a fork, which must not speak for its parent."""
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

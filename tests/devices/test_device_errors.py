"""Ranks that fail, die or stay away are named, and the others go on or know why not."""

from __future__ import annotations

import os
import signal
from datetime import timedelta
from typing import Any, cast
from unittest import mock

import pytest
import torch
import torch.distributed as dist

import shmcast
from shmcast import PickleCodec, ShmBroadcaster
from shmcast._codecs.base import Received
from shmcast._devices.collectives import DeviceBroadcast
from shmcast._endpoints.frame_reader import FrameReader
from tests.support import ranks
from tests.support.device_objects import CPU, LARGE, SECONDS
from tests.support.objects import describe, tensor
from tests.support.processes import Crew

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


class FailsOnRank2:
    def __reduce__(self) -> Any:
        return fail_on_rank_2, ()


def consume(bc: ShmBroadcaster) -> list[Received]:
    """Receive the frames of a message, and not its device tensors."""
    return cast("FrameReader", bc._end).consume(SECONDS)


def fail_on_rank_2() -> str:
    if dist.get_rank() == 2:
        raise ValueError("not here")
    return "fine"


def undecodable(rank: int) -> None:
    with ShmBroadcaster(device_types=CPU) as bc:
        for k in range(5):
            sent = {"k": k, "t": tensor(), "large": tensor(shape=LARGE), "f": FailsOnRank2()}
            if rank == 2:
                with pytest.raises(shmcast.DecodeError, match="ValueError: not here") as caught:
                    bc.broadcast_tensor_dict(out=sent if k % 2 else None, timeout=SECONDS)
                assert isinstance(caught.value.__cause__, ValueError)
            else:
                got = bc.broadcast_tensor_dict(sent if bc.is_src else None, timeout=SECONDS)
                assert describe(got["large"]) == describe(sent["large"])
            assert bc.broadcast_object(k, SECONDS) == k


def test_a_rank_that_cannot_decode_takes_part_and_the_others_do_not_notice(world: Crew) -> None:
    world.run(4, undecodable)


def one_does_not_take_part(rank: int, members: list[int], missing: int) -> str:
    # Groups of their own, which end their collectives before long: one is left in the middle.
    group, device_group = dist.new_group(members), dist.new_group(members, timedelta(seconds=5))
    error = ""
    if rank in members:
        with ShmBroadcaster(group, device_group=device_group, device_types=CPU) as bc:
            sent = {"t": [tensor(torch.int16), tensor(shape=LARGE)]}
            try:
                if rank == missing:
                    consume(bc)  # the message, and then it goes astray
                else:
                    bc.broadcast_tensor_dict(sent if bc.is_src else None, timeout=1)
            except shmcast.DeviceError as caught:
                error = f"{type(caught).__name__} {caught}"
            dist.barrier(group)
            if bc.is_src and error:
                with pytest.raises(shmcast.DeviceError, match=r"no more device tensors.*rank"):
                    bc.broadcast_tensor_dict(sent)
            assert bc.broadcast_object({"still": "works"}, SECONDS) == {"still": "works"}
    dist.barrier()
    return error


def test_a_rank_that_does_not_take_part_is_named_with_the_tensor(world: Crew) -> None:
    error = world.run(4, one_does_not_take_part, [0, 1], 1)[0]
    assert error.startswith("DeviceTimeout rank 0 of 2")
    assert (
        "device tensor 0 of 2, int16 of shape (2, 4, 3, 5), was not delivered within 1 s" in error
    )
    assert "rank 1 did not take part" in error


def test_among_four_ranks_whoever_is_held_up_names_the_one(world: Crew) -> None:
    errors = [e for e in world.run(4, one_does_not_take_part, [0, 1, 2, 3], 2) if e]
    assert errors
    assert all("rank 2 did not take part" in error for error in errors)


def the_source_does_not_take_part(rank: int) -> str:
    device_group = dist.new_group([0, 1], timedelta(seconds=5))
    pair = dist.new_group([0, 1])
    error = ""
    if rank < 2:
        with ShmBroadcaster(pair, device_group=device_group, device_types=CPU) as bc:
            if bc.is_src:
                with (
                    mock.patch.object(
                        DeviceBroadcast, "__init__", side_effect=RuntimeError("no memory")
                    ),
                    pytest.raises(shmcast.DeviceError, match="no memory; the other ranks will"),
                ):
                    bc.send({"t": tensor()})
            else:
                with pytest.raises(shmcast.DeviceTimeout) as caught:
                    bc.recv(1)
                error = str(caught.value)
            dist.barrier(pair)
    dist.barrier()
    return error


def test_a_source_that_raises_between_message_and_tensors_is_named(world: Crew) -> None:
    error = world.run(4, the_source_does_not_take_part)[1]
    assert "rank 0 did not take part" in error
    assert "float32 of shape (2, 4, 3, 5)" in error


def out_of_step(rank: int) -> None:
    device_group = dist.new_group([0, 1], timedelta(seconds=5))
    pair = dist.new_group([0, 1])
    if rank < 2:
        with ShmBroadcaster(pair, device_group=device_group, device_types=CPU) as bc:
            if bc.is_src:
                for _ in range(2):
                    bc.broadcast_tensor_dict({"t": tensor()}, async_op=True, timeout=SECONDS)
            else:
                consume(bc)
                with pytest.raises(shmcast.DeviceError, match=r"missed one: .* comes number 2"):
                    bc.recv(SECONDS)
            dist.barrier(pair)
    dist.barrier()


def test_a_rank_that_missed_tensors_never_takes_others_for_them(world: Crew) -> None:
    world.run(4, out_of_step)


def killed_between(rank: int, store: str) -> str:
    ranks.join(rank, 2, store)
    with ShmBroadcaster(device_types=CPU) as bc:
        if rank == 1:
            consume(bc)
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(shmcast.PeerDied) as caught:
            bc.broadcast_tensor_dict({"t": tensor()}, timeout=SECONDS)
        return str(caught.value)


def test_a_rank_that_is_killed_is_named(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    source, _ = crew.start(2, killed_between, store)
    assert "rank 1 (pid" in source.result()


def wait_until_alarm(work: shmcast.Work) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    work.wait()


def interrupted(rank: int) -> None:
    pair, device_group = dist.new_group([0, 1]), dist.new_group([0, 1])
    if rank < 2:
        with ShmBroadcaster(pair, device_group=device_group, device_types=CPU) as bc:
            sent = {"t": tensor()}
            if bc.is_src:
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                work = bc.broadcast_tensor_dict(sent, async_op=True, timeout=SECONDS)
                with pytest.raises(KeyboardInterrupt):
                    wait_until_alarm(work)
                dist.barrier(pair)
                assert work.wait() is sent
            else:
                message = consume(bc)
                dist.barrier(pair)
                assert bc._lane is not None
                assert describe(bc._lane.receive(message, None, SECONDS).wait()) == describe(sent)
    dist.barrier()


def test_ctrl_c_ends_the_wait_and_the_work_can_be_waited_for_again(world: Crew) -> None:
    world.run(4, interrupted)


def bad_set_ups(rank: int) -> list[str]:
    half, reverse = dist.new_group([0, 1]), dist.new_group()
    cases: list[dict[str, Any]] = [
        {"device_group": half},
        {"device_group": reverse, "device_types": {"cpu", "xpu"}},
        {"device_types": "cpu"},
        {"device_types": CPU if rank else None},
        {"device_types": CPU, "codec": UserCodec()},
    ]
    errors = []
    for case in cases:
        with pytest.raises(shmcast.InvalidArgument) as caught:
            ShmBroadcaster(**case)
        errors.append(str(caught.value))
    with pytest.raises(shmcast.ShmcastError) as told:
        ShmBroadcaster(device_types="cpu" if rank == 3 else CPU)
    return [*errors, str(told.value)]


class UserCodec(PickleCodec):
    pass


def test_what_does_not_fit_together_is_told_on_every_rank(world: Crew) -> None:
    for errors in world.run(4, bad_set_ups):
        other_ranks, backend, text, differ, codec, one = errors
        assert "[0, 1]" in other_ranks or "not a member" in other_ranks
        assert "no backend for device_types ['xpu']" in backend
        assert "device_types='cpu' is no set of names" in text
        assert "rank 0: Terms(device_types=None" in differ
        assert "rank 1: Terms(device_types=('cpu',)" in differ
        assert "does not know device tensors" in codec
        assert "device_types='cpu' is no set of names" in one

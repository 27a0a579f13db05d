"""`MsgspecCodec` between processes: in rings, arenas, loans and groups."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

import shmcast
from shmcast import MsgspecCodec, Reader, ShmBroadcaster, Writer
from tests.support import fake_nodes
from tests.support.processes import Crew
from tests.support.typed_roles import (
    MIB,
    SECONDS,
    Array,
    Step,
    parts,
    receive_steps,
    step,
)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("readers", [1, 8])
def test_every_reader_gets_every_message(crew: Crew, readers: int, copy: bool) -> None:
    with Writer(readers, codec=MsgspecCodec(Step), arena_bytes=8 * MIB) as writer:
        jobs = crew.start(readers, receive_steps, writer.handle, 20, copy)
        for number in range(20):
            writer.send(step(number, 64, 1024), SECONDS)
            writer.warm()
        assert [job.result() for job in jobs] == [20] * readers
        assert writer.statistics().arena_frames == 20


class Batch(msgspec.Struct):
    mask: Array | None = None
    pixels: torch.Tensor | None = None


def test_views_are_of_the_writers_arena_and_nobody_elses_to_change() -> None:
    sent = Batch(np.full(MIB, 1, np.uint8), torch.ones(2, MIB // 4)[:, ::2].T)
    codec = MsgspecCodec(Batch)
    with (
        Writer(1, codec=codec, arena_bytes=8 * MIB) as writer,
        Reader(writer.handle, 0, codec=codec) as reader,
    ):
        for _ in range(20):  # more than the arena holds: views that are gone make room
            writer.send(sent)
            got = reader.recv(SECONDS, copy=False)
            assert not got.mask.flags.writeable
            assert np.array_equal(got.mask, sent.mask)  # type: ignore[arg-type]
            got.pixels[0] = 5  # a page of its own
            assert torch.equal(got.pixels[1:], sent.pixels[1:])  # type: ignore[index]
        assert writer.statistics().arena_frames == 40
        assert writer.statistics().arena_full == 0


def test_loans_are_sent_without_a_copy_and_frozen_until_every_reader_is_done() -> None:
    codec = MsgspecCodec(Batch)
    with (
        Writer(1, codec=codec, arena_bytes=8 * MIB) as writer,
        Reader(writer.handle, 0, codec=codec) as reader,
    ):
        sent = Batch(writer.empty(MIB, np.uint8)[::2], writer.empty_tensor((2, MIB // 4)).T)
        assert sent.mask is not None
        assert sent.pixels is not None
        sent.mask[:] = 3
        sent.pixels.fill_(4)
        writer.send(sent)
        assert writer.statistics().fragments == 1  # nothing was streamed
        assert not sent.mask.flags.writeable
        got = reader.recv(SECONDS, copy=False)
        assert (got.mask == 3).all()
        assert got.mask.strides == (2,)
        assert torch.equal(got.pixels, sent.pixels)
        assert (writer.thaw(sent.mask), writer.thaw(sent.pixels)) == (False, False)
        del got
        assert (writer.thaw(sent.mask), writer.thaw(sent.pixels)) == (True, True)
        assert sent.mask.flags.writeable


HOSTS = {"one node": "aaaa", "two nodes": "aabb"}


def broadcast_steps(rank: int, hosts: str) -> list[Any]:
    with (
        fake_nodes.on_host(hosts[rank]),
        ShmBroadcaster(src=1, codec=MsgspecCodec(Step | dict[str, Any])) as bc,
    ):
        if bc.is_src:
            with pytest.raises(shmcast.EncodeError, match=r"\$\['pixels'\] = .* on meta"):
                bc.broadcast_object({"pixels": torch.ones(3, device="meta")})
        got = [bc.broadcast_object(step(i) if bc.is_src else None, SECONDS) for i in range(5)]
        mask, pixels = np.arange(MIB), torch.ones(MIB, dtype=torch.bfloat16)
        sent = {"mask": mask, "pixels": pixels} if bc.is_src else None
        arrays = bc.broadcast_tensor_dict(sent, SECONDS)
        assert np.array_equal(arrays["mask"], mask)
        assert torch.equal(arrays["pixels"], pixels)
        assert bc.statistics().messages == 6
        return [parts(one) for one in got]


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
def test_every_rank_gets_the_sources_messages(world: Crew, hosts: str) -> None:
    assert world.run(4, broadcast_steps, hosts) == [[parts(step(i)) for i in range(5)]] * 4


def device_tensors_with_types(_rank: int) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="only ObjectCodec and PickleCodec do"):
        ShmBroadcaster(codec=MsgspecCodec(Batch), device_types={"cpu"})


def test_a_device_group_is_refused(world: Crew) -> None:
    world.run(4, device_tensors_with_types)

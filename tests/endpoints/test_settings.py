"""What an operator sets in the environment comes before what the program chose."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch.distributed as dist

import shmcast
from shmcast import MsgspecCodec, Reader, ShmBroadcaster, Writer
from tests.support.processes import Crew

WRONG = [
    ("SHMCAST_WARN_AFTER", "soon"),
    ("SHMCAST_WARN_AFTER", "-1"),
    ("SHMCAST_SLOTS", "many"),
    ("SHMCAST_SLOTS", "3"),
    ("SHMCAST_SLOT_BYTES", "1.5"),
    ("SHMCAST_ARENA_BYTES", "1 GB"),
    ("SHMCAST_SPILL_BYTES", "none"),
    ("SHMCAST_CODEC", "json"),
    ("SHMCAST_CODEC", "no.such.module:Codec"),
]

numbers = MsgspecCodec(list[int])


def test_the_operators_settings_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHMCAST_SLOTS", "8")
    monkeypatch.setenv("SHMCAST_SLOT_BYTES", "1024")
    monkeypatch.setenv("SHMCAST_ARENA_BYTES", "1048576")
    monkeypatch.setenv("SHMCAST_SPILL_BYTES", "8192")
    monkeypatch.setenv("SHMCAST_CODEC", f"{__name__}:numbers")
    with Writer(1, slots=2) as writer, Reader(writer.handle, 0) as reader:
        assert (writer.handle.slots, writer.handle.slot_bytes) == (8, 1024)
        assert writer.handle.arena is not None
        assert writer.handle.spill_bytes == 8192
        writer.send([1])
        assert reader.recv() == [1]
        writer.send("no number")
        with pytest.raises(shmcast.DecodeError):
            reader.recv()


@pytest.mark.parametrize(
    ("name", "value"),
    [("SHMCAST_CODEC", "pickle"), ("SHMCAST_CODEC", "object"), ("SHMCAST_WARN_AFTER", "none")],
)
def test_a_setting_can_lead_back_to_the_default(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with (
        Writer(1, codec=numbers, warn_after=0) as writer,
        Reader(writer.handle, 0, codec=numbers) as reader,
    ):
        writer.send([1])
        assert reader.recv() == [1]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_setting_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(shmcast.InvalidArgument, match=value if value == "3" else name):
        Writer(1)


def set_for_all(rank: int, settings: dict[str, str]) -> list[Any]:
    os.environ |= settings
    try:
        with ShmBroadcaster(slots=2) as bc:
            assert bc.handle is not None
            shape = (bc.handle.slots, bc.handle.slot_bytes)
            got = bc.broadcast_object([7] if bc.is_src else None, 30)
            if bc.is_src:
                dist.barrier()
                return [shape, got]
            with pytest.raises(shmcast.Timeout, match=r"timed out after 0\.01 s"):
                bc.broadcast_object()
            with pytest.raises(shmcast.Timeout, match=r"timed out after 0\.01 s"):
                bc.broadcast_tensor_dict(async_op=True)
            dist.barrier()
            return [shape, got]
    finally:
        for name in settings:
            del os.environ[name]


def test_a_groups_settings_count_on_every_rank(world: Crew) -> None:
    settings = {"SHMCAST_SLOTS": "8", "SHMCAST_TIMEOUT": "0.01", "SHMCAST_SETUP_TIMEOUT": "40"}
    *others, last = world.run(4, set_for_all, settings)
    assert [*others, last] == [[(8, 16384), [7]]] * 4


def wrong_on_one_rank(rank: int) -> str:
    name = ["SHMCAST_SLOTS", "SHMCAST_SETUP_TIMEOUT"][rank % 2]
    if rank in (1, 2):
        os.environ[name] = "x"
    try:
        with pytest.raises(shmcast.ShmcastError) as caught:
            ShmBroadcaster()
    finally:
        os.environ.pop(name, None)
    return str(caught.value)


def test_a_groups_setting_that_is_wrong_on_one_rank_is_told_on_all(world: Crew) -> None:
    for rank, error in enumerate(world.run(4, wrong_on_one_rank)):
        assert "SHMCAST_SLOTS=" in error or rank == 1
        assert "SHMCAST_SETUP_TIMEOUT=" in error or rank == 2

"""`copy` of a call may say that arrays are copied and tensors are not, or the other way round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import Codec, Hub, Member, MsgspecCodec, ObjectCodec, PickleCodec, Reader, Writer
from tests.support.arena_roles import MIB, SECONDS

COUNT = 100_000
CODECS: list[Callable[[], Codec]] = [ObjectCodec, PickleCodec, lambda: MsgspecCodec(dict)]
WHAT_IS_COPIED = [
    (True, {"array", "strided", "tensor", "gaps"}),
    (False, set()),
    ("arrays", {"array", "strided"}),
    ("tensors", {"tensor", "gaps"}),
]


def sent_by(writer: Writer) -> dict[str, Any]:
    """Send arrays and tensors in the writer's own memory; return them."""
    array = writer.empty(COUNT)
    array[:] = np.arange(COUNT)
    rows = writer.empty((COUNT, 4))
    rows[:] = np.arange(4 * COUNT).reshape(COUNT, 4)
    tensor = writer.empty_tensor(COUNT)
    tensor[:] = torch.arange(COUNT)
    table = writer.empty_tensor((COUNT, 4))
    table[:] = torch.arange(4 * COUNT).reshape(COUNT, 4)
    parts = {"array": array, "strided": rows[:, :3], "tensor": tensor, "gaps": table[:, 1:]}
    writer.send(parts)
    return {"array": array, "strided": rows, "tensor": tensor, "gaps": table}


def check(writer: Writer, got: dict[str, Any], loans: dict[str, Any], copied: set[str]) -> None:
    """Check what was received, and of what of it the writer's memory is given back."""
    assert (got["array"] == np.arange(COUNT)).all()
    assert (got["strided"] == np.arange(4 * COUNT).reshape(COUNT, 4)[:, :3]).all()
    assert (got["tensor"] == torch.arange(COUNT)).all()
    assert (got["gaps"] == torch.arange(4 * COUNT).reshape(COUNT, 4)[:, 1:]).all()
    assert {name for name, loan in loans.items() if writer.thaw(loan)} == copied
    for name in copied:
        got[name][0] = 1  # it can be written to


@pytest.mark.parametrize("codec", CODECS, ids=["object", "pickle", "msgspec"])
@pytest.mark.parametrize(("copy", "copied"), WHAT_IS_COPIED)
@pytest.mark.parametrize("is_awaited", [False, True])
def test_only_what_is_to_be_copied_is(
    codec: Callable[[], Codec], copy: Any, copied: set[str], is_awaited: bool
) -> None:
    with (
        Writer(1, arena_bytes=64 * MIB, codec=codec()) as writer,
        Reader(writer.handle, 0, codec=codec()) as reader,
    ):
        loans = sent_by(writer)
        if is_awaited:
            got = asyncio.run(reader.recv_async(SECONDS, copy))
        else:
            got = reader.recv(SECONDS, copy)
        check(writer, got, loans, copied)


@pytest.mark.parametrize(("copy", "copied"), WHAT_IS_COPIED)
def test_members_may_say_so_as_well(copy: Any, copied: set[str]) -> None:
    with Hub(1, arena_bytes=64 * MIB) as hub, Member(hub.handle, 0) as member:
        loans = sent_by(hub)
        check(hub, member.recv(SECONDS, copy), loans, copied)
        for receive in (hub.recv_any, hub.recv_all):
            hub.send("next")
            member.reply(member.recv(SECONDS, copy))
            assert receive(SECONDS, copy) in ((0, "next"), ["next"])
        member.reply("last")
        assert hub.recv(0, SECONDS, copy) == "last"


@pytest.mark.parametrize("copy", ["array", "", None, 1, np.False_])
def test_what_can_t_be_meant_is_refused_and_nothing_is_lost(copy: Any) -> None:
    with Hub(1) as hub, Member(hub.handle, 0) as member:
        hub.send("here")
        for call in (
            lambda: member.recv(SECONDS, copy),
            lambda: asyncio.run(member.recv_async(SECONDS, copy)),
            lambda: hub.recv(0, SECONDS, copy),
            lambda: hub.recv_any(SECONDS, copy),
            lambda: hub.recv_all(SECONDS, copy),
            lambda: asyncio.run(hub.recv_async(0, SECONDS, copy)),
        ):
            with pytest.raises(shmcast.InvalidArgument, match="copy="):
                call()
        assert member.recv(SECONDS) == "here"


def test_a_time_out_is_one() -> None:
    with Writer(1) as writer, Reader(writer.handle, 0) as reader:
        with pytest.raises(shmcast.Timeout):
            reader.recv(0, "arrays")
        writer.send("here")
        assert reader.recv(0, "tensors") == "here"

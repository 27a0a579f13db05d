"""`PickleCodec(allow=...)`, and what is told when the ends' codecs are not alike."""

from __future__ import annotations

import collections
import datetime
import fractions
import os
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import shmcast
from shmcast import MsgspecCodec, ObjectCodec, PickleCodec, Reader, ShmBroadcaster, Writer
from shmcast._codecs.base import Received
from tests.support.device_objects import CPU, SECONDS
from tests.support.processes import Crew


@dataclass
class Step:
    ids: list[int]
    table: Any = None


def made(value: int) -> int:
    return value


class Outer:
    class Inner:
        def __eq__(self, other: object) -> bool:
            return type(other) is type(self)

        __hash__ = None  # type: ignore[assignment]


class Made:
    def __reduce__(self) -> tuple[Any, ...]:
        return made, (5,)


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def transfer(obj: Any, codec: PickleCodec) -> Any:
    frames: list[Received] = [bytearray(frame) for frame in PickleCodec().encode(obj)]
    return codec.decode(frames)


PLAIN = {
    "step": 1,
    "values": [b"x" * 100_000, bytearray(b"y" * 100_000), 1j, {2}, frozenset([3]), range(4)],
    "when": datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.timezone.utc),
    "deque": collections.deque([1], 2),
    "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, a=[1]),
}


def test_plain_values_arrays_and_tensors_are_always_allowed() -> None:
    codec = PickleCodec(allow=[])
    assert transfer(PLAIN, codec) == PLAIN
    tagged = torch.ones(3, dtype=torch.bfloat16)
    tagged.tag = "kept"  # type: ignore[attr-defined]
    tensors = [torch.arange(5000), tagged, torch.nn.Parameter(torch.ones(2)), torch.float8_e4m3fn,
               torch.Size([2]), torch.device("cpu"), torch.ones(3, 3)[:, 1]]  # fmt: skip
    assert repr(transfer(tensors, codec)) == repr(tensors)
    arrays = [np.arange(5000), np.array([None, {"a": 1}]), np.float32(1.5), np.dtype("i4, f8"),
              np.ones(3, "i4, f8"), np.frombuffer(b"abc", "u1"),
              np.broadcast_to(np.ones(2), (3, 2)),
              np.zeros(2, "M8[s]"), np.zeros(2, "S0")]  # fmt: skip
    assert repr(transfer(arrays, codec)) == repr(arrays)


@pytest.mark.parametrize(
    "allow",
    [
        [Step, made, Outer.Inner],
        {f"{__name__}.{name}" for name in ("Step", "made", "Outer.Inner")},
        (f"{__name__}.*",),
        ["tests.*"],
    ],
)
def test_what_is_named_may_arrive(allow: Any) -> None:
    codec = PickleCodec(allow=allow)
    sent = [Step([1]), Step, Made(), Outer.Inner()]
    assert transfer(sent, codec) == [Step([1]), Step, 5, Outer.Inner()]
    for bad in (Attack(), fractions.Fraction(1, 2), Step([1], Attack())):
        with pytest.raises(pickle.UnpicklingError, match=r"the message names .*allow=\[\.\.\., "):
            transfer(bad, codec)


def test_a_package_is_what_it_defines_and_not_what_it_imports() -> None:
    attack = b"\x80\x05c" + __name__.encode() + b"\nos.getcwd\n)R."
    assert pickle.loads(attack) == os.getcwd()  # noqa: PTH109, S301
    for allow in (["tests.*"], [Step]):
        with pytest.raises(pickle.UnpicklingError, match=r"names .*os\.getcwd"):
            PickleCodec(allow=allow).decode([bytearray(attack)])


def test_no_array_of_pointers_is_made_of_bytes() -> None:
    for name, args in (
        ("_rebuild_array", (bytearray(16), "O", (2,), "C")),
        ("_rebuild_strided", (bytearray(16), np.dtype("O"), (2,), (8,), 0)),
        ("_rebuild_subclass", (np.ndarray, bytearray(16), "O", (2,), "C")),
    ):
        pickled = pickle.dumps(args, 5)[2:-1]
        attack = b"\x80\x05cshmcast._codecs.arrays\n" + name.encode() + b"\n" + pickled + b"R."
        with pytest.raises(pickle.UnpicklingError, match="an array of object can't be made"):
            PickleCodec(allow=[]).decode([bytearray(attack)])


@pytest.mark.parametrize("codec", [PickleCodec, ObjectCodec])
@pytest.mark.parametrize("allow", ["tests.*", 5, [5], ["Step"], [None]])
def test_what_is_no_allow_list_is_told(allow: Any, codec: Any) -> None:
    with pytest.raises(shmcast.InvalidArgument, match="allow") as caught:
        codec(allow=allow)
    assert "Codec" not in str(caught.value)  # (the list does not know whose it is)


@pytest.mark.parametrize("codec", [PickleCodec, ObjectCodec])
def test_what_is_not_allowed_is_told_without_the_name_of_another_codec(codec: Any) -> None:
    frames = [bytearray(frame) for frame in codec().encode(Step([1]))]
    with pytest.raises(pickle.UnpicklingError, match="give the codec allow=") as caught:
        codec(allow=[]).decode(frames)
    assert "Codec" not in str(caught.value)


def test_an_endpoint_tells_what_is_not_allowed_and_goes_on() -> None:
    with (
        Writer(1) as writer,
        Reader(writer.handle, 0, codec=ObjectCodec(allow=[])) as reader,
    ):
        writer.send(Step([1]))
        with pytest.raises(shmcast.DecodeError, match=r"names tests\.codecs\.test_allow\.Step"):
            reader.recv(SECONDS)
        writer.send([1, np.ones(3000)])
        assert reader.recv(SECONDS)[0] == 1


def allowed_with_device_tensors(_rank: int) -> str:
    with ShmBroadcaster(device_types=CPU, codec=PickleCodec(allow=[])) as bc:
        error = ""
        for obj in ([torch.ones(3)], [torch.ones(3), Step([1])], {"a": torch.ones(3)}):
            if bc.is_src:
                bc.broadcast_object(obj, SECONDS)
                continue
            try:
                bc.broadcast_object(None, SECONDS)
            except shmcast.DecodeError as caught:
                error = str(caught)
        out = {"a": torch.zeros(2)}
        got = bc.broadcast_tensor_dict(
            {"a": torch.ones(2)} if bc.is_src else None, out=None if bc.is_src else out
        )
        assert got["a"].tolist() == [1, 1]
    return error


def test_the_list_is_for_messages_with_device_tensors_too(world: Crew) -> None:
    for error in world.run(4, allowed_with_device_tensors)[1:]:
        assert "names tests.codecs.test_allow.Step" in error


# Codecs that are not alike, and no codecs


@pytest.mark.parametrize("codec", [PickleCodec, MsgspecCodec, dict])
def test_a_class_in_a_codecs_place_is_told(codec: Any) -> None:
    told = rf"codec=<class .*{codec.__name__}'> is a class; pass an object of it"
    with pytest.raises(shmcast.InvalidArgument, match=told):
        Writer(1, codec=codec)
    with Writer(1) as writer, pytest.raises(shmcast.InvalidArgument, match=told):
        Reader(writer.handle, 0, codec=codec)


def test_a_message_of_another_codec_is_told() -> None:
    manifest: list[Received] = [bytearray(b"\0rest"), bytearray(b"pickle")]
    with pytest.raises(pickle.UnpicklingError, match="the message has device tensors, which only"):
        PickleCodec().decode(manifest)
    typed: list[Received] = [bytearray(b"\x93\x01\x02\x03")]
    with pytest.raises(pickle.UnpicklingError, match=r"the message is no pickle.*another codec"):
        PickleCodec().decode(typed)
    with pytest.raises(pickle.UnpicklingError, match="the message is no pickle"):
        PickleCodec().decode([bytearray()])
    msgspec = pytest.importorskip("msgspec")
    codec = MsgspecCodec(list[int])
    pickled: list[Received] = [bytearray(frame) for frame in PickleCodec().encode([1, 2])]
    for frames in (pickled, manifest):
        with pytest.raises(msgspec.DecodeError, match="looks like one of PickleCodec"):
            codec.decode(frames)
    with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
        codec.decode([bytearray(b"\x91\xa1a")])

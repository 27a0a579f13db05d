"""Messages with types, and what the processes of test_msgspec.py do with them. Without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from shmcast import Handle, MsgspecCodec, Reader
from shmcast._codecs.base import Received

SECONDS = 30.0


class Request(msgspec.Struct, array_like=True, gc=False):
    name: str
    new_block_ids: list[int]
    computed: int = 0


class Step(msgspec.Struct, array_like=True, gc=False):
    number: int
    cached: list[Request] = []
    finished: set[str] = set()
    spec: dict[str, list[int]] = {}
    bitmask: npt.NDArray[np.int32] | None = None


def step(number: int, requests: int = 128, words: int = 64) -> Step:
    """Make a step, the same in every process."""
    names = [f"chatcmpl-{number + i:08x}" for i in range(requests)]
    return Step(
        number,
        [Request(name, [number, i], 16 * i) for i, name in enumerate(names)],
        set(names[::7]),
        {name: [1, 2, 3] for name in names},
        np.full((requests, words), number, np.int32),
    )


def parts(of: Step) -> list[Any]:
    """Return all that a step is made of, to be compared."""
    assert of.bitmask is not None
    return [*msgspec.structs.astuple(of)[:-1], of.bitmask.dtype, of.bitmask.tolist()]


def receive_steps(index: int, handle: Handle, count: int, copy: bool) -> int:
    """Return how many steps were as they were sent, with arrays owned or views as asked."""
    right = 0
    with Reader(handle, index, codec=MsgspecCodec(Step)) as reader:
        for number in range(count):
            got = reader.recv(SECONDS, copy)
            assert got.bitmask.flags.writeable == copy
            right += parts(got) == parts(step(number, 64, 1024))
    return right


Array = npt.NDArray[Any]
MIB = 1 << 20


def transfer(obj: Any, message_type: Any) -> tuple[Any, list[int]]:
    """Return what arrives, in memory of the receiver's own, and the frames' sizes."""
    frames: list[Received] = [bytearray(frame) for frame in MsgspecCodec(message_type).encode(obj)]
    sizes = [len(frame) for frame in frames]
    return MsgspecCodec(message_type).decode(frames), sizes


@dataclass
class Plain:
    ids: list[int]
    scale: float = 1.0


class Opaque:
    pass

"""Why a broadcaster of several nodes has ended, as data: for other nodes, and for a ring's readers.

A leader that gives up leaves its reason in `FailurePage`, one page of shared memory, and closes its
ring: the readers receive what is in the ring, find it closed, and look there.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shmcast._host import shared_memory
from shmcast.errors import Closed, NodeLost, PeerDied, ShmcastError

_PAGE = 4096
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Failure:
    """An error without the name of who raises it."""

    kind: str
    """"PeerDied", "NodeLost" or "Closed"."""
    text: str
    peer: str = ""
    pid: int = 0
    how: str = ""
    node: int = -1

    def error(self, label: str) -> ShmcastError:
        """Make the error that `label` raises."""
        text = f"{label}: {self.text}"
        match self.kind:
            case "PeerDied":
                return PeerDied(text, self.peer, self.pid, self.how)
            case "NodeLost":
                return NodeLost(text, self.node)
        return Closed(text)

    def frames(self) -> list[memoryview]:
        """Return it as the frames of the source's last message; `of_frames` is the way back."""
        return [] if self == CLOSED else [memoryview(json.dumps(self.plain()).encode())]

    @classmethod
    def of_frames(cls, frames: Sequence[memoryview]) -> Failure:
        """Return what `frames` has packed."""
        return cls(**json.loads(bytes(frames[0]))) if frames else CLOSED

    @classmethod
    def of(cls, error: ShmcastError, label: str) -> Failure:
        """Take what an error says that `label` has raised."""
        text = str(error).removeprefix(f"{label}: ")
        if isinstance(error, PeerDied):
            return cls("PeerDied", text, error.peer, error.pid, error.how)
        if isinstance(error, NodeLost):
            return cls("NodeLost", text, node=error.node)
        return cls("Closed", text)

    def plain(self) -> dict[str, Any]:
        """Return it as a dict for JSON; `Failure(**plain)` is the way back."""
        return asdict(self)


CLOSED = Failure("Closed", "the source has closed")
"""The source's end in order."""


class FailurePage:
    """A page that holds one failure, or none yet.

    Args:
        name: None to make it, else the name of one to attach.

    Raises:
        SharedMemoryFull: there is no room to make it.
        SegmentNotFound: it can't be attached.
    """

    def __init__(self, name: str | None = None) -> None:
        self._memory: shared_memory.Memory
        self._is_mine = name is None
        if name is None:
            name, self._memory, fd = shared_memory.create(_PAGE)
            os.close(fd)
        else:
            self._memory = shared_memory.attach(name, _PAGE)
        self.name: str = name

    def write(self, failure: Failure) -> None:
        """Write a failure, before the ring is closed. The first one stands."""
        if self.read() is not None:
            return
        text = failure.text[: _PAGE // 4]  # four bytes a character, at most
        line = json.dumps(
            failure.plain() | {"text": text, "peer": failure.peer[:200], "how": failure.how[:200]},
            ensure_ascii=False,
        ).encode()
        self._memory[_LENGTH.size : _LENGTH.size + len(line)] = line
        self._memory[: _LENGTH.size] = _LENGTH.pack(len(line))

    def read(self) -> Failure | None:
        """Return the failure; None: there is none."""
        (length,) = _LENGTH.unpack(self._memory[: _LENGTH.size])
        if not 0 < length <= _PAGE - _LENGTH.size:
            return None
        return Failure(**json.loads(self._memory[_LENGTH.size : _LENGTH.size + length]))

    def unlink(self) -> None:
        """Remove the name once all have attached; only its maker does."""
        if self._is_mine:
            shared_memory.unlink(self.name)

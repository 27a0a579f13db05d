"""Why a broadcaster of several nodes has ended, as data: for other nodes, and for a ring's readers.

A leader that gives up leaves its reason in `LastWords`, one page of shared memory, and closes its
ring: the readers receive what is in the ring, find it closed, and look there.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import asdict, dataclass
from typing import Any

from shmcast._host import shared_memory as segment
from shmcast.errors import Closed, NodeLost, PeerDied, ShmcastError

_PAGE = 4096
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Verdict:
    """An error without the name of who raises it."""

    kind: str
    """"PeerDied", "NodeLost" or "Closed"."""
    text: str
    peer: str = ""
    pid: int = 0
    how: str = ""
    node: int = -1

    def error(self, label: str) -> ShmcastError:
        """The error, as `label` raises it."""
        text = f"{label}: {self.text}"
        match self.kind:
            case "PeerDied":
                return PeerDied(text, self.peer, self.pid, self.how)
            case "NodeLost":
                return NodeLost(text, self.node)
        return Closed(text)

    @classmethod
    def of(cls, error: ShmcastError, label: str) -> Verdict:
        """What `error` says, raised by `label`."""
        text = str(error).removeprefix(f"{label}: ")
        if isinstance(error, PeerDied):
            return cls("PeerDied", text, error.peer, error.pid, error.how)
        if isinstance(error, NodeLost):
            return cls("NodeLost", text, node=error.node)
        return cls("Closed", text)

    def plain(self) -> dict[str, Any]:
        """For JSON; `Verdict(**plain)` is the way back."""
        return asdict(self)


class LastWords:
    """A page that holds one verdict, or none yet.

    Args:
        name: None to make it, else the name of one to attach.

    Raises:
        SharedMemoryFull: there is no room to make it.
        SegmentNotFound: it can't be attached.
    """

    def __init__(self, name: str | None = None) -> None:
        self._memory: segment.Memory
        self._is_mine = name is None
        if name is None:
            name, self._memory, fd = segment.create(_PAGE)
            os.close(fd)
        else:
            self._memory = segment.attach(name, _PAGE)
        self.name: str = name

    def write(self, verdict: Verdict) -> None:
        """Before the ring is closed; the first verdict stands."""
        if self.read() is not None:
            return
        text = verdict.text[: _PAGE // 4]  # four bytes a character, at most
        words = json.dumps(
            verdict.plain() | {"text": text, "peer": verdict.peer[:200], "how": verdict.how[:200]},
            ensure_ascii=False,
        ).encode()
        self._memory[_LENGTH.size : _LENGTH.size + len(words)] = words
        self._memory[: _LENGTH.size] = _LENGTH.pack(len(words))

    def read(self) -> Verdict | None:
        """The verdict, if there is one."""
        (length,) = _LENGTH.unpack(self._memory[: _LENGTH.size])
        if not 0 < length <= _PAGE - _LENGTH.size:
            return None
        return Verdict(**json.loads(self._memory[_LENGTH.size : _LENGTH.size + length]))

    def unlink(self) -> None:
        """Removes the name, if it was made here; once all have attached."""
        if self._is_mine:
            segment.unlink(self.name)

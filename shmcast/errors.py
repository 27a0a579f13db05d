"""Everything that shmcast raises, rooted in `ShmcastError`.

Each class also derives from the builtin that a caller would expect (`TimeoutError`, `ValueError`,
...), so that code which does not know shmcast handles its errors sensibly.
"""

from __future__ import annotations

import pickle


class ShmcastError(Exception):
    """Base of all errors raised by shmcast."""


class ShmcastWarning(UserWarning):
    """A warning by shmcast: something works, but not as well as it could."""


class InvalidArgument(ShmcastError, ValueError):
    """An argument has a value that can't work; the message names it and what would."""


class MissingDependency(ShmcastError, ImportError):
    """An optional dependency is not installed; the message says how to."""


class WrongRole(ShmcastError, RuntimeError):
    """`send` on a rank that receives, or `recv` on the rank that sends."""


class Timeout(ShmcastError, TimeoutError):
    """A wait ended at its time-out. A send then reached nobody; a recv lost nothing."""


class Interrupted(ShmcastError, InterruptedError):
    """A call was ended by `interrupt()`. It has sent or taken nothing; call again."""


class NoMessage(ShmcastError, RuntimeError):
    """`reply` on a member that has answered every message it has received."""


class Closed(ShmcastError, RuntimeError):
    """This endpoint was closed, or the other side was and nothing is left to receive."""


class ConcurrentUse(ShmcastError, RuntimeError):
    """Two threads used one endpoint at the same time."""


class Forked(ShmcastError, RuntimeError):
    """An endpoint was used in a process forked from the one that made it."""


class AlreadyAttached(ShmcastError, RuntimeError):
    """A reader's index is taken, or was taken by a reader that has left."""


class PeerDied(ShmcastError, ConnectionError):
    """A process that this endpoint shares its ring with has died, and the wait can't end well.

    Attributes:
        peer: its name, such as "rank 3" or "writer".
        pid: its process; 0 where that is not known, as of a reader that came and was replaced
            between two looks.
        how: "killed by SIGKILL", "exit code 1"; "" where that is not known.
    """

    def __init__(self, message: str, peer: str, pid: int, how: str) -> None:
        super().__init__(message)
        self.peer = peer
        self.pid = pid
        self.how = how

    def __reduce__(self) -> tuple[type[PeerDied], tuple[str, str, int, str]]:
        return type(self), (str(self), self.peer, self.pid, self.how)


class NodeLost(ShmcastError, ConnectionError):
    """A node of the group can't be reached any more: its network is cut, or its host is down.

    Attributes:
        node: its index in `ShmBroadcaster.topology`.
    """

    def __init__(self, message: str, node: int) -> None:
        super().__init__(message)
        self.node = node

    def __reduce__(self) -> tuple[type[NodeLost], tuple[str, int]]:
        return type(self), (str(self), self.node)


class EncodeError(ShmcastError, pickle.PicklingError):
    """The codec could not encode an object; nothing was sent. `__cause__` is the codec's error."""

    @classmethod
    def of(cls, obj: object, error: Exception, label: str, path: str = "") -> EncodeError:
        """Make what `label` raises when its codec has raised `error`, perhaps at a known `path`."""
        where = f"in `{path}`: " if path else ""
        return cls(
            f"{label}: can't encode a {type(obj).__qualname__}: {where}{type(error).__name__}: "
            f"{error}; nothing was sent"
        )


class DecodeError(ShmcastError, pickle.UnpicklingError):
    """The codec could not decode a message. It is consumed: the next `recv` gets the next message.

    `__cause__` is the codec's error.
    """


class DeviceError(ShmcastError, RuntimeError):
    """Device tensors could not be broadcast. Objects without any can still be sent."""


class DeviceTimeout(DeviceError, TimeoutError):
    """A rank has not taken part in a broadcast of device tensors; the message says which one."""


class MessageTooLarge(ShmcastError, ValueError):
    """A message of more than 1 TiB or 8 388 607 frames."""


class HostError(ShmcastError, OSError):
    """The operating system refused something; the message says why, and the way out.

    A limit of this process, a sandbox, a mount that is missing: `errno` is what the kernel said.
    """


class SegmentError(ShmcastError):
    """Base of the errors about the shared-memory segment itself."""


class SharedMemoryFull(SegmentError, OSError):
    """There is no room for the segment; the message says where, and the way out.

    In /dev/shm (`errno` is ENOSPC), under the limit on the size of files (EFBIG), or under the
    memory limit of the cgroup (ENOMEM).
    """


class SegmentNotFound(SegmentError, FileNotFoundError):
    """There is no segment of the handle's name here: another node, or it is gone."""


class SegmentMismatch(SegmentError, ValueError):
    """A segment of the handle's name exists but is not the one that the handle speaks of."""


class SegmentCorrupted(SegmentError, RuntimeError):
    """The segment holds what no endpoint writes: something else wrote to it."""

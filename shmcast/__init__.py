"""shmcast: broadcast Python objects between processes, through shared memory on each node.

`ShmBroadcaster` serves the ranks of a torch.distributed group; `Writer` and `Reader` serve any
processes of one host. Importing this package does not import torch.
"""

from importlib.util import find_spec as _find_spec

if _find_spec("shmcast._core") is None:
    raise ImportError(
        f"shmcast in {__path__[0]} has no C++ core for this Python: if that is a checkout, run "
        "`pip install -e .` in it, or start Python elsewhere to import the installed package",
        name="shmcast._core",
    )

from shmcast.broadcaster import ShmBroadcaster
from shmcast.codec import Codec, PickleCodec
from shmcast.endpoint import Handle, Statistics
from shmcast.errors import (
    AlreadyAttached,
    Closed,
    ConcurrentUse,
    DecodeError,
    DeviceError,
    DeviceTimeout,
    EncodeError,
    Forked,
    InvalidArgument,
    MessageTooLarge,
    MissingDependency,
    NodeLost,
    PeerDied,
    SegmentCorrupted,
    SegmentError,
    SegmentMismatch,
    SegmentNotFound,
    SharedMemoryFull,
    ShmcastError,
    ShmcastWarning,
    Timeout,
    WrongRole,
)
from shmcast.reader import Reader
from shmcast.topology import Node, Topology
from shmcast.typed import MsgspecCodec
from shmcast.waiting import WaitPolicy
from shmcast.work import Work
from shmcast.writer import Writer

__version__ = "0.1.0"

__all__ = [
    "AlreadyAttached",
    "Closed",
    "Codec",
    "ConcurrentUse",
    "DecodeError",
    "DeviceError",
    "DeviceTimeout",
    "EncodeError",
    "Forked",
    "Handle",
    "InvalidArgument",
    "MessageTooLarge",
    "MissingDependency",
    "MsgspecCodec",
    "Node",
    "NodeLost",
    "PeerDied",
    "PickleCodec",
    "Reader",
    "SegmentCorrupted",
    "SegmentError",
    "SegmentMismatch",
    "SegmentNotFound",
    "SharedMemoryFull",
    "ShmBroadcaster",
    "ShmcastError",
    "ShmcastWarning",
    "Statistics",
    "Timeout",
    "Topology",
    "WaitPolicy",
    "Work",
    "Writer",
    "WrongRole",
    "__version__",
]

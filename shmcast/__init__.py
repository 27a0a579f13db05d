"""shmcast: broadcast Python objects between the processes of one node through shared memory.

`ShmBroadcaster` serves the ranks of a torch.distributed group; `Writer` and `Reader` serve any
processes of one host. Importing this package does not import torch.
"""

from shmcast.broadcaster import ShmBroadcaster
from shmcast.codec import Codec, PickleCodec
from shmcast.endpoint import Handle, Reader, Statistics, Writer
from shmcast.errors import (
    AlreadyAttached,
    Closed,
    ConcurrentUse,
    DecodeError,
    EncodeError,
    Forked,
    InvalidArgument,
    MessageTooLarge,
    NotOneNode,
    SegmentCorrupted,
    SegmentError,
    SegmentMismatch,
    SegmentNotFound,
    SharedMemoryFull,
    ShmcastError,
    Timeout,
    WrongRole,
)
from shmcast.waiting import WaitPolicy

__version__ = "0.1.0"

__all__ = [
    "AlreadyAttached",
    "Closed",
    "Codec",
    "ConcurrentUse",
    "DecodeError",
    "EncodeError",
    "Forked",
    "Handle",
    "InvalidArgument",
    "MessageTooLarge",
    "NotOneNode",
    "PickleCodec",
    "Reader",
    "SegmentCorrupted",
    "SegmentError",
    "SegmentMismatch",
    "SegmentNotFound",
    "SharedMemoryFull",
    "ShmBroadcaster",
    "ShmcastError",
    "Statistics",
    "Timeout",
    "WaitPolicy",
    "Writer",
    "WrongRole",
    "__version__",
]

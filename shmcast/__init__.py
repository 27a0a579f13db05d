"""shmcast: broadcast Python objects between processes, through shared memory on each node.

`ShmBroadcaster` serves the ranks of a torch.distributed group; `Writer` and `Reader` serve any
processes of one host. Importing this package does not import torch.
"""

from importlib.util import find_spec as _find_spec

if (_spec := _find_spec("shmcast._core")) is None or _spec.origin is None:  # (a mere folder)
    raise ImportError(
        f"shmcast in {__path__[0]} has no C++ core for this Python: if that is a checkout, run "
        "`pip install -e .` in it, or start Python elsewhere to import the installed package",
        name="shmcast._core",
    )

from shmcast._codecs.base import Codec
from shmcast._codecs.msgspec_codec import MsgspecCodec
from shmcast._codecs.object_codec import ObjectCodec
from shmcast._codecs.pickle_codec import PickleCodec
from shmcast._devices.work import Work
from shmcast._endpoints.handle import Handle
from shmcast._endpoints.reader import Reader
from shmcast._endpoints.statistics import Statistics
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._endpoints.writer import Writer
from shmcast._group.broadcaster import ShmBroadcaster
from shmcast._nodes.topology import Node, Topology
from shmcast.errors import (
    AlreadyAttached,
    Closed,
    ConcurrentUse,
    DecodeError,
    DeviceError,
    DeviceTimeout,
    EncodeError,
    Forked,
    HostError,
    Interrupted,
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
    "HostError",
    "Interrupted",
    "InvalidArgument",
    "MessageTooLarge",
    "MissingDependency",
    "MsgspecCodec",
    "Node",
    "NodeLost",
    "ObjectCodec",
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

# Tracebacks, pickles and help() say where users find these, not in which room they are made.
for _name in __all__:
    if isinstance(_public := globals()[_name], type):
        _public.__module__ = __name__
del _name, _public

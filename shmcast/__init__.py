"""shmcast: broadcast Python objects between processes, through shared memory on each node.

`ShmBroadcaster` serves the ranks of a torch.distributed group; `Writer` and `Reader` serve any
processes of one host. Importing this package does not import torch.
"""

from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path
from sys import modules as _modules
from typing import TYPE_CHECKING, Any

if (_spec := _find_spec("shmcast._core")) is None or _spec.origin is None:  # (a mere folder)
    raise ImportError(
        f"shmcast in {__path__[0]} has no C++ core for this Python: if that is a checkout, run "
        "`pip install -e .` in it, or start Python elsewhere to import the installed package"
        if _Path(__path__[0]).is_dir()
        else f"shmcast can't be imported from {__path__[0]}: the system loads its C++ core from a "
        "folder only: unpack the archive, or let pip install it",
        name="shmcast._core",
    )

from shmcast._version import __version__
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
    NoMessage,
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

if TYPE_CHECKING:
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
    from shmcast._hub.handle import HubHandle
    from shmcast._hub.hub import Hub
    from shmcast._hub.member import Member
    from shmcast._nodes.topology import Node, Topology

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
    "Hub",
    "HubHandle",
    "Interrupted",
    "InvalidArgument",
    "Member",
    "MessageTooLarge",
    "MissingDependency",
    "MsgspecCodec",
    "NoMessage",
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

# Loaded when they are first used: a program needs some of them, and the command line none.
_LAZY = {
    "Codec": "shmcast._codecs.base",
    "Handle": "shmcast._endpoints.handle",
    "Hub": "shmcast._hub.hub",
    "HubHandle": "shmcast._hub.handle",
    "Member": "shmcast._hub.member",
    "MsgspecCodec": "shmcast._codecs.msgspec_codec",
    "Node": "shmcast._nodes.topology",
    "ObjectCodec": "shmcast._codecs.object_codec",
    "PickleCodec": "shmcast._codecs.pickle_codec",
    "Reader": "shmcast._endpoints.reader",
    "ShmBroadcaster": "shmcast._group.broadcaster",
    "Statistics": "shmcast._endpoints.statistics",
    "Topology": "shmcast._nodes.topology",
    "WaitPolicy": "shmcast._endpoints.waiting",
    "Work": "shmcast._devices.work",
    "Writer": "shmcast._endpoints.writer",
}


def _make_public(name: str, what: object) -> None:
    """Let tracebacks, pickles and help() say where users find it, not in which room it is made."""
    if isinstance(what, type):
        what.__module__ = __name__
    globals()[name] = what


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _import_module(_LAZY[name])
    # (Others may have come with it: a broadcaster's topology, for one.)
    for each in _LAZY:
        if hasattr(room := _modules.get(_LAZY[each]), each):
            _make_public(each, getattr(room, each))
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


for _name in __all__:
    if _name not in _LAZY:
        _make_public(_name, globals()[_name])
del _name

"""The interface of transports, and what a transport is told of its place in a crew."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from bench.workloads.catalogue import Workload


class Skipped(Exception):
    """This transport can't run here; says why."""


def require_array(obj: Any) -> None:
    """Raise Skipped unless a message is a plain array, for transports that carry nothing else."""
    import numpy as np

    if not isinstance(obj, np.ndarray):
        raise Skipped(f"it carries numpy arrays, no {type(obj).__name__}")


class Seat(ABC):
    """One process's place in a crew: rank 0 is the source, the others are readers.

    Attributes:
        rank: 0 to `size` - 1.
        size: processes of the crew, the source included.
        folder: a directory of the crew's own, for sockets and the like; removed with the crew.
        inherited: what the launcher made before the processes, by name (see launchers.py).
        source: the source's rank in the crew's default process group.
    """

    rank: int
    size: int
    folder: Path
    inherited: dict[str, Any]
    source: int = 0

    @property
    def is_source(self) -> bool:
        return self.rank == 0

    @abstractmethod
    def share(self, obj: Any = None) -> Any:
        """Return the source's `obj` on every rank. Collective."""

    @abstractmethod
    def meet(self) -> None:
        """Return when all ranks have called it."""


class Transport(Protocol):
    """One process's end of a broadcast from the source to all readers.

    The optional hooks are called on the source only. Their time is not measured.
    """

    settle: Callable[[Any], None] | None = None
    """Called with the object before the gap, to undo what the message before it has changed."""
    prepare: Callable[[], None] | None = None
    """Called every 100 µs in the last millisecond of a gap, to make the next call faster."""
    fill: Callable[[Any], None] | None = None
    """Called with the object at the end of the gap, to make what is about to be sent."""
    takes_part: bool = True
    """Whether this rank receives at all; if not, nobody waits for it."""

    def translate(self, _workload: Workload, messages: list[Any]) -> list[Any]:
        """Return the messages of a workload as users of this transport would make them.

        Called on every rank before a case of a new workload. Collective. Raises Skipped if it has
        no such messages.
        """
        return messages

    def expect(self, _obj: Any, /) -> None:
        """Prepare for a case whose largest message is this object, or one like it.

        Called on every rank, for transports that may know a size or a shape beforehand. Not
        collective. Raises Skipped if it can't carry such a message.
        """
        return

    @abstractmethod
    def broadcast(self, obj: Any, /) -> Any:
        """Send `obj` on the source; receive and return it elsewhere (where `obj` is None)."""

    def figures(self) -> dict[str, float]:
        """Return what else the source knows of the case's messages, by name, for the results."""
        return {}

    def close(self) -> None:
        """Close this process's end. Collective."""
        return


Launcher = Literal["spawn", "mpiexec", "ray", "hosts"]


@dataclass(frozen=True)
class Peer:
    """A transport as the harness and the report know it.

    Attributes:
        name: in tables, and on the command line.
        make: makes a process's end; called on every rank, collectively.
        crew: transports with the same crew share its processes.
        settings: how it is set up, for the report: one sentence.
        modules: what must be importable; imported before memory is measured.
        launcher: what starts the crew's processes.
        environment: variables that the crew's processes start with. (All peers of a crew have the
            same.)
        one_object: whether it carries only objects of one size (as told to `expect`), no trace.
        install: what to do where a module is missing.
    """

    name: str
    make: Callable[[Seat], Transport]
    crew: str
    settings: str
    modules: tuple[str, ...] = ()
    launcher: Launcher = "spawn"
    environment: dict[str, str] = field(default_factory=dict)
    one_object: bool = False
    install: str = "pip install 'shmcast[peers]'"

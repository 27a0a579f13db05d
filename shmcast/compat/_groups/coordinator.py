"""SGLang's `GroupCoordinator.barrier` and `all_gather_object` over a `ShmBroadcaster`.

It is the one of its group's `broadcast_pyobj` from the first rank, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from shmcast.compat._groups.broadcasters import Broadcasters

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Coordinator(Protocol):
    """What is needed of a `GroupCoordinator`.

    Attributes:
        cpu_group: its group for what is on the CPU.
        ranks: its global ranks.
    """

    cpu_group: ProcessGroup
    ranks: list[int]


def barrier_over(
    broadcasters: Broadcasters, own: Callable[[Any], None]
) -> Callable[[Coordinator], None]:
    """Return the method `barrier`.

    Args:
        broadcasters: of this process's groups.
        own: SGLang's method, for groups that have none.
    """

    def barrier(self: Coordinator) -> None:
        """Wait until all ranks of the group have called this.

        Raises:
            ShmcastError: what `ShmBroadcaster.barrier` raises.
        """
        made = broadcasters.of(self.cpu_group, self.ranks[0])
        if made is None:
            own(self)
        else:
            made.broadcaster.barrier(made.timeout)

    return barrier


def all_gather_object_over(
    broadcasters: Broadcasters, own: Callable[[Any, Any], list[Any]]
) -> Callable[[Coordinator, Any], list[Any]]:
    """Return the method `all_gather_object`.

    Args:
        broadcasters: of this process's groups.
        own: SGLang's method, for groups that have none.
    """

    def all_gather_object(self: Coordinator, obj: Any) -> list[Any]:
        """Return the objects of all ranks, in the order of the group; this rank's is `obj` itself.

        Raises:
            ShmcastError: what `ShmBroadcaster.all_gather_object` raises.
        """
        made = broadcasters.of(self.cpu_group, self.ranks[0])
        if made is None:
            return own(self, obj)
        return made.broadcaster.all_gather_object(obj, made.timeout)

    return all_gather_object

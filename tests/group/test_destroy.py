"""Who destroys a process group ends its threads, whatever broadcasters have been made with it.

A thread of gloo's that outlives Python ends the process by abort(): torch takes the GIL in it.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from shmcast import ShmBroadcaster
from shmcast._nodes import gloo_group
from tests.support.fake_nodes import opened
from tests.support.permissions import NotPermitted
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until


def gloo_threads() -> int:
    """Return how many threads of this process wait for the work of process groups.

    Raises:
        NotPermitted: this torch names none of them, as 2.9 does.
    """
    names = []
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended meanwhile
            names.append((thread / "comm").read_text().strip())
    if not (count := names.count("pt_gloo_runloop")):
        raise NotPermitted("gloo's threads have no names in this torch")
    return count


def objects(group: dist.ProcessGroup) -> ShmBroadcaster:
    bc = ShmBroadcaster(group)
    assert bc.broadcast_object(7, 30) == 7
    bc.close()
    return bc


def tensors(group: dist.ProcessGroup) -> ShmBroadcaster:
    bc = ShmBroadcaster(group, device_types={"cpu"})
    got = bc.broadcast_tensor_dict({"x": torch.ones(5)}, 30, async_op=True).wait()
    assert got["x"].sum() == 5
    bc.close()
    return bc


def dropped(group: dist.ProcessGroup) -> None:
    ShmBroadcaster(group).broadcast_object(8, 30)


def over_nodes(group: dist.ProcessGroup) -> ShmBroadcaster:
    bc = opened(group.rank(), ("a", "b"), group=group)
    assert bc.broadcast_object(9, 30) == 9
    bc.close()
    return bc


USES = [objects, tensors, dropped, over_nodes]


def all_have_ended(before: int) -> bool:
    gloo_group.collect_finished()  # (a relay's last broadcast may end after its group was closed)
    return gloo_threads() <= before


def destroyed(rank: int, use: Callable[[dist.ProcessGroup], Any]) -> None:
    before = gloo_threads()
    group = dist.new_group([0, 1])
    if rank > 1:
        return
    assert isinstance(group, dist.ProcessGroup)
    gc.collect()
    gc.disable()
    try:
        used = use(group)
        wait_until(lambda: gloo_threads() > before)  # a thread names itself
        dist.destroy_process_group(group)
        del group
        wait_until(lambda: all_have_ended(before))
        del used
    finally:
        gc.enable()


@pytest.mark.parametrize("use", USES, ids=[use.__name__ for use in USES])
def test_a_destroyed_group_leaves_no_threads(
    world: Crew, use: Callable[[dist.ProcessGroup], Any]
) -> None:
    world.run(4, destroyed, use)

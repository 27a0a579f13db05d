"""SGLang's groups gather and meet over shmcast as over gloo, where their ranks stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import engine_functions as roles
from tests.support.processes import Crew, WorkerFailed


def _expected(rank: int) -> list[list[int]]:
    half = [0, 1] if rank < 2 else [2, 3]
    return [each for n in range(10) for each in ([10 * n + other for other in range(4)], half)]


def test_groups_gather_and_meet_between_broadcasts(world: Crew, tmp_path: Path) -> None:
    assert world.run(4, roles.meet, 4, str(tmp_path)) == [
        (_expected(rank), []) for rank in range(4)
    ]


@pytest.mark.parametrize(
    "role", [roles.meet_without_shared_memory, roles.meet_where_ranks_may_be_lost]
)
def test_the_engines_own_goes_on_where_no_broadcaster_can(
    world: Crew, tmp_path: Path, role: Callable[..., Any]
) -> None:
    own = ["barrier", "all_gather_object", "broadcast_pyobj", "all_gather_object", "barrier"] * 10
    assert world.run(4, role, 4, str(tmp_path)) == [(_expected(rank), own) for rank in range(4)]


def test_a_barrier_tells_who_has_died(world: Crew) -> None:
    jobs = world.start(4, roles.wait_for_one_that_dies)
    told = [job.result() for number, job in enumerate(jobs) if number != 2]
    assert told == ["rank 2 killed by SIGKILL"] * 3
    with pytest.raises(WorkerFailed, match="exit code -9"):
        jobs[2].result()

"""What goes wrong while a broadcaster is made: every rank is told, in time, and none is left."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch.distributed as dist

import shmcast
from shmcast import ObjectCodec, PickleCodec, ShmBroadcaster, _core
from shmcast._group.gathering import Gathering
from shmcast._nodes import stamp, topology
from tests.support import ranks
from tests.support.exchanges import over_store
from tests.support.fake_nodes import on_host, opened
from tests.support.processes import Crew, WorkerFailed
from tests.support.subprocess_programs import wait_until


def fails_when_it_looks_around(rank: int) -> tuple[str, str]:
    def obstacle_to(card: topology.Card) -> str | None:
        raise OSError(errno.EMFILE, "Too many open files", card.name)

    real = topology.obstacle_to
    if rank == 2:
        topology.obstacle_to = obstacle_to
    try:
        with pytest.raises((shmcast.SegmentError, OSError)) as caught:
            ShmBroadcaster()
    finally:
        topology.obstacle_to = real
    return type(caught.value).__name__, str(caught.value)


def test_an_error_between_two_collectives_reaches_everybody(world: Crew) -> None:
    for rank, (kind, error) in enumerate(world.run(4, fails_when_it_looks_around)):
        assert "Too many open files" in error
        assert kind == ("OSError" if rank == 2 else "SegmentError")
        assert rank == 2 or "rank 2, could not set up" in error


SPREAD = pytest.mark.parametrize("hosts", ["aaaa", "aabb"])
COLLECTIVES = {1: 2, 2: 6}  # of a set-up, by the number of nodes


def counts_collectives(rank: int, hosts: str) -> int:
    count = 0
    real = Gathering.gather

    def gather(self: Gathering, mine: Any, meanwhile: Callable[[], object]) -> list[Any]:
        nonlocal count
        count += 1
        return real(self, mine, meanwhile)

    Gathering.gather = gather  # type: ignore[method-assign]
    try:
        opened(rank, (*hosts,)).close()
    finally:
        Gathering.gather = real  # type: ignore[method-assign]
    return count


@SPREAD
def test_a_set_up_is_so_many_collectives(world: Crew, hosts: str) -> None:
    assert world.run(4, counts_collectives, hosts) == [COLLECTIVES[len({*hosts})]] * 4


def fails_to_make_its_end(rank: int, hosts: str, failing: int, what: str) -> tuple[str, str]:
    module = "shmcast._group.device_objects"
    loaded = sys.modules.pop(module, None)
    if rank == failing and what == "import":
        sys.modules[module] = cast("Any", None)
    elif rank == failing:
        os.environ["SHMCAST_TIMEOUT"] = "soon"
    try:
        with pytest.raises((ImportError, shmcast.ShmcastError)) as caught:
            opened(rank, (*hosts,))
    finally:
        os.environ.pop("SHMCAST_TIMEOUT", None)
        sys.modules.pop(module, None)
        if loaded is not None:
            sys.modules[module] = loaded
    return type(caught.value).__name__, str(caught.value)


@SPREAD
@pytest.mark.parametrize("failing", [0, 3])
@pytest.mark.parametrize(("what", "why"), [("import", "device_objects"), ("setting", "'soon'")])
def test_an_error_after_the_rings_are_made_reaches_everybody(
    world: Crew, hosts: str, failing: int, what: str, why: str
) -> None:
    told = world.run(4, fails_to_make_its_end, hosts, failing, what)
    for rank, (kind, error) in enumerate(told):
        assert why in error
        if rank != failing:
            assert kind in ("SegmentError", "InvalidArgument")
            assert f"rank {failing}" in error


def fails_when_all_have_agreed(rank: int, hosts: str, failing: int) -> str:
    steps_left = COLLECTIVES[len({*hosts})]
    real = Gathering.gather

    def gather(self: Gathering, mine: Any, meanwhile: Callable[[], object]) -> list[Any]:
        nonlocal steps_left
        gathered = real(self, mine, meanwhile)
        steps_left -= 1
        if rank == failing and not steps_left:
            raise OSError(errno.ENOMEM, "no memory")
        return gathered

    Gathering.gather = gather  # type: ignore[method-assign]
    try:
        bc = opened(rank, (*hosts,))
    except OSError as error:
        assert rank == failing
        dist.barrier()
        return str(error)
    finally:
        Gathering.gather = real  # type: ignore[method-assign]
    with pytest.raises(shmcast.PeerDied) as caught:  # noqa: PT012 (until then)
        while True:
            bc.broadcast_object(0 if bc.is_src else None, 30)
    dist.barrier()  # (who closes before the others have looked tells them that)
    bc.close()
    return str(caught.value)


@SPREAD
@pytest.mark.parametrize("failing", [0, 2, 3])
def test_a_rank_that_fails_when_all_have_agreed_has_not_left_in_order(
    world: Crew, hosts: str, failing: int
) -> None:
    for rank, error in enumerate(world.run(4, fails_when_all_have_agreed, hosts, failing)):
        assert ("no memory" if rank == failing else f"rank {failing}") in error
        assert rank == failing or "ended without close()" in error


def stumbles_over_a_warning(rank: int) -> str:
    with on_host("ab"[rank // 2]), warnings.catch_warnings():
        topology.machine_id = lambda: "one"
        warnings.simplefilter("error")
        try:
            bc = ShmBroadcaster()
        except shmcast.ShmcastWarning as warning:
            assert rank == 0
            dist.barrier()
            return str(warning)
    with pytest.raises(shmcast.PeerDied) as caught:
        bc.recv(30)
    dist.barrier()
    bc.close()
    return str(caught.value)


def test_a_source_whose_warning_is_an_error_has_not_left_in_order(world: Crew) -> None:
    warning, *others = world.run(4, stumbles_over_a_warning)
    assert "share one /dev/shm" in warning
    assert all("ended without close()" in error for error in others)


def wrong_on_one_rank(rank: int, arguments: dict[str, Any]) -> str:
    with pytest.raises(shmcast.ShmcastError) as caught:
        ShmBroadcaster(**(arguments if rank == 1 else {}))
    return str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"src": 9}, "src=9 is not one of"),
        ({"group_src": -3}, "group_src=-3 is not a rank"),
        ({"timeout": "soon"}, "timeout='soon' must be"),
        ({"device_types": "cuda"}, "device_types='cuda' is no set"),
        ({"group_src": 2}, "rank 1 says 2"),
        ({"warn_after": -1}, "warn_after=-1"),
    ],
)
def test_an_argument_that_is_wrong_on_one_rank_is_told_on_all(
    world: Crew, arguments: dict[str, Any], why: str
) -> None:
    for error in world.run(4, wrong_on_one_rank, arguments):
        assert why in error


@pytest.mark.parametrize("size", [4000, 4096, 100_000])
def test_an_error_of_any_length_is_told_on_all(world: Crew, size: int) -> None:
    codec = "x" * size  # which is no codec, and is quoted
    for told in world.run(4, wrong_on_one_rank, {"codec": codec}):
        assert codec in told


def comes_late(rank: int, store: str, timeout: float | None, path: str) -> list[str]:
    ranks.join(rank, 3, store)
    errors = []
    if rank == 2:  # comes when the others have given up
        with open(path) as others:  # noqa: PTH123
            assert others.read(1)
    with pytest.raises(shmcast.Timeout) as caught:
        ShmBroadcaster(timeout=timeout if rank == 0 else 30)
    errors.append(str(caught.value))
    if rank == 0:
        with open(path, "w") as late:  # noqa: PTH123
            late.write("x")
    with ShmBroadcaster(timeout=30) as bc:
        errors.append(bc.broadcast_object("at last" if bc.is_src else None, 30))
    return errors


def test_a_rank_that_does_not_come_in_time_is_named_and_all_may_try_again(
    fresh: tuple[Crew, str],
) -> None:
    crew, store = fresh
    os.mkfifo(f"{store}-late")
    for rank, (error, got) in enumerate(crew.run(3, comes_late, store, 1.0, f"{store}-late")):
        assert error.startswith(f"rank {rank} of 3: set-up: rank 0 gave up waiting for rank 2,")
        assert got == "at last"


class _Other:
    def encode(self, obj: Any) -> list[bytes]:
        return [repr(obj).encode()]

    def decode(self, frames: list[Any]) -> Any:
        return frames


class _Extended(PickleCodec):
    pass


def other_codec(rank: int) -> str:
    with pytest.raises(shmcast.InvalidArgument) as caught:
        ShmBroadcaster(codec=_Other() if rank == 3 else None)
    with ShmBroadcaster(codec=_Extended() if rank == 3 else PickleCodec()) as bc:
        assert bc.broadcast_object([1] if bc.is_src else None, 30) == [1]
    return str(caught.value)


def test_ranks_with_different_codecs_are_told(world: Crew) -> None:
    for error in world.run(4, other_codec):
        assert "rank 0 has ObjectCodec, rank 1 has ObjectCodec" in error
        assert "rank 3 has _Other" in error


def other_object_codec(rank: int) -> list[str]:
    errors = []
    fallback = ObjectCodec(fallback="cloudpickle")
    for at_1, others in ((PickleCodec(), ObjectCodec()), (ObjectCodec(), fallback)):
        with pytest.raises(shmcast.InvalidArgument) as caught:
            ShmBroadcaster(codec=at_1 if rank == 1 else others)
        errors.append(str(caught.value))
    with ShmBroadcaster(codec=fallback) as bc:
        function = bc.broadcast_object((lambda: 7) if bc.is_src else None, 30)
        assert function() == 7
    return errors


def test_ranks_with_and_without_the_default_codec_or_its_fallback_are_told(world: Crew) -> None:
    pytest.importorskip("cloudpickle")
    for by_pickle, by_fallback in world.run(4, other_object_codec):
        assert "rank 0 has ObjectCodec, rank 1 has PickleCodec, rank 2 has Object" in by_pickle
        named = "ObjectCodec(fallback='cloudpickle')"
        assert f"rank 0 has {named}, rank 1 has ObjectCodec, rank 2 has {named}" in by_fallback


def apart_on_one_machine(rank: int) -> list[str]:
    with on_host("ab"[rank // 2]), warnings.catch_warnings(record=True) as caught:
        topology.machine_id = lambda: "one"
        warnings.simplefilter("always")
        ShmBroadcaster().close()
    return [str(w.message) for w in caught if w.category is shmcast.ShmcastWarning]


def test_ranks_of_one_machine_that_do_not_share_memory_are_warned_of(world: Crew) -> None:
    (warning,), *others = world.run(4, apart_on_one_machine)
    assert others == [[]] * 3
    assert "node 0 (a): ranks 0, 1; node 1 (b): ranks 2, 3" in warning
    assert "rank 2 on host b can't attach the segment of rank 0 on host a: elsewhere" in warning
    assert "share one /dev/shm" in warning


def one_ends_before(rank: int, store: str) -> str:
    ranks.join(rank, 3, store)
    Path(f"{store}.{rank}").touch()
    if rank == 2:
        wait_until(lambda: all(Path(f"{store}.{other}").exists() for other in (0, 1)))
        os._exit(3)
    with pytest.raises(shmcast.SegmentError) as caught:
        ShmBroadcaster()
    return str(caught.value)


def test_a_rank_that_ends_before_it_comes_is_named(fresh: tuple[Crew, str]) -> None:
    crew, store = fresh
    jobs = crew.start(3, one_ends_before, store)
    for rank in (0, 1):
        error = jobs[rank].result()
        assert error.startswith(f"rank {rank} of 3: set-up: the process group failed: ")
        assert "rank 2" in error
        assert "not come)" in error
    with pytest.raises(WorkerFailed, match="exit code 3"):
        jobs[2].result()


def has_another_version(rank: int, path: str) -> list[str]:
    """Make broadcasters of both kinds, one rank of them with another shmcast; return the errors."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        if rank == 2:
            patch.setattr(stamp, "__version__", "9.8.7")
            patch.setattr(_core, "LAYOUT_VERSION", 99)
        with pytest.raises(shmcast.SegmentMismatch) as caught:
            ShmBroadcaster()
        told.append(str(caught.value))
        with pytest.raises(shmcast.SegmentMismatch) as caught:
            over_store(rank, ("a",) * 4, path)
        told.append(str(caught.value))
    return told


def test_ranks_with_two_versions_of_shmcast_are_told_so(world: Crew, tmp_path: Path) -> None:
    ours = f"shmcast {shmcast.__version__}, with layout version {_core.LAYOUT_VERSION}"
    theirs = "shmcast 9.8.7, with layout version 99"
    for rank, errors in enumerate(world.run(4, has_another_version, str(tmp_path / "store"))):
        for error in errors:
            if rank == 2:
                assert f"rank 0 has {ours}; this process has {theirs}" in error
            else:
                assert f"rank 2 has {theirs}; this process has {ours}" in error

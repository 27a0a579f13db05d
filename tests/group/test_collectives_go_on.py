"""What ends a collective in the middle of something large for another node harms nobody."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist

import shmcast
from shmcast import ShmBroadcaster
from tests.support.fake_nodes import TWO, opened
from tests.support.processes import Crew
from tests.support.subprocess_programs import wait_until

HOSTS = {"two nodes": TWO, "one each": tuple("abcd")}
SECONDS = 30.0
NBYTES = 60_000_000  # more than the kernel takes
LEADER = 2  # of another node than the source's


class Alarmed(Exception):
    """Raised by a signal's handler."""


def _raise(*_: object) -> None:
    raise Alarmed


def gather(bc: ShmBroadcaster, rank: int, timeout: float) -> Any:
    gathered = bc.gather_object(bytes(NBYTES if rank == LEADER else rank), timeout)
    return gathered and [*map(len, gathered)]


def scatter(bc: ShmBroadcaster, rank: int, timeout: float) -> Any:
    shares = [bytes(NBYTES if rank == LEADER else rank) for rank in range(4)]
    return len(bc.scatter_object(shares if bc.is_src else None, timeout))


CALLS = {"gather": gather, "scatter": scatter}


def end_the_call(bc: ShmBroadcaster, ending: str, has_begun: threading.Event) -> None:
    """In another thread: end the call of this rank once it has sent a part."""
    streams = bc._collectives._trunk._streams  # type: ignore[union-attr]
    wait_until(lambda: any(stream.is_partial for stream in streams.values()))
    has_begun.set()
    if ending == "interrupt":
        bc.interrupt()
    elif ending == "signal":
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGALRM)


def ended_and_called_again(rank: int, hosts: tuple[str, ...], call: str, ending: str) -> list[Any]:
    run: Callable[[ShmBroadcaster, int, float], Any] = CALLS[call]
    with opened(rank, hosts) as bc:
        bc.barrier(SECONDS)
        if rank == (LEADER if call == "gather" else 0):
            before = signal.signal(signal.SIGALRM, _raise)
            try:
                has_begun = threading.Event()
                thread = threading.Thread(target=end_the_call, args=(bc, ending, has_begun))
                thread.start()
                errors = {"timeout": shmcast.Timeout, "interrupt": shmcast.Interrupted}
                with pytest.raises(errors.get(ending, Alarmed)):
                    run(bc, rank, 0.5 if ending == "timeout" else SECONDS)
                thread.join()
                assert has_begun.is_set()
            finally:
                signal.signal(signal.SIGALRM, before)
        # (The leader sends for its node. Only the source waits in a gather.)
        early = [run(bc, rank, SECONDS)] if call == "gather" and rank in (1, 3) else []
        dist.barrier()
        got = early + [run(bc, rank, SECONDS) for _ in range(2 - len(early))]
        bc.barrier(SECONDS)
        return got


@pytest.mark.parametrize("hosts", HOSTS.values(), ids=HOSTS)
@pytest.mark.parametrize("ending", ["timeout", "interrupt", "signal"])
@pytest.mark.parametrize("call", CALLS)
def test_a_call_that_was_ended_in_the_middle_goes_on_when_it_is_called_again(
    world: Crew, hosts: tuple[str, ...], ending: str, call: str
) -> None:
    lengths = [0, 1, NBYTES, 3]
    gathered = [[lengths] * 2, *[[None] * 2] * 3]
    shares = [[length] * 2 for length in lengths]
    told = world.run(4, ended_and_called_again, hosts, call, ending)
    assert told == (gathered if call == "gather" else shares)

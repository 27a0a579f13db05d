"""Arrays of any size, from and to memory of any alignment, arrive as they were sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shmcast import Reader, Writer
from tests.support.arena_roles import MIB, SECONDS

NEAR = (2048, 2112, 16 * 1024, 64 * 1024, 256 * 1024, MIB)
SIZES = sorted(near + off for near in NEAR for off in (-65, -1, 0, 1, 40, 127))
SLOT = 64 * 1024
HAS_NON_TEMPORAL = " avx2 " in Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize("arena_bytes", [0, 8 * MIB])
@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize(("slots", "slot_bytes"), [(2048, 1152), (128, 16 * 1024), (32, 64 * 1024)])
def test_odd_sizes_arrive_whole(arena_bytes: int, copy: bool, slots: int, slot_bytes: int) -> None:
    source = np.random.default_rng(1).integers(0, 256, 2 * MIB, dtype=np.uint8)
    with (  # one thread is both ends: the slots have room for each message
        Writer(1, slots=slots, slot_bytes=slot_bytes, arena_bytes=arena_bytes) as writer,
        Reader(writer.handle, 0) as reader,
    ):
        for begin, nbytes in enumerate(SIZES):
            sent = source[begin : begin + nbytes]
            writer.send([sent, sent[1:100]])
            got, short = reader.recv(SECONDS, copy)
            assert np.array_equal(got, sent)
            assert np.array_equal(short, sent[1:100])


def test_what_no_cache_holds_goes_past_the_caches() -> None:
    nbytes = 33 * MIB + 5
    sent = np.arange(nbytes, dtype=np.uint8)
    with Writer(1, arena_bytes=40 * MIB) as writer, Reader(writer.handle, 0) as reader:
        writer.send(sent)
        assert np.array_equal(reader.recv(SECONDS, copy=False), sent)
        assert writer.statistics().non_temporal_bytes == (nbytes if HAS_NON_TEMPORAL else 0)


@pytest.mark.skipif(not HAS_NON_TEMPORAL, reason="this machine has no such stores")
def test_trials_are_counted() -> None:
    with Writer(1, slots=32, slot_bytes=SLOT) as writer, Reader(writer.handle, 0) as reader:
        before = writer.statistics().fragments
        while writer.statistics().fragments < before + 2 * 128:
            writer.send(np.zeros(MIB, np.uint8))
            reader.recv(SECONDS)
        figures = writer.statistics()
        assert SLOT <= figures.non_temporal_bytes <= figures.payload_bytes
        assert reader.statistics().non_temporal_bytes == 0

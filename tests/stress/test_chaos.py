"""A little chaos and a small soak; `make chaos` (200 rounds in CI) and `make soak` take longer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.chaos import Chaos
from tests.support.subprocess_programs import ROOT

CHAOS_ROUNDS = 40


@pytest.mark.timeout(180)
def test_chaos_loses_nothing_and_hangs_nobody() -> None:
    chaos = Chaos()
    try:
        for seed in range(CHAOS_ROUNDS):
            chaos.round(seed)
    finally:
        chaos.close()
    seen = chaos.tally
    assert len(seen.endings) > 1
    happened = (seen.deaths, seen.replacements, seen.stops, seen.alarms, seen.spilled)
    assert min(seen.cancels, seen.interrupts) > 0
    assert min(seen.messages, *happened) > 0
    assert seen.lost < seen.alarms / 10


def test_a_soak_leaves_memory_and_descriptors_as_they_are() -> None:
    # In a process of its own: this one has descriptors and threads of other tests.
    command = [sys.executable, "-m", "tests.support.soak", "--messages", "200000"]
    ended = subprocess.run(  # noqa: S603
        command, cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "reader:" in ended.stdout

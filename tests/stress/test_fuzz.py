"""Whatever is written to a live segment, its endpoints neither crash nor hang nor eat memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.subprocess_programs import ROOT


@pytest.mark.parametrize(("way", "segments"), [("in_turn", 900), ("at_once", 100)])
def test_a_segment_that_others_write_to_does_no_harm(way: str, segments: int) -> None:
    # 100 000 mutations.
    ran = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "tests.support.fuzzing", way, "0", str(segments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=55,
        check=False,
    )
    # The seed in the last line makes it happen again: -m tests.support.fuzzing `way` `seed` 1
    assert ran.returncode == 0, f"exit code {ran.returncode}: {ran.stdout[-4000:]}"
    assert ran.stdout.count("seed") == segments
    assert "'send'" in ran.stdout
    assert "'recv'" in ran.stdout
    assert "'SegmentCorrupted'" in ran.stdout
    assert "'spilled': 0" not in ran.stdout

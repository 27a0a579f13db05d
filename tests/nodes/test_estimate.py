"""The estimate of the next message's size: tight, deterministic, rarely wrong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.workloads import catalogue
from shmcast._nodes.estimate import HISTORY, MISS_BYTES, SizeEstimate, guess, rounded

sizes = st.integers(24, 1 << 40)


def sent(estimate: SizeEstimate, stream: list[int]) -> int:
    """Return the bytes that crossed the network for messages of these sizes."""
    total = 0
    for size in stream:
        total += max(estimate.next, size)
        estimate.add(size)
    return total


@given(sizes)
def test_rounding_is_up_and_by_little(size: int) -> None:
    assert size <= rounded(size) <= max(size + 15, size + size // 16)
    assert rounded(rounded(size)) == rounded(size)


@given(st.lists(sizes, max_size=600))
def test_all_who_have_seen_the_same_sizes_guess_the_same(stream: list[int]) -> None:
    one, other = SizeEstimate(), SizeEstimate()
    for size in stream:
        one.add(size)
    other.add(17)
    other.restart()  # what came before is forgotten
    for size in stream:
        other.add(size)
    assert one.next == other.next
    assert one.hits + one.misses == len(stream)


@given(st.lists(sizes, min_size=1, max_size=HISTORY))
def test_no_size_seen_would_have_cost_less_than_the_guess(stream: list[int]) -> None:
    known = sorted(map(rounded, stream))

    def cost(g: int) -> int:
        return sum(max(g, size) + (MISS_BYTES if size > g else 0) for size in known)

    # What is added for sizes not seen yet is bounded by what a miss costs.
    assert cost(guess(known)) <= min(map(cost, known)) + len(known) * MISS_BYTES


@given(st.integers(24, 1 << 30), st.integers(2, 600))
def test_messages_of_one_size_are_guessed_to_a_32nd(size: int, count: int) -> None:
    estimate = SizeEstimate()
    sent(estimate, [size])
    assert sent(estimate, [size] * count) <= count * max(size + 15, size + size // 16)
    assert estimate.misses <= 1


@pytest.mark.parametrize("size", [16 * 1024, 1024 * 1024])
def test_bytes_on_the_wire_stay_within_a_tenth_for_drifting_sizes(size: int) -> None:
    random_sizes = random.Random(size)  # noqa: S311
    stream = [size + random_sizes.randrange(64) for _ in range(2000)]
    estimate = SizeEstimate()
    sent(estimate, stream[:10])
    assert sent(estimate, stream[10:]) <= 1.1 * sum(stream[10:])


@pytest.mark.parametrize("seed", range(4))
def test_a_decode_loop_fits_99_times_of_100(seed: int) -> None:
    estimate = SizeEstimate()
    sent(estimate, catalogue.sizes(catalogue.decode_steps(1000, seed)))
    assert estimate.misses <= 10


def test_a_rare_large_message_does_not_make_the_others_long() -> None:
    stream = ([700] * 49 + [20_000_000]) * 20
    estimate = SizeEstimate()
    assert sent(estimate, stream) <= 1.01 * sum(stream)
    assert estimate.misses == 20

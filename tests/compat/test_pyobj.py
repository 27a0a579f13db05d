"""SGLang's collectives of Python objects over rings do what its own do."""

from __future__ import annotations

from tests.support import engine_functions as roles
from tests.support.processes import Crew


def test_every_rank_gets_every_sources_lists(world: Crew) -> None:
    expected = [roles.what_is_sent(source, n) for n in range(20) for source in (0, 2)]
    assert world.run(4, roles.broadcast, [0, 2], 20) == [(expected, 0)] * 4


def test_groups_are_apart(world: Crew) -> None:
    first, second = roles.what_is_sent(0, 1), roles.what_is_sent(2, 1)
    assert world.run(4, roles.broadcast_in_halves) == [first, first, second, second]


def test_where_there_is_no_shared_memory_the_engines_own_goes_on(world: Crew) -> None:
    expected = [roles.what_is_sent(1, n) for n in range(3)]
    assert world.run(4, roles.broadcast_without_shared_memory) == [(expected, 3)] * 4


def test_stages_that_send_in_a_circle_pass_to_rings(world: Crew) -> None:
    # The engine's own carries an offer and what says that the ring is next, out and in; and a
    # message in between for each look that came too late on a busy machine.
    for is_right, calls in world.run(4, roles.send_around, 4, 40, True):
        assert is_right
        assert 4 <= calls < 20


def test_a_receiver_on_another_host_gets_all_by_the_engines_own(world: Crew) -> None:
    assert world.run(4, roles.send_around, 4, 40, False) == [(True, 80)] * 4


def test_messages_of_two_groups_between_the_same_ranks_are_apart(world: Crew) -> None:
    in_a, in_b = [f"a {n}" for n in range(8)], [f"b {n}" for n in range(8)]
    nothing: tuple[list[str], list[str]] = ([], [])
    expected = [nothing, (in_a, in_b), nothing, nothing]
    assert world.run(4, roles.send_in_two_groups, 8) == expected


def test_a_rank_that_is_not_in_the_group_gets_the_engines_own_answer(world: Crew) -> None:
    assert world.run(4, roles.broadcast_in_one_half) == [["sent"], ["sent"], [], []]


def test_what_a_destroyed_group_had_is_closed(world: Crew) -> None:
    assert world.run(4, roles.groups_come_and_go, 5) == [([[n] for n in range(5)], 1)] * 4


def test_waits_end_with_the_groups_own_time_out(world: Crew) -> None:
    untold: tuple[float, list[str]] = (77.0, [])
    assert world.run(4, roles.wait_as_long_as_the_group) == [
        untold,
        (77.0, ["Timeout"] * 4),
        untold,
        untold,
    ]


def test_what_has_no_length_is_refused_and_other_collections_pass_as_by_the_engines_own(
    world: Crew,
) -> None:
    assert world.run(4, roles.send_no_list) == [
        [[], "TypeError", [1], (), "TypeError", [], []],
        [[], [1], [], {"a": 1}, []],
        [[], [1], []],
        [[], [1], []],
    ]

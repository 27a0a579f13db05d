"""The fuzzer with a small budget; `make fuzz` gives it a large one, on every Python there is."""

from __future__ import annotations

import random

import pytest

from tests.support import codec_fuzz, object_graphs
from tests.support.canonical import canonical
from tests.support.differential import by_pickle


@pytest.mark.parametrize(("way", "count"), [("graphs", 1000), ("mutations", 4000)])
def test_random_messages_do_no_harm(way: str, count: int) -> None:
    # To have one again: python -m tests.support.codec_fuzz `way` `seed` 1
    ran = codec_fuzz._run(way, 0, count)
    assert ran.returncode == 0, ran.stdout.decode()[-4000:]
    assert f"{count} {way}" in ran.stdout.decode()


def test_a_seed_is_always_the_same_object() -> None:
    for seed in range(100):
        first, second = object_graphs.make(seed), object_graphs.make(seed)
        assert canonical(first) == canonical(second)


def test_the_objects_of_seeds_are_of_many_kinds_and_sizes() -> None:
    found = [canonical(object_graphs.make(seed)) for seed in range(300)]
    kinds = {token.__name__ for tokens in found for token in tokens if isinstance(token, type)}
    assert {
        "Point",
        "Cell",
        "Edge",
        "Bag",
        "MoreSlots",
        "GetState",
        "Items",
        "OrderedDict",
    } <= kinds
    assert max(map(len, found)) > 500
    assert any("the same as" in tokens for tokens in found)


def test_the_fuzzer_tells_what_differs() -> None:
    one, other = canonical([1, {"a": 2}]), canonical([1, {"a": 3}])
    with pytest.raises(codec_fuzz.Different, match=r"seed 7:\npickle: .* 2[,)\]]"):
        codec_fuzz._check(7, ("value", one), ("value", other))
    codec_fuzz._check(7, ("value", one), ("value", canonical([1, {"a": 2}])))


def test_canonical_forms_tell_identities_types_and_order() -> None:
    shared = [1]
    pairs = [
        ([shared, shared], [[1], [1]]), ([1], [True]), ([1], [1.0]), ([0.0], [-0.0]),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}), ((1,), [1]), ("a", b"a"), ({1}, frozenset([1])),
    ]  # fmt: skip
    for one, other in pairs:
        assert canonical(one) != canonical(other)
        assert canonical(one) == canonical(by_pickle(one))


def test_damage_changes_a_message_but_not_what_it_is_of() -> None:
    changed = 0
    for seed in range(300):
        whole = bytes(range(0xF5, 0x100)) * 4
        got = codec_fuzz.damage(random.Random(seed), bytearray(whole))  # noqa: S311
        assert got[0] == whole[0]
        changed += got != whole
    assert changed > 250

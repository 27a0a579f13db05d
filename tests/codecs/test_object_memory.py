"""Memory: nothing leaks, nothing is kept, and what is made again is never what a user still has."""

from __future__ import annotations

import collections
import contextlib
import enum
import gc
import itertools
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmcast import ObjectCodec
from tests.support import object_graphs, zoo, zoo_objects
from tests.support.canonical import canonical
from tests.support.codec_fuzz import damage
from tests.support.differential import by_pickle, check, sent, through
from tests.support.permissions import IS_FREE_THREADED

PAGES_OF_SLACK = 256  # a MiB


def resident_pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


# Leaks


def parts(obj: Any) -> list[Any]:
    """Return an object and all that it holds, as far as the collector knows."""
    found: dict[int, Any] = {}
    left = [obj]
    while left:
        each = left.pop()
        if id(each) not in found and not isinstance(each, type) and not callable(each):
            found[id(each)] = each
            left += gc.get_referents(each)
    return [*found.values()]


@pytest.mark.parametrize("what", zoo_objects.CASES)
def test_no_reference_is_left_or_lost(what: str, no_gc: None) -> None:
    codec, obj = ObjectCodec(), zoo_objects.CASES[what]()
    check(codec, obj)  # what is made once is made: slot names, caches of classes
    watched = [
        each for each in parts(obj) if type(each).__module__.startswith("tests.")
        or type(each) in (list, dict, set, tuple, bytearray)
    ]  # fmt: skip
    before = [*map(sys.getrefcount, watched)]
    for _ in range(5):
        for frames in [sent(codec, obj) for _ in range(2)]:
            codec.decode(frames)
    del frames
    gc.collect()
    after = [*map(sys.getrefcount, watched)]
    changed = [t for t in zip(watched, before, after, strict=True) if t[1] != t[2]]
    assert not changed, changed[:3]


@pytest.mark.parametrize("what", zoo_objects.CASES)
def test_what_arrives_goes_with_its_last_reference(what: str, no_gc: None) -> None:
    codec = ObjectCodec()
    alive: list[weakref.ref[Any]] = []
    for _ in range(3):
        obj = zoo_objects.CASES[what]()
        alive += weak_references(through(codec, obj)) + weak_references(obj)
        del obj
    gc.collect()
    assert [ref() for ref in alive if ref() is not None] == []


def weak_references(obj: Any) -> list[weakref.ref[Any]]:
    """Return references to the instances that an object has, singletons left out."""
    return [
        weakref.ref(each)
        for each in parts(obj)
        if type(each).__module__ == zoo.__name__
        and type(each).__weakrefoffset__
        and not isinstance(each, enum.Enum)
        and each is not zoo.THE_ONE
    ]


def test_an_object_without_cycles_needs_no_collector(no_gc: None) -> None:
    codec = ObjectCodec()
    for name in ("dataclasses", "bags", "reduce", "getstate", "alike dataclasses"):
        for _ in range(3):
            obj = zoo_objects.CASES[name]()
            alive = weak_references(through(codec, obj)) + weak_references(obj)
            del obj
            assert alive
            assert [ref() for ref in alive if ref() is not None] == []


ROUNDS = 20 if IS_FREE_THREADED else 5
"""(Without the GIL memory is given back later.)"""


def leaks(run: Callable[[], object], times: int, rounds: int = ROUNDS) -> bool:
    """Return whether each call leaves a block of memory, as long as one looks.

    (Free lists and caches come and go, so that a single look proves nothing.)
    """
    blocks = []
    for _ in range(1 + rounds):
        for _ in range(times):
            run()
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    return min(b - a for a, b in itertools.pairwise(blocks)) > 0.9 * times


def test_messages_leave_nothing_behind(no_gc: None) -> None:
    codec = ObjectCodec()
    for name in ("dataclasses", "strings", "many strings", "ints", "setstate", "enums", "sets"):
        obj = zoo_objects.CASES[name]()
        assert not leaks(lambda obj=obj: through(codec, obj), 40), name  # type: ignore[misc]


def test_messages_that_are_always_new_leave_nothing_behind() -> None:
    codec = ObjectCodec()
    number = iter(range(10**9))

    def new() -> None:
        at = next(number)
        names = [f"request-{at}-{i}" for i in range(30)]
        obj = {
            "ids": names,
            "n": [at * 1000 + i for i in range(100)],
            "by": dict.fromkeys(names, at),
        }
        assert through(codec, obj) == obj

    for _ in range(300):
        new()
    before = resident_pages()
    for _ in range(1500):
        new()
    assert resident_pages() - before < PAGES_OF_SLACK


@pytest.mark.parametrize("what", [*zoo_objects.REFUSED, *zoo_objects.UNMADE])
def test_errors_leave_nothing_behind(what: str, no_gc: None) -> None:
    codec = ObjectCodec()
    obj = [
        zoo_objects.CASES["dataclasses"](),
        {**zoo_objects.REFUSED, **zoo_objects.UNMADE}[what](),
    ]

    def fail() -> None:
        try:
            through(codec, obj)
        except Exception:  # noqa: S110 (any: it is compared elsewhere)
            pass
        else:
            pytest.fail("no error")

    assert not leaks(fail, 24)


def test_a_leak_is_found() -> None:
    kept: list[object] = []
    assert leaks(lambda: kept.append(object()), 16)
    assert not leaks(object, 16)


def test_damaged_messages_leave_nothing_behind(no_gc: None) -> None:
    import random

    codec = ObjectCodec()
    whole = sent(
        codec, [zoo_objects.CASES[n]() for n in ("dataclasses", "bags", "enums", "many strings")]
    )
    if whole[0][0] != 0xF5:
        pytest.skip("a pickle")
    damaged = [damage(random.Random(seed), bytearray(whole[0])) for seed in range(50)]  # noqa: S311

    def decode_all() -> None:
        for message in damaged:
            with contextlib.suppress(Exception):
                codec.decode([bytearray(message)])

    assert not leaks(decode_all, 40, 9)  # one of them, say


def test_what_arrives_has_no_part_in_the_memory_of_its_message() -> None:
    # Without a copy a message lies in the writer's arena, which is used again.
    codec = ObjectCodec()
    for name, make in zoo_objects.CASES.items():
        obj = [make(), b"x" * 100_000, bytearray(b"y" * 100_000), "z" * 100_000]
        frames = sent(codec, obj)
        views = [memoryview(frame).toreadonly() for frame in frames]
        got = codec.decode([*views])
        for frame in frames:
            frame[:] = bytes(len(frame))
        got[2][0] = 7
        obj[2][0] = 7
        assert canonical(got) == canonical(by_pickle(obj)), name


def test_a_codec_that_goes_takes_its_caches_with_it(no_gc: None) -> None:
    obj: Any = zoo.Bag(ids=[f"request-{i}" for i in range(100)], n=[*range(10**6, 10**6 + 500)])
    items = [*obj.ids, *obj.n]

    def use() -> None:
        codec = ObjectCodec()
        for _ in range(3):
            check(codec, obj)

    use()
    gc.collect()
    before = [sys.getrefcount(item) for item in items]
    use()
    gc.collect()
    assert [sys.getrefcount(item) for item in items] == before


# What has one reference, and is there twice all the same


class Giver:
    """Its reduction gives away what it alone refers to."""

    def __init__(self) -> None:
        self.own: list[Any] = [[1], {"a": 2}]

    def __reduce__(self) -> Any:
        return list, ([self.own[0], self.own[0], self.own, self.own[1]],)


class GivesParents:
    def __init__(self, parent: Any, how: Callable[[Any], Any]) -> None:
        self.parent, self.how = parent, how

    def __reduce__(self) -> Any:
        return list, (self.how(self.parent),)


WAYS: dict[str, Callable[[Any], Any]] = {
    "its list": lambda parent: [parent.x],
    "its list in a tuple": lambda parent: ((parent.x,), [parent.x]),
    "its dict": lambda parent: [vars(parent)],
    "what is in its list": lambda parent: [*parent.x],
    "what is in its dict": lambda parent: [*parent.y.values()],
    "itself": lambda parent: [parent],
    "all of it": lambda parent: [parent.x, parent.y, parent, *parent.x],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [True, False])
def test_what_a_childs_reduction_gives_away_is_one_object(way: str, first: bool) -> None:
    codec = ObjectCodec()
    for cls in (zoo.Point, zoo.Labelled):
        for _ in range(2):
            parent = cls(x=[[1], {"a": [2]}, zoo.Cell([3])], y={"k": [4], "c": zoo.Bag(a=[5])})
            child = GivesParents(parent, WAYS[way])
            if first:
                obj = [child, parent]
            else:
                parent.z = [child]
                obj = [parent]
            check(codec, obj)
            check(codec, [*obj, *obj, [1]])


def test_an_object_gives_away_what_only_it_has() -> None:
    codec = ObjectCodec()
    for obj in (Giver(), [Giver(), Giver()], [[1], Giver(), zoo.Point(Giver())]):
        check(codec, obj)


def test_an_instances_dict_may_be_sent_beside_it() -> None:
    codec = ObjectCodec()
    classes: tuple[Any, ...] = (zoo.Bag, zoo.Lazy, zoo.Concrete)
    for cls in classes:
        for order in ((0, 1), (1, 0), (0, 1, 0), (1, 0, 1)):
            obj: Any = cls(3) if cls is zoo.Lazy else cls()
            obj.own = [1]
            pair = (obj, vars(obj))
            check(codec, [pair[i] for i in order])
            check(codec, {"a": [pair[i] for i in order], "b": obj.own})
    bag: Any = zoo.Bag(a=1)
    bag.mine = vars(bag)
    check(codec, bag)
    check(codec, [zoo.Bag(), bag, vars(bag)])


class Remembers:
    """Its state is made anew by each call, and what was made before is freed."""

    def __getstate__(self) -> Any:
        return {"fresh": [[1, 2]], "again": [[1, 2]], "tuple": ([3],)}


class Fresh:
    def __reduce__(self) -> Any:
        return list, ([[[1]], [[2]], {"a": []}],)


def test_temporary_objects_are_not_taken_for_one_another() -> None:
    # Freed memory is used again, so that an address is no identity unless what is there is kept.
    codec = ObjectCodec()
    mixed = [x for _ in range(9) for x in (Remembers(), Fresh(), zoo.Parent(), [0])]
    for obj in ([Remembers() for _ in range(30)], [Fresh() for _ in range(30)], mixed):
        check(codec, obj)


def test_temporary_attributes_are_not_taken_for_one_another() -> None:
    class Items(collections.UserList[Any]):
        pass

    globals()["Items"] = Items
    Items.__qualname__ = "Items"
    check(ObjectCodec(), [Items([[i]]) for i in range(30)])


# Numbers that are made again


def keep_some(got: Any, kept: list[Any]) -> None:
    kept.append((got["list"][3], int(str(got["list"][3]))))
    kept.append((got["tuple"], tuple(int(str(n)) for n in got["tuple"])))
    kept.append((dict.fromkeys(got["keys"]), dict.fromkeys(int(str(n)) for n in got["keys"])))
    kept.append((set(got["set"]), {int(str(n)) for n in got["set"]}))
    kept.append((got["p"].x, int(str(got["p"].x))))
    kept.append((frozenset(got["list"][:2]), frozenset(int(str(n)) for n in got["list"][:2])))


def test_a_number_that_is_kept_stays_what_it_is() -> None:
    codec = ObjectCodec()
    kept: list[Any] = []
    for message in range(200):
        base = 1000 + message * 7919
        obj = {
            "list": [base + i for i in range(50)],
            "tuple": tuple(base * 3 + i for i in range(5)),
            "keys": {base + 500 + i: base + i for i in range(20)},
            "set": {base + 900 + i for i in range(20)},
            "p": zoo.Point(base, (base + 1) << 33, -base),
            "negative": [-base - i for i in range(30)],
            "large": [(base + i) << 40 for i in range(30)],
        }
        got = through(codec, obj)
        assert canonical(got) == canonical(obj)
        keep_some(got, kept)
        if message % 3 == 0:
            kept.append((got, by_pickle(got)))
        for is_there, was in kept[-40:]:
            assert canonical(is_there) == canonical(was)
    for is_there, was in kept:
        assert canonical(is_there) == canonical(was)
        if isinstance(is_there, dict):
            assert all(key in is_there for key in is_there)


def test_numbers_are_never_changed_for_python_itself() -> None:
    codec = ObjectCodec()
    for number in (0, 1, -5, 255, 256, 257, 10**6):
        for _ in range(30):
            through(codec, [number, number + 1, [number] * 4, {number: number}])
    assert [int(str(i)) for i in range(-6, 300)] == [*range(-6, 300)]
    assert int("1001") == 1000 + 1


def test_other_numbers_that_a_program_makes_of_them_stay() -> None:
    codec = ObjectCodec()
    made = []
    for message in range(100):
        numbers = through(codec, [message * 1000 + i for i in range(300, 340)])
        # An operation may return its operand: +n, n | 0, max(n, 0), int(n), n.real, operator.index.
        made.append(
            [+numbers[0], numbers[1] | 0, max(numbers[2], 0), int(numbers[3]), numbers[4].real,
             numbers[5].__index__(), slice(numbers[6]).stop, range(numbers[7]).stop,
             zoo.Count(numbers[8]), complex(numbers[9]).real, np.int64(numbers[10]),
             f"{numbers[11]}", iter([numbers[12]]).__next__()]
        )  # fmt: skip
        del numbers
    for message, found in enumerate(made):
        first = message * 1000 + 300
        assert [int(n) for n in found] == [first + i for i in range(13)]


def test_numbers_stay_over_random_messages() -> None:
    codec = ObjectCodec()
    kept = []
    for seed in range(150):
        obj = object_graphs.make(seed)
        got = through(codec, obj)
        kept.append((got, canonical(by_pickle(obj))))
        if seed % 50 == 49:
            for one, expected in kept:
                assert canonical(one) == expected
        del kept[: len(kept) // 20]

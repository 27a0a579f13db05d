"""What a reduction gives is taken, or refused, as pickle does: states, items, what copyreg has."""

from __future__ import annotations

import collections
import copyreg
import functools
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmcast import ObjectCodec, PickleCodec
from tests.support.differential import by_pickle, check, difference, outcome, through
from tests.support.permissions import by_core

STATES: dict[str, Any] = {
    "an empty list": [],
    "zero": 0,
    "an empty string": "",
    "no items": (),
    "False": False,
    "two Nones": (None, None),
    "a list of slots": (None, []),
    "a list and slots": ([], {"slot": 1}),
    "slots that are a list": (None, [1]),
    "None and slots": (None, {"slot": 2}),
    "attributes": {"one": 1},
    "attributes and slots": ({"one": 1}, {"slot": 3}),
    "no attributes": {},
    "keys that are no strings": {1: 2},
}

cloudpickle: Any = pytest.importorskip("cloudpickle")


class Holder:
    """Is reduced to a call and a state."""

    __slots__ = ("__dict__", "slot", "state")

    def __init__(self, state: Any = None) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return Holder, (), self.state


class Stateful:
    """Has a state of its own, and the common way to be given one."""

    def __init__(self, state: Any) -> None:
        self.content = state

    def __getstate__(self) -> Any:
        return self.content


@pytest.mark.parametrize("cls", [Holder, Stateful])
@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_state_is_taken_or_refused_as_by_pickle(cls: Callable[[Any], Any], state: Any) -> None:
    for wrapped in (cls(state), [1, cls(state)]):
        check(ObjectCodec(), wrapped)


class Extended(list[Any]):
    """Tells how it was filled."""

    calls: tuple[int, ...] = ()

    def extend(self, items: Any) -> None:
        self.calls = (*self.calls, len(items))
        super().extend(items)


class Appended:
    """Is filled by one method only."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def append(self, item: Any) -> None:
        self.calls.append(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return Appended, (), None, iter(self.calls)


@pytest.mark.parametrize("count", [0, 1, 2, 999, 1000, 1001, 2500])
def test_items_are_given_so_many_at_once_as_by_pickle(count: int) -> None:
    extended, appended = Extended(range(count)), Appended()
    appended.calls = [*range(count)]
    expected, got = by_pickle([extended, appended]), through(ObjectCodec(), [extended, appended])
    assert got[0].calls == expected[0].calls
    assert got[1].calls == expected[1].calls == appended.calls
    assert got[0] == expected[0] == extended


class Once:
    """Gives its items away, once."""

    def __init__(self) -> None:
        self.items = iter(range(5))

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (), None, self.items


class Moved:
    """Gives its state away, once."""

    def __init__(self, content: Any = None) -> None:
        self.contents = [content]

    def __getstate__(self) -> Any:
        return {"content": self.contents.pop()}


class Slice(list[int]):
    """Shows a walk through it what is left of it."""

    def __iter__(self) -> Any:
        while self:
            yield self.pop()


def in_a_tuple() -> Any:
    ring: Any = ([],)
    ring[0].append(ring)
    return ring


@pytest.mark.parametrize("make", [Once, Moved, lambda: Slice([1, 2, 3])])
def test_what_can_be_reduced_once_only_arrives_whatever_is_beside_it(
    make: Callable[[], Any],
) -> None:
    for beside in (deep, in_a_tuple, lambda: 1, lambda: collections.deque([1]), lambda: Kept()):
        for swapped in (False, True):
            two = [[make(), beside()] for _ in range(2)]
            if swapped:
                two = [pair[::-1] for pair in two]
            codec = ObjectCodec()
            expected = outcome(by_pickle, two[0])
            assert expected[0] == "value"
            assert outcome(lambda obj, codec=codec: through(codec, obj), two[1]) == expected


class Bag:
    """Has whatever attributes it is given."""

    def __init__(self, attributes: dict[Any, Any]) -> None:
        vars(self).update(attributes)


class Named(str):
    """A key that is no plain string."""

    __slots__ = ()


class Mapped(Bag):
    """Has attributes, and among them what pickle would take for a method."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Mapped, ({"__setstate__": vars(self).update},), vars(self)


class Virtual(Bag):
    """Its attributes are where it says."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        return ATTRIBUTES

    def __init__(self, attributes: dict[Any, Any]) -> None:
        self.__dict__.update(attributes)

    def __reduce__(self) -> tuple[Any, ...]:
        return Virtual, ({},), {"virtual": 1}


ATTRIBUTES: dict[str, Any] = {}


@by_core
def test_instances_of_one_class_have_what_attributes_they_like() -> None:
    names = [f"name_{i}" for i in range(6)]
    orders = [Bag({name: [i] for name in names[i:] + names[:i]}) for i in range(6)]
    own = [Bag({f"{name}_{i}": name for name in names}) for i in range(30)]
    shared = Bag({"own": own[3], Named("named"): 1, 5: orders, None: 2})
    codec = ObjectCodec()
    for obj in (orders + own, [shared, own, shared], own[::-1], {"a": shared, "b": Mapped({})}):
        for _ in range(2):
            check(codec, obj)
    got = through(codec, own)
    assert all(key is sys.intern(key) for bag in got for key in vars(bag))
    through(codec, Virtual({}))
    assert ATTRIBUTES == {"virtual": 1}


class Kept:
    """Has no reducer, until a test registers one."""


def deep(depth: int = 1000) -> Any:
    """Return what is left to pickle."""
    obj: Any = {}
    for _ in range(depth // 4):
        obj = [obj]
    return obj


@pytest.fixture
def registered() -> Iterator[Callable[[Any], None]]:
    """Register a reducer of Kept for one test, or another one, or none."""

    def register(reducer: Any) -> None:
        copyreg.dispatch_table.pop(Kept, None)
        if reducer is not None:
            copyreg.pickle(Kept, reducer)

    yield register
    register(None)


@pytest.mark.parametrize("make", [ObjectCodec, PickleCodec])
def test_what_is_registered_holds_at_once_also_behind_pickle(
    make: Callable[[], Any], registered: Callable[[Any], None]
) -> None:
    codec = make()
    reducers = [None, lambda _: (str, ("one",)), lambda _: (str, ("two",)), None]
    for reducer in reducers:
        registered(reducer)
        for obj in (Kept(), [Kept(), deep()], Kept()):
            assert outcome(lambda o: through(codec, o), obj) == outcome(by_pickle, obj)


class Meta(type):
    """Has a reducer in copyreg while a test runs."""


class OfMeta(metaclass=Meta):
    def __init__(self, value: int) -> None:
        self.value = value


class Taken:
    """What a reducer of Meta names."""


def refuse(cls: type) -> Any:
    raise ValueError(f"no {cls.__name__}")


@pytest.mark.parametrize(
    "reducer", [lambda cls: (eval, ("OfMeta if 1 else 0",)), lambda _: "Taken", refuse]
)
def test_a_reducer_of_a_metaclass_is_asked_for_its_classes(reducer: Any) -> None:
    codec = ObjectCodec()
    objects: list[Any] = [OfMeta, OfMeta(1), [OfMeta(2), OfMeta(3), OfMeta], Bag({"a": OfMeta(4)})]
    for entry in (None, reducer, None):
        if entry is not None:
            copyreg.dispatch_table[Meta] = entry
        try:
            for obj in objects * 2:
                check(codec, obj)
        finally:
            copyreg.dispatch_table.pop(Meta, None)


class Ones:
    """Is reduced as a test says."""

    def __init__(self, *_: Any, reduction: Any = None) -> None:
        self.reduction = reduction

    def __reduce__(self) -> Any:
        return self.reduction


def _named(name: str) -> Any:
    def function(*args: Any) -> Any:
        return ["called", *args]

    function.__name__ = name
    return function


@pytest.mark.parametrize(
    "name", ["__newobj__", "__newobj_ex__", "__newobj_", "function", "copyreg", "copyreg_ex"]
)
@pytest.mark.parametrize(
    "args",
    [
        (), (Ones,), (Ones, 1), (list,), (5,), (Ones, (), {}), (Ones, (1,), {"reduction": 2}),
        (Ones, [1], {}), (Ones, (), []), (Ones, ()), (5, (), {}), (Ones, (1,), {"none": 1}),
    ],
    ids=str,
)  # fmt: skip
def test_functions_that_make_instances_are_known_by_their_names(name: str, args: Any) -> None:
    own: Any = {"copyreg": "__newobj__", "copyreg_ex": "__newobj_ex__"}
    function = getattr(copyreg, own[name]) if name in own else _named(name)
    vars(sys.modules[__name__])["function"] = function
    function.__qualname__ = function.__name__ if name in own else "function"
    for reduction in ((function, args), (function, args, {"state": 1}), (Call(name), args)):
        codec, obj = ObjectCodec(), Ones(reduction=reduction)
        for _ in range(2):
            check(codec, obj)
            check(codec, [obj, {"a": obj}])


class Call:
    """Can be called, and has a name of its own."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *args: Any) -> Any:
        return ["called", self.__name__, *args]


@pytest.mark.parametrize("size", [0, 1, 40, 3000, 5000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_buffer_that_is_there_twice_is_one_object_if_it_is_in_the_message(
    kind: Any, size: int
) -> None:
    data = kind(b"x" * size)
    buffer = pickle.PickleBuffer(data)
    for obj in ([buffer, buffer], [buffer, data, (buffer, 1), data], [{"a": buffer}, Bag, buffer]):
        expected = outcome(lambda o: through(PickleCodec(), o), obj)
        got = outcome(lambda o: through(ObjectCodec(), o), obj)
        assert got == expected, difference(expected, got)


def test_a_fallback_takes_what_pickle_refuses_in_a_reduction() -> None:
    codec = ObjectCodec(fallback="cloudpickle")
    refused: list[Any] = [threading, {}.keys(), memoryview(b"view"), property(), classmethod(type)]
    for obj in (*refused, deep.__code__):
        assert outcome(by_pickle, [obj])[0] != "value"
        expected = pickle.loads(cloudpickle.dumps([obj]))  # noqa: S301
        assert type(through(codec, [obj])[0]) is type(expected[0])


class Meddles:
    """Changes the list, the dict or the instance that it is in while it is encoded."""

    def __init__(self, change: Callable[[], Any]) -> None:
        self.change = change

    def __reduce__(self) -> Any:
        self.change()
        return int, (7,)


@by_core
def test_a_parent_arrives_as_it_was_when_a_part_changes_it() -> None:
    codec = ObjectCodec()
    for _ in range(2):
        items: list[Any] = [1]
        items += [Meddles(functools.partial(items.append, 2)), 3]
        assert through(codec, items) == [1, 7, 3]
        pairs: dict[str, Any] = {"a": 1}
        pairs["b"] = Meddles(pairs.clear)
        assert through(codec, pairs) == {"a": 1, "b": 7}
        bag: Any = Bag({"a": 1, "z": 2})
        bag.b = Meddles(functools.partial(vars(bag).update, a=5, c=6))
        assert vars(through(codec, bag)) == {"a": 1, "z": 2, "b": 7}

"""Objects of the zoo's classes and of Python's own: what pickle takes, refuses, and can't rebuild.

Made anew by each call, by what they are.
"""

from __future__ import annotations

import array
import collections
import datetime
import decimal
import fractions
import functools
import math
import operator
import pathlib
import random
import re
import types
import typing
import uuid
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.zoo import (
    HIDDEN,
    THE_ONE,
    Bad,
    Bag,
    Blob,
    Cell,
    Child,
    Colour,
    Concrete,
    Count,
    Data,
    Disguised,
    Edge,
    Failure,
    FalseState,
    Frozen,
    Generic,
    GetState,
    Immutable,
    Items,
    Keyed,
    Labelled,
    Lazy,
    Level,
    Missed,
    Missing,
    Mode,
    MoreSlots,
    MoreTriple,
    Mutable,
    Name,
    NeedsArguments,
    NewArgs,
    NewArgsEx,
    NewTriple,
    Nothing,
    Odd,
    OfMeta,
    OneSlot,
    OnlyGetState,
    OnlySetState,
    Outer,
    Pair,
    Parent,
    Point,
    Raises,
    RaisesInSetState,
    Ratio,
    Reduced,
    ReducedEx,
    ReducedWithState,
    Registered,
    Remade,
    Renamed,
    Row,
    SlotForDict,
    Slots,
    SlotsAndDict,
    Span,
    Strict,
    Table,
    Tags,
    Text,
    Triple,
    TupleState,
    WantsArguments,
    Watched,
    WithItems,
    WithProperty,
    function,
    raising,
)


def filled(obj: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(obj, name, value)
    return obj


def _containers() -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "empties", lambda: [[], {}, (), set(), frozenset(), "", b"", bytearray()]
    yield "a tuple of empties", lambda: ((), ((),), [()] * 5, [[]] * 3, [[] for _ in range(9)])
    yield "nested lists", lambda: [[[i] * 3 for i in range(10)] for _ in range(20)]
    yield "nested dicts", lambda: {"a": {"b": {"c": [{}]}}}
    yield "deep", lambda: _deep(60)
    yield "deeper", lambda: [_deep(250), [_deep(210)], (_deep(199),)]
    yield "keys of many types", lambda: {None: 1, (1,): 2, 1.5: 3, "s": 4, b"b": 5, 7: 6, Pair(): 7}
    yield "int keys", lambda: {i * 37: i * i for i in range(300)}
    yield "one value for all keys", lambda: dict.fromkeys([f"request-{i}" for i in range(50)], 1)
    yield "equal key lists", _equal_key_lists
    yield "long dict", lambda: {f"k{i}": f"v{i}" for i in range(1200)}
    yield "long list", lambda: [*range(2500)]
    yield "sets", lambda: [{1, 2, 3}, {"a", "b"}, frozenset("abc"), {(1, 2), "a", None}]
    yield "a set of objects", lambda: {Keyed(1), Keyed("x"), Span(1, 2)}
    yield "a frozenset in a set", lambda: {frozenset([1, frozenset([2])])}
    yield "a list twice", lambda: [shared := [1], shared, (shared,), {"k": shared}]
    yield "a tuple twice", lambda: [shared := (1, [2]), shared, {"k": shared}]
    yield "a dict twice", lambda: (shared := {"a": 1}, [shared], shared)
    yield "a list in itself", lambda: _in_itself([])
    yield "a dict in itself", _dict_in_itself
    yield "a tuple in itself", _tuple_in_itself
    yield "a frozenset in itself", _frozenset_in_itself


def _deep(depth: int) -> Any:
    return [_deep(depth - 1)] if depth else 0


def _equal_key_lists() -> Any:
    keys = [f"chatcmpl-{i:032x}" for i in range(40)]
    return [keys, dict.fromkeys(keys, 1), dict.fromkeys(keys[3:], 2), {k: [k] for k in keys[::-1]}]


def _in_itself(own: list[Any]) -> Any:
    own.append(own)
    return own


def _dict_in_itself() -> Any:
    own: dict[str, Any] = {"a": []}
    own["self"] = own
    own["a"].append(own)
    return own


def _tuple_in_itself() -> Any:
    own: tuple[Any, ...] = ([], {})
    own[0].append(own)
    own[1]["own"] = own
    return [own, own]


def _frozenset_in_itself() -> Any:
    holder: Any = Bag()
    holder.own = frozenset([holder])
    return holder


def _scalars() -> Iterator[tuple[str, Callable[[], Any]]]:
    edges = [0, 1, 15, 16, 17, 110, 111, 112, 127, 128, 255, 256, 257]
    edges += [2**p + d for p in (15, 16, 30, 31, 32, 60, 63, 64, 100, 2040) for d in (-1, 0, 1)]
    yield "ints", lambda: [sign * n for n in edges for sign in (1, -1)]
    yield "an int for each", lambda: [list(range(-300, 300)), [2**40] * 5, [1, 2, 2**35, 5, 6, 7]]
    yield "ints and bools", lambda: [1, True, 2, False, 1, 2, 3, 4, None, 0, 1, 1]
    yield (
        "runs",
        lambda: [[300] * 10 + [301, 302], [True] * 20, [None] * 20, [1.5] * 20, ["a"] * 20],
    )
    yield "a run of 5000", lambda: [(item := [0])] * 5000 + [item]
    yield "floats", lambda: [0.0, -0.0, 1e300, 5e-324, math.inf, -math.inf, math.nan, 0.1]
    yield "float columns", lambda: [[i / 7 for i in range(50)], [1.0] * 4, [1.0, 2, 3.0, 4.0]]
    yield "complex", lambda: [1 + 2j, -0j, (shared := 3j), shared]
    yield "strings", lambda: [
        "", "a", "ab", "\0", "ä", "äö" * 40, "€" * 3, "\U0001f600", "\ud800", "a\udcff",
        "x" * 254, "x" * 255, "x" * 256, "x" * 70_000, "é" * 300, "€" * 70_000,
    ]  # fmt: skip
    yield "a string column", lambda: ["a", "b", "c", "d", "ä", "e", "f", "g", "h", "a", ""]
    yield "many strings", lambda: [f"k{i}" for i in range(700)] * 2
    yield "bytes", lambda: [
        b"", b"a", b"x" * 255, b"x" * 256, b"x" * 70_000, bytearray(), bytearray(b"abc"),
        bytearray(b"x" * 5000), bytearray(b"y" * 70_000),
    ]  # fmt: skip
    yield "a bytearray twice", lambda: [shared := bytearray(b"ab"), shared]
    yield "singletons", lambda: [None, True, False, Ellipsis, NotImplemented]


def _plain() -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "dataclass", lambda: Point(1, "x", [1, 2, 3])
    yield "dataclasses", lambda: [Point(i, str(i), [i]) for i in range(20)]
    yield (
        "alike dataclasses",
        lambda: [Point(shared := [1], shared), Point(shared, 1), Point(shared)],
    )
    yield "frozen", lambda: [Span(1, (2,)), Span([], None)]
    yield "slots", lambda: [Cell(1, [2]), Cell(), Edge([1], 2), Edge(1, 3)]
    yield "dataclass child", lambda: Labelled(x=1, label="one", tags=[1])
    yield "dataclass tree", lambda: _tree(5)
    yield (
        "a chain of dataclasses",
        lambda: functools.reduce(lambda p, i: Point(i, p), range(150), None),
    )
    yield "a dataclass in itself", lambda: filled(point := Point(), x=[point], y=point)
    yield "slots in themselves", lambda: filled(cell := Cell(), value=cell)
    yield "bags", lambda: [Bag(), Bag(a=1), Bag(a=1, b=2), Bag(b=2, a=1)]
    yield "a bag in itself", lambda: filled(bag := Bag(a=1), own=bag)
    yield "odd attribute names", lambda: [Bag(**{"a b": 1, "": 2, "é": 3}), _int_attribute()]
    yield "more attributes than fields", lambda: [filled(Point(1), more=2), Point(1)]
    yield "fewer attributes than fields", _fewer
    yield "100 attributes", lambda: [Bag(**{f"a{i}": i for i in range(100)}) for _ in range(3)]
    yield "20 shapes", lambda: [Bag(**{f"a{j}": j for j in range(i)}) for i in range(20)]
    yield "unset slots", lambda: [Slots(), filled(Slots(), b=1), filled(Slots(), a=1, b=[2])]
    yield "slots' child", lambda: filled(MoreSlots().hide(3), a=1, c=[2])
    yield "slots and a dict", lambda: filled(SlotsAndDict(), a=5, extra=[1])
    yield (
        "a slot for the dict",
        lambda: [filled(SlotForDict(), a=1, q=2), filled(OneSlot(), only=1)],
    )
    yield "its dict beside it", lambda: [bag := Bag(a=[1]), bag.__dict__, bag]
    yield "its dict before it", lambda: [(bag := Bag(a=[1])).__dict__, bag]
    yield "a dict of two", _one_dict_of_two
    yield "abstract", Concrete
    yield "generic", lambda: Generic([1])
    yield "lazy", lambda: [lazy := Lazy(3), lazy.square, Lazy(4)]
    yield "property", WithProperty
    yield "nested class", lambda: [Outer.Inner(), Outer.Inner]
    yield "metaclass", lambda: [OfMeta(), OfMeta]
    yield "attributes by code", lambda: [filled(Missing(), a=1), filled(Watched(), a=1)]
    yield "no attributes to set", lambda: [Immutable(3), Data()]
    yield "in a cycle of kinds", _cycle_of_kinds


def _tree(depth: int) -> Point:
    return Point(depth, _tree(depth - 1), _tree(depth - 1)) if depth else Point(0)


def _int_attribute() -> Any:
    bag: Any = Bag(a=1)
    bag.__dict__[5] = 6
    return bag


def _fewer() -> Any:
    point = Point(1, 2, 3)
    del point.y
    return [point, Point(1, 2, 3)]


def _one_dict_of_two() -> Any:
    one, other = Bag(a=1), Bag()
    other.__dict__ = one.__dict__
    return [one, other]


def _cycle_of_kinds() -> Any:
    point, cell, bag, items = Point(), Cell(), Bag(items={}), Items()
    point.x, cell.value, vars(bag)["next"] = [cell], (bag, point), {"items": items}
    items.append(point)
    items.own = bag  # type: ignore[attr-defined]
    return {"entry": cell, "again": (point, items)}


def _with_code() -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "getstate", lambda: [GetState(7), OnlyGetState([1])]
    yield "setstate", lambda: [OnlySetState(a=1), OnlySetState()]
    yield "false states", _false_states
    yield "a state of two", TupleState
    yield "newargs", lambda: [NewArgs(1, [2]), NewArgsEx(1, k=[2]), NewArgsEx(k=1), NewArgs()]
    yield "reduce", lambda: [Reduced(1, [2]), Reduced(), ReducedEx([3])]
    yield "reduce in itself", lambda: filled(own := ReducedWithState(), me=own)
    yield "reduced to a name", lambda: [THE_ONE, THE_ONE]
    yield "reduced with items", _with_items
    yield "registered", lambda: [Registered(1), Registered([2])]
    yield "a list given away", _parent
    yield "a list given away before", lambda: [(parent := _parent()).items, parent]
    yield "a list given away and after", lambda: [parent := _parent(), parent.items, parent.child]
    yield (
        "exceptions",
        lambda: [Failure("a", 3), ValueError("x", [1]), KeyError("k"), OSError(2, "no")],
    )
    yield "hashed by code", lambda: {Keyed(1): 2, Keyed("x"): Keyed(1)}
    yield "plain, then code", lambda: [Point(i, [i]) for i in range(5)] + [Reduced(1)] + [[1], {}]
    yield "code in a plain one", lambda: Point([shared := [1]], Reduced(shared), shared)


def _false_states() -> Any:
    states: tuple[Any, ...] = (None, {}, 0, (), [], False, "", {1: 2})
    return [FalseState(state) for state in states]


def _with_items() -> Any:
    obj = WithItems()
    obj.appended, obj.stored, obj.state = [1, [2]], {"a": 1, "b": [obj]}, {"s": 1}
    return [obj, obj]


def _parent() -> Parent:
    parent = Parent()
    parent.child = Child(parent)
    return parent


def _children_of_builtins() -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "list's child", lambda: filled(items := Items([1, 2]), own=items, more=3)
    yield (
        "dict's children",
        lambda: [filled(Table(a=1), more=[1]), Strict(a=1), Missed(a=1), Nothing()],
    )
    yield "tuple's child", lambda: [Row((1, 2)), filled(MoreTriple(1, 2, 3), more=4)]
    yield "scalars' children", lambda: [Count(5), Text("q"), Ratio(1.5), Blob(b"x"), Mutable(b"y")]
    yield "a scalar's child twice", lambda: [tagged := filled(Count(7), tag="t"), tagged, Count(7)]
    yield "sets' children", lambda: [Tags([1]), Frozen([1, 2]), filled(Tags(), more=1)]
    yield (
        "named tuples",
        lambda: [Triple(1, [2], "3"), Pair(), Pair(right=Pair()), NewTriple(1, 2, 3)],
    )
    yield "a named tuple twice", lambda: [triple := Triple(1, 2, 3), triple, Triple(1, 2, 3)]
    yield "a named tuple in itself", lambda: [pair := Pair([], {}), pair.left.append(pair)]
    yield "enums", lambda: [*Colour, *Level, *Mode, *Name, *Odd, Colour.CRIMSON]
    yield "flags", lambda: [Mode.READ | Mode.RUN, ~Mode.READ, Mode(0)]
    yield "enum keys", lambda: {Colour.RED: 1, Level.LOW: [Level.HIGH], Name.ANNA: Name.BOB}


def _library() -> Iterator[tuple[str, Callable[[], Any]]]:
    utc = datetime.timezone.utc
    yield "dates", lambda: [datetime.date(2020, 1, 1), datetime.timedelta(3), datetime.time(1, 2)]
    yield "moments", lambda: [datetime.datetime(2025, 1, 2, 3, 4, 5, 6, utc), utc]
    yield "numbers", lambda: [decimal.Decimal("1.25"), fractions.Fraction(1, 3)]
    yield "uuid", lambda: [uuid.UUID(int=5)]
    yield "paths", lambda: [pathlib.PurePosixPath("/a/b"), pathlib.PurePosixPath("c")]
    yield "deques", lambda: [collections.deque([1, [2]], 5), collections.deque()]
    yield "ordered dict", lambda: _reordered(collections.OrderedDict(a=1, b=[2], c=3))
    yield "counter", lambda: [collections.Counter("aab"), collections.ChainMap({1: 2}, {3: 4})]
    yield "defaultdict", lambda: collections.defaultdict(list, a=[1])
    yield "ranges", lambda: [range(5), range(1, 9, 2), slice(1, 2, [3])]
    yield "namespace", lambda: types.SimpleNamespace(a=1, b=[2])
    yield "arrays", lambda: [array.array("q", [1, -2]), array.array("d", [1.5]), array.array("B")]
    yield "an array twice", lambda: [shared := array.array("i", range(3000)), shared]
    yield "by name", lambda: [function, len, math.sin, int, Point, Colour, Any, operator.add]
    yield "methods", lambda: [[1].append, "a".join, Concrete().run, dict.fromkeys, Point.__eq__]
    yield "partial", lambda: functools.partial(function, [1])
    yield "getters", lambda: [operator.itemgetter(1, 2), operator.attrgetter("a.b")]
    yield (
        "iterators",
        lambda: [iter([1, 2]), iter("ab"), iter({1: 2}), zip([1], [2], strict=True), map(abs, [1])],
    )
    yield "patterns", lambda: [re.compile("a+", re.IGNORECASE)]
    yield "random", lambda: random.Random(3)  # noqa: S311
    yield "aliases", lambda: [list[int], dict[str, Any], int | None, typing.Optional[int]]  # noqa: UP045


def _reordered(obj: Any) -> Any:
    obj.move_to_end("a")
    return obj


CASES: dict[str, Callable[[], Any]] = {
    name: make
    for group in (_containers, _scalars, _plain, _with_code, _children_of_builtins, _library)
    for name, make in group()
}
"""Objects that pickle takes, by what they are; made anew by each call."""


def by_name_only() -> Any:
    class Local:
        pass

    return Local


REFUSED: dict[str, Callable[[], Any]] = {
    "a lambda": lambda: lambda: 1,
    "a local class": by_name_only,
    "an object of a local class": lambda: by_name_only()(),
    "a generator": lambda: (i for i in range(0)),
    "a module in a list": lambda: [1, [re]],
    "a frame": lambda: __import__("sys")._getframe(),
    "a weak reference": lambda: weakref.ref(Colour),
    "deep down": lambda: Point([Cell(1, {"a": (lambda: 3)})]),
    "after much": lambda: [*({"a": [i], "p": Point(i)} for i in range(50)), lambda: 1],
    "a class in disguise": Disguised,
    "a class that is not found": Renamed,
    "a class that another shadows": HIDDEN,
    "that class itself": lambda: [HIDDEN],
    "a reduction that raises": lambda: [Raises(RuntimeError, "not me")],
    "a reduction that is a number": lambda: Bad(5),
    "a short reduction": lambda: Bad((dict,)),
    "a long reduction": lambda: Bad((dict, (), None, None, None, None, None)),
    "a reduction by no callable": lambda: Bad((5, ())),
    "a reduction of no tuple": lambda: Bad((dict, [])),
    "a reduction to an unknown name": lambda: Bad("no_such_name"),
    "a reduction with no iterator": lambda: Bad((list, (), None, 5)),
    "newargs that are none": lambda: _bad_newargs(),
    "slots without a state": lambda: memoryview(b"ab"),
}
"""Objects that pickle refuses."""


def _bad_newargs() -> Any:
    class_ = type(
        "NewArgsOfAList", (), {"__getnewargs__": lambda _self: [1], "__module__": __name__}
    )
    globals()["NewArgsOfAList"] = class_
    return class_()


UNMADE: dict[str, Callable[[], Any]] = {
    "a reduction whose function raises": lambda: [1, Bad((raising, ("on arrival",)))],
    "a state that is refused": lambda: [RaisesInSetState()],
    "a class that wants arguments": lambda: object.__new__(NeedsArguments),
    "an exception that wants arguments": lambda: _wants_arguments(),
    "a key that has no hash": lambda: Remade(lambda: (dict, (), None, None, iter([([], 1)]))),
    "no attribute to set": lambda: Bad((object, (), {"a": 1})),
    "no append": lambda: Remade(lambda: (object, (), None, iter([1]))),
}
"""Objects that pickle takes and that can't be made where they arrive."""


def _wants_arguments() -> Any:
    return WantsArguments(1, 2)

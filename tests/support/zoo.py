"""Classes of many kinds, as programs have them, and an object or two of each.

Knows: how objects say how they are pickled. Imports nothing that a bare Python lacks, because the
fuzzer runs it on each of them.
"""

from __future__ import annotations

import abc
import array
import collections
import copyreg
import datetime
import decimal
import enum
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
from dataclasses import dataclass, field
from typing import Any

# Plain ones: what they hold is all that they are.


@dataclass
class Point:
    x: Any = None
    y: Any = None
    z: Any = None


@dataclass(frozen=True)
class Span:
    start: Any = None
    stop: Any = None


@dataclass(slots=True)
class Cell:
    key: Any = None
    value: Any = None


@dataclass(slots=True, frozen=True)
class Edge:
    source: Any = None
    target: Any = None


@dataclass(kw_only=True, order=True)
class Labelled(Point):
    label: str = ""
    tags: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.was_made = True


class Bag:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Slots:
    __slots__ = ("a", "b")


class MoreSlots(Slots):
    __slots__ = ("__hidden", "c")

    def hide(self, value: Any) -> MoreSlots:
        self.__hidden = value
        return self


class SlotsAndDict(Slots):
    pass


class SlotForDict:
    __slots__ = ("__dict__", "__weakref__", "a")


class OneSlot:
    __slots__ = "only"


class Abstract(abc.ABC):
    @abc.abstractmethod
    def run(self) -> None: ...


class Concrete(Abstract):
    def __init__(self) -> None:
        self.state = {"a": 1}

    def run(self) -> None: ...


T = typing.TypeVar("T")


class Generic(typing.Generic[T]):
    def __init__(self, item: T) -> None:
        self.item = item


class Lazy:
    def __init__(self, number: int) -> None:
        self.number = number

    @functools.cached_property
    def square(self) -> int:
        return self.number**2


class WithProperty:
    def __init__(self) -> None:
        self._value = 3

    @property
    def value(self) -> int:
        return self._value


class Outer:
    class Inner:
        def __init__(self) -> None:
            self.deep = (1, 2)


class Meta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made.by_meta = True
        return made


class OfMeta(metaclass=Meta):
    pass


# Those that stand in the way of a look at their attributes.


class Missing:
    """Answers for any attribute that has no leading underscore."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return name.upper()


class Watched:
    """Its own `__getattribute__`."""

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)


class Immutable:
    def __init__(self, value: Any) -> None:
        self.__dict__["value"] = value

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} is for ever")


class Data:
    """A descriptor that has an attribute's name."""

    def __init__(self) -> None:
        self.__dict__["kept"] = 5

    @property
    def kept(self) -> Any:
        return self.__dict__["kept"]

    @kept.setter
    def kept(self, value: Any) -> None:
        raise AssertionError(f"pickle sets {value} in __dict__")


# Those that say what they are.


class GetState:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __getstate__(self) -> Any:
        return {"only": self.value}

    def __setstate__(self, state: Any) -> None:
        self.value = state["only"]


class OnlyGetState:
    def __init__(self, value: Any = None) -> None:
        self.value, self.cache = value, object()

    def __getstate__(self) -> Any:
        return {"value": self.value, "cache": None}


class OnlySetState:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, restored=True)


class FalseState:
    """A state that counts as false: pickle calls no `__setstate__` for None alone."""

    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state

    def __setstate__(self, state: Any) -> None:
        self.state = ("set", state)


class TupleState:
    def __init__(self) -> None:
        self.a = 1

    def __getstate__(self) -> Any:
        return ({"a": 7}, {"b": 8})


class NewArgs:
    def __new__(cls, *args: Any) -> NewArgs:
        made = super().__new__(cls)
        made.args = args
        return made

    args: tuple[Any, ...]

    def __getnewargs__(self) -> tuple[Any, ...]:
        return self.args


class NewArgsEx:
    def __new__(cls, *args: Any, **named: Any) -> NewArgsEx:
        made = super().__new__(cls)
        made.args, made.named = args, named
        return made

    args: tuple[Any, ...]
    named: dict[str, Any]

    def __getnewargs_ex__(self) -> Any:
        return self.args, self.named


class Reduced:
    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return Reduced, self.args


class ReducedWithState:
    def __reduce__(self) -> Any:
        return ReducedWithState, (), self.__dict__


class ReducedEx:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: typing.SupportsIndex) -> Any:
        return ReducedEx, ((self.value, int(protocol)),)


class ReducedToName:
    """A singleton: its reduction is the name by which it is found."""

    def __reduce__(self) -> str:
        return "THE_ONE"


THE_ONE = ReducedToName()


class WithItems:
    """Its reduction has elements, items and a setter of its state."""

    def __init__(self) -> None:
        self.appended: list[Any] = []
        self.stored: dict[Any, Any] = {}
        self.state: Any = None

    def append(self, item: Any) -> None:
        self.appended.append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.stored[key] = value

    def __reduce__(self) -> Any:
        items, pairs = iter(self.appended), iter(self.stored.items())
        return WithItems, (), self.state, items, pairs, set_state


def set_state(obj: WithItems, state: Any) -> None:
    obj.state = ("by the setter", state)


class Registered:
    def __init__(self, value: Any) -> None:
        self.value = value


def reduce_registered(obj: Registered) -> Any:
    return Registered, (obj.value,)


copyreg.pickle(Registered, reduce_registered)


class Parent:
    """Its child's reduction gives a list away that is the parent's."""

    def __init__(self) -> None:
        self.items: list[Any] = [1, [2], "three"]
        self.child: Any = None


class Child:
    def __init__(self, parent: Any, items: Any = None) -> None:
        self.parent, self.items = parent, items

    def __reduce__(self) -> Any:
        return make_child, (self.parent.items,)


def make_child(items: Any) -> Child:
    return Child(None, items)


class Failure(Exception):
    def __init__(self, what: Any, code: int = 2) -> None:
        super().__init__(what)
        self.code = code


class Keyed:
    """A key by value, whose hash is code."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyed) and other.key == self.key


# Builtins' children.


class Items(list[Any]):
    pass


class Table(dict[Any, Any]):
    pass


class Strict(dict[Any, Any]):
    """Its items are set by code."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, ("set", value))


class Row(tuple[Any, ...]):
    __slots__ = ()


class Count(int):
    pass


class Text(str):
    pass


class Ratio(float):
    pass


class Blob(bytes):
    pass


class Mutable(bytearray):
    pass


class Tags(set[Any]):
    pass


class Frozen(frozenset[Any]):
    pass


class Nothing(dict[Any, Any]):
    __slots__ = ()


class Missed(dict[Any, Any]):
    def __missing__(self, key: Any) -> Any:
        return key


Triple = collections.namedtuple("Triple", "a b c")


class Pair(typing.NamedTuple):
    left: Any = 1
    right: Any = None


class MoreTriple(Triple):
    pass


class NewTriple(Triple):
    __slots__ = ()

    def __new__(cls, a: Any, b: Any, c: Any) -> NewTriple:
        return super().__new__(cls, a, b, (c,))

    def __getnewargs__(self) -> Any:
        return self[0], self[1], self[2][0]


class Colour(enum.Enum):
    RED = 1
    GREEN = "two"
    BLUE = (1, 2)
    CRIMSON = 1  # noqa: PIE796 (another name)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mode(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Name(str, enum.Enum):
    ANNA = "anna"
    BOB = "bob"


class Odd(enum.Enum):
    """An enum with a reduction of its own."""

    ONE = 1
    TWO = 2

    def __reduce_ex__(self, protocol: object) -> Any:
        return getattr, (Odd, self.name)


def function(value: Any) -> Any:
    return value


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


class Raises:
    """Its reduction raises."""

    def __init__(self, error: type[Exception], text: str) -> None:
        self.error, self.text = error, text

    def __reduce__(self) -> Any:
        raise self.error(self.text)


class Bad:
    """Its reduction is none."""

    def __init__(self, reduction: Any) -> None:
        self.reduction = reduction

    def __reduce__(self) -> Any:
        return self.reduction


class Remade:
    """Its reduction is made by each call."""

    def __init__(self, reduce: Callable[[], Any]) -> None:
        self.reduce = reduce

    def __reduce__(self) -> Any:
        return self.reduce()


class Disguised:
    """Says that it is something else."""

    __class__ = property(lambda _self: int)


class Renamed:
    """Not found by its name."""


Renamed.__qualname__ = "NoSuchName"


class Shadowed:
    """Another class has its name."""


_hidden = Shadowed


class Shadowed:  # type: ignore[no-redef]
    pass


def raising(message: str) -> Any:
    raise ValueError(message)


class RaisesInSetState:
    def __init__(self) -> None:
        self.a = 1

    def __setstate__(self, state: Any) -> None:
        raise KeyError("state")


class NeedsArguments:
    def __new__(cls, needed: Any) -> NeedsArguments:
        return super().__new__(cls)


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
    "a class that another shadows": _hidden,
    "that class itself": lambda: [_hidden],
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


class WantsArguments(Exception):
    def __init__(self, one: Any, two: Any) -> None:
        super().__init__(one)


def _wants_arguments() -> Any:
    return WantsArguments(1, 2)

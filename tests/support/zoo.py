"""Classes of many kinds, as programs have them: `zoo_objects` has an object or two of each.

Knows: how objects say how they are pickled. Imports nothing that a bare Python lacks, because the
fuzzer runs it on each of them.
"""

from __future__ import annotations

import abc
import collections
import copyreg
import enum
import functools
import typing
from collections.abc import Callable
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


HIDDEN = Shadowed


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


class WantsArguments(Exception):
    def __init__(self, one: Any, two: Any) -> None:
        super().__init__(one)

"""Objects made at random: of the kinds of `zoo`, shared, nested and in cycles, from a seed."""

from __future__ import annotations

import array
import collections
import random
from collections.abc import Callable
from typing import Any

from tests.support import zoo, zoo_objects

_DEEPEST = 5
_LENGTHS = (0, 1, 2, 3, 3, 4, 5, 8, 20)
_STRINGS = ("", "a", "id", "step", "é", "€uro", "\U0001f600", "\0", "temperature")


def make(seed: int) -> Any:
    """Return the object of a seed. In two of three no code runs when it is pickled."""
    return _Maker(random.Random(seed)).make()  # noqa: S311 (the same for each seed)


class _Maker:
    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._made: list[Any] = []
        self._column = [
            f"request-{chance.getrandbits(64):016x}" for _ in range(chance.choice(_LENGTHS))
        ]
        self._is_plain = bool(chance.randrange(3))
        self._left = chance.choice((10, 40, 40, 150))

    def make(self) -> Any:
        made = self._container(0)
        for _ in range(self._chance.randrange(3)):
            self._tie()
        return made

    def _any(self, depth: int) -> Any:
        chance = self._chance
        self._left -= 1
        kind = chance.random()
        if self._made and kind < 0.1:
            return chance.choice(self._made)
        if depth > _DEEPEST or kind < 0.4 or self._left < 0:
            return self._scalar()
        return self._container(depth)

    def _container(self, depth: int) -> Any:
        chance = self._chance
        ways = _PLAIN if self._is_plain or chance.randrange(3) else _BY_CODE
        made = chance.choice(ways)(self, depth + 1)
        self._made.append(made)
        return made

    def some(self, depth: int) -> list[Any]:
        """Return a few objects."""
        return [self._any(depth) for _ in range(self._chance.choice(_LENGTHS))]

    def one(self, depth: int) -> Any:
        """Return an object."""
        return self._any(depth)

    def column(self) -> list[Any]:
        """Return what lists of one kind have: numbers alike, strings again, runs."""
        chance = self._chance
        length = chance.choice(_LENGTHS) * 2
        match chance.randrange(8):
            case 0:
                return [*self._column]
            case 1:
                first = chance.randrange(3)
                return self._column[first:] + [self._string() for _ in range(first)]
            case 2:
                most = 10 ** chance.randint(1, 19)
                return [chance.randint(-most, most) for _ in range(length)]
            case 3:
                return [chance.random() for _ in range(length)]
            case 4:
                return [self._scalar()] * length
            case 5:
                return [self._string() for _ in range(length)]
            case 6:
                return [chance.choice((None, True, 0, 1.0, 70_000, "a")) for _ in range(length)]
            case _:
                return [chance.randrange(5) for _ in range(length)]

    def hashable(self) -> Any:
        """Return a key."""
        chance = self._chance
        match chance.randrange(6):
            case 0:
                return self._scalar_with_a_value()
            case 1:
                return (chance.randrange(9), self._string())
            case 2:
                return chance.choice([*zoo.Colour])
            case 3:
                return zoo.Span(chance.randrange(4), None)
            case 4:
                return frozenset((chance.randrange(9), "x"))
            case _:
                return self._string()

    def names(self) -> list[str]:
        """Return names of attributes, of few sets of them."""
        chance = self._chance
        names = ["a", "b", "c", "d", "e"]
        if chance.randrange(4) == 0:
            chance.shuffle(names)
        return names[: chance.randrange(6)]

    def _string(self) -> str:
        chance = self._chance
        match chance.randrange(6):
            case 0:
                return "x" * chance.randrange(300)
            case 1 if self._column:
                return chance.choice(self._column)
            case 2:
                return f"n{chance.randrange(50)}"
            case 3:
                return chr(
                    chance.choice((0x80, 0x3B1, 0x4E00, 0x10000, 0xD800))
                ) * chance.randrange(40)
            case _:
                return chance.choice(_STRINGS)

    def _scalar_with_a_value(self) -> Any:
        chance = self._chance
        match chance.randrange(7):
            case 0:
                return chance.randint(-20, 300)
            case 1:
                return chance.randint(-(2**40), 2**40)
            case 2:
                return chance.randint(-1, 1) * 2 ** chance.randrange(200) + chance.randint(-1, 1)
            case 3:
                return bytes(chance.randrange(40))
            case 4:
                return chance.randrange(100) / 4
            case _:
                return self._string()

    def _scalar(self) -> Any:
        chance = self._chance
        match chance.randrange(8):
            case 0:
                return None
            case 1:
                return bool(chance.randrange(2))
            case 2:
                return chance.choice((*zoo.Colour, *zoo.Level, zoo.Mode.READ))
            case 3:
                return chance.choice((0.0, -0.0, 1e300, float("inf"), float("nan"), ()))
            case _:
                return self._scalar_with_a_value()

    def _tie(self) -> None:
        """Put an object into another one that was made before or after it."""
        if not self._made:
            return
        chance = self._chance
        into, what = chance.choice(self._made), chance.choice(self._made)
        if type(into) in (list, zoo.Items):
            into.append(what)
        elif type(into) in (dict, zoo.Table):
            into[chance.randrange(5)] = what
        elif type(into) is zoo.Point:
            into.y = what
        elif type(into) is zoo.Cell:
            into.value = what
        elif type(into) is zoo.Bag:
            vars(into)["tied"] = what
        elif type(into) is zoo.GetState:
            into.value = what


_Way = Callable[[_Maker, int], Any]


def _alike(maker: _Maker, depth: int) -> Any:
    """Return instances which have most fields in common, as requests have."""
    shared = maker.one(depth)
    cls: Any = (zoo.Point, zoo.Cell, zoo.Edge)[len(maker.names()) % 3]
    fields = ("x", "y") if cls is zoo.Point else cls.__slots__
    return [cls(**dict(zip(fields, (item, shared), strict=True))) for item in maker.column()[:12]]


def _bags(maker: _Maker, depth: int) -> Any:
    return [zoo.Bag(**{n: maker.one(depth) for n in maker.names()}) for _ in maker.column()[:6]]


def _slots(maker: _Maker, depth: int) -> Any:
    made = zoo.MoreSlots().hide(maker.one(depth))
    for name in "abc"[: len(maker.names())]:
        setattr(made, name, maker.one(depth))
    return made


def _table(maker: _Maker, depth: int) -> Any:
    return {maker.hashable(): item for item in maker.some(depth)}


_PLAIN: tuple[_Way, ...] = (
    lambda maker, depth: maker.some(depth),
    lambda maker, depth: maker.some(depth),
    lambda maker, depth: tuple(maker.some(depth)),
    lambda maker, depth: maker.column(),
    lambda maker, depth: tuple(maker.column()),
    lambda maker, depth: [maker.column() for _ in range(3)],
    _table,
    _table,
    lambda maker, depth: {str(key): maker.one(depth) for key in maker.column()},
    lambda maker, depth: dict.fromkeys(map(str, maker.column()), maker.one(depth)),
    lambda maker, depth: {maker.hashable() for _ in maker.column()},
    lambda maker, depth: frozenset(map(str, maker.column())),
    lambda maker, depth: bytearray(len(maker.column())),
    lambda maker, depth: array.array("q", range(len(maker.column()))),
    lambda maker, depth: zoo.Point(maker.one(depth), maker.one(depth), maker.one(depth)),
    lambda maker, depth: zoo.Span(maker.one(depth), maker.one(depth)),
    lambda maker, depth: zoo.Cell(maker.one(depth), maker.one(depth)),
    lambda maker, depth: zoo.Edge(maker.one(depth), maker.one(depth)),
    lambda maker, depth: zoo.Labelled(maker.one(depth), label="l", tags=maker.column()),
    lambda maker, depth: zoo.Bag(**{name: maker.one(depth) for name in maker.names()}),
    lambda maker, depth: zoo.Triple(maker.one(depth), maker.one(depth), maker.one(depth)),
    lambda maker, depth: zoo.Pair(maker.one(depth), maker.one(depth)),
    _alike,
    _alike,
    _bags,
    _slots,
)

_BY_CODE: tuple[_Way, ...] = (
    lambda maker, depth: zoo.GetState(maker.one(depth)),
    lambda maker, depth: zoo.OnlySetState(a=maker.one(depth)),
    lambda maker, depth: zoo.Reduced(maker.one(depth), maker.one(depth)),
    lambda maker, depth: zoo.ReducedEx(maker.one(depth)),
    lambda maker, depth: zoo.Registered(maker.one(depth)),
    lambda maker, depth: zoo.NewArgs(maker.one(depth)),
    lambda maker, depth: zoo.Items(maker.some(depth)),
    lambda maker, depth: zoo.Table(_table(maker, depth)),
    lambda maker, depth: zoo_objects.filled(zoo.Count(maker.one(99) is None), tag=maker.one(depth)),
    lambda maker, depth: zoo.NewTriple(maker.one(depth), 2, 3),
    lambda maker, depth: zoo.Failure(maker.one(depth)),
    lambda maker, depth: zoo.Parent(),
    lambda maker, depth: zoo.Child(zoo.Parent()),
    lambda maker, depth: [parent := zoo.Parent(), zoo.Child(parent), parent.items],
    lambda maker, depth: [bag := zoo.Bag(a=maker.one(depth)), vars(bag)],
    lambda maker, depth: collections.OrderedDict(a=maker.one(depth)),
    lambda maker, depth: collections.deque(maker.some(depth), 30),
    lambda maker, depth: collections.defaultdict(list, a=maker.one(depth)),
    lambda maker, depth: complex(0, len(maker.column())),
    lambda maker, depth: [zoo.function, zoo.Point, len],
)

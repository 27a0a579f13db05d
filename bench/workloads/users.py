"""Objects as programs of all kinds send them: for a codec, which has to be good at more than steps.

Made up from a seed, the same in each process.
"""

from __future__ import annotations

import collections
import copyreg
import datetime
import decimal
import enum
import random
import string
import typing
import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Node:
    """A dataclass, of a tree for instance."""

    number: Any
    left: Any = None
    right: Any = None


@dataclass(slots=True)
class Slotted:
    """A dataclass with slots."""

    key: Any
    value: Any


@dataclass(slots=True, frozen=True)
class FrozenSlotted:
    """A frozen dataclass with slots."""

    key: Any
    value: Any


class Stateful:
    """Says what its state is."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __getstate__(self) -> Any:
        return {"v": self.value}

    def __setstate__(self, state: Any) -> None:
        self.value = state["v"]

    def __repr__(self) -> str:
        return f"Stateful({self.value!r})"


class Reduced:
    """Says how it is made."""

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __reduce__(self) -> Any:
        return Reduced, self.args

    def __repr__(self) -> str:
        return f"Reduced{self.args!r}"


class Registered:
    """Has a reducer that is registered with `copyreg`."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"Registered({self.value!r})"


def _reduce_registered(obj: Registered) -> Any:
    return Registered, (obj.value,)


copyreg.pickle(Registered, _reduce_registered)


class Items(list[Any]):
    """A list's child."""


class Table(dict[Any, Any]):
    """A dict's child."""


class Point(typing.NamedTuple):
    """A named tuple."""

    x: Any
    y: Any
    z: Any = None


class State(enum.Enum):
    """An enum."""

    WAITING = 1
    RUNNING = 2
    FINISHED = "done"


def function(value: Any) -> Any:
    """Stand for the functions that are sent by name."""
    return value


def _words(chance: random.Random, count: int) -> list[str]:
    letters = string.ascii_lowercase
    return ["".join(chance.choices(letters, k=chance.randint(3, 12))) for _ in range(count)]


def _records(chance: random.Random, count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "name": " ".join(_words(chance, 2)),
            "tags": _words(chance, 3),
            "score": chance.random(),
            "active": bool(number % 2),
            "address": {"street": _words(chance, 1)[0], "geo": [chance.random(), chance.random()]},
        }
        for number in range(count)
    ]


def _tree(depth: int) -> Node:
    return Node(depth, _tree(depth - 1), _tree(depth - 1)) if depth else Node(0)


def _mixed(chance: random.Random) -> dict[str, Any]:
    return {
        "step": 1,
        "nodes": [Node(i, str(i), {"k": [i, i + 1], "t": (i,)}) for i in range(20)],
        "state": State.RUNNING,
        "when": datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc),
        "array": np.arange(10),
        "set": {1, 2, 3},
        "point": Point(1, 2, 3),
        "reduced": Reduced(1),
        "text": "é" * 50,
        "words": _words(chance, 20),
    }


def _plain(chance: random.Random) -> dict[str, Any]:
    return {
        "None": None,
        "int": 5,
        "str": "hello",
        "small tuple": (1, "a", None, 2.5),
        "record": _records(chance, 1)[0],
        "30 records": _records(chance, 30),
        "100 strings not ASCII": [word + "é" for word in _words(chance, 100)],
        "text of 100 KB": "x y " * 25_000,
        "bytes of 1 MB": b"ab" * 500_000,
        "1000 floats": [chance.random() for _ in range(1000)],
        "1000 ints": [chance.randint(0, 10**6) for _ in range(1000)],
        "200 large ints": [chance.getrandbits(100) for _ in range(200)],
        "1000 bools": [bool(chance.getrandbits(1)) for _ in range(1000)],
        "1000 ints by int": {i: i * 3 for i in range(1000)},
        "500 floats by str": {word: chance.random() for word in _words(chance, 500)},
        "set of 500 ints": {*range(0, 100_000, 200)},
        "set of 200 strings": {*_words(chance, 200)},
        "500 tuples": [(i, str(i), i * 0.5) for i in range(500)],
        "200 lists in lists": [[[i] * 3 for i in range(10)] for _ in range(20)],
        "500 empty lists": [[] for _ in range(500)],
        "one list 100 times": [[1, 2, 3]] * 100,
    }


def _classes() -> dict[str, Any]:
    states = [*State]
    return {
        "dataclass": Node(1, "x", [1]),
        "100 dataclasses": [Node(i, str(i)) for i in range(100)],
        "tree of 127 dataclasses": _tree(6),
        "100 with slots": [Slotted(i, "x") for i in range(100)],
        "100 frozen with slots": [FrozenSlotted(i, "x") for i in range(100)],
        "100 named tuples": [Point(i, "x") for i in range(100)],
        "100 enums": [states[i % 3] for i in range(100)],
        "100 with a state": [Stateful(i) for i in range(100)],
        "100 reduced": [Reduced(i, "x") for i in range(100)],
        "100 registered": [Registered(i) for i in range(100)],
        "list's child": Items(range(100)),
        "dict's child": Table({str(i): i for i in range(100)}),
    }


def _library(chance: random.Random) -> dict[str, Any]:
    day, hour = datetime.datetime(2025, 1, 1), datetime.timedelta(hours=1)
    return {
        "100 datetimes": [day + i * hour for i in range(100)],
        "50 decimals": [decimal.Decimal(i) / 7 for i in range(50)],
        "50 UUIDs": [uuid.UUID(int=chance.getrandbits(128)) for _ in range(50)],
        "counter": collections.Counter(_words(chance, 100)),
        "deque": collections.deque(range(100), 200),
        "50 numpy scalars": [np.float64(i) for i in range(50)],
        "20 small arrays": [np.arange(8) for _ in range(20)],
        "array of 64 KB": np.arange(8192.0),
        "exception": ValueError("x", 1),
        "names": [function, len, int, Node],
        "all kinds": _mixed(chance),
    }


def _always_new(chance: random.Random) -> dict[str, list[Any]]:
    """Return messages of which each has other strings and numbers than those before it."""
    return {
        "300 new strings": [_words(chance, 300) for _ in range(_MANY)],
        "5000 new strings": [_words(chance, 5000) for _ in range(_MANY)],
        "300 new ids": [
            [f"request-{chance.getrandbits(64):x}" for _ in range(300)] for _ in range(_MANY)
        ],
        "10 new records": [_records(chance, 10) for _ in range(_MANY)],
        "100 new dataclasses": [
            [Node(chance.getrandbits(40), word, [chance.random()]) for word in _words(chance, 100)]
            for _ in range(_MANY)
        ],
    }


_MANY = 40
"""More messages than any codec remembers."""


def messages() -> dict[str, list[Any]]:
    """Return messages by what they are: one object that is sent again and again, or many."""
    chance = random.Random(1)  # noqa: S311 (the same in each process)
    objects = _plain(chance) | _classes() | _library(chance)
    return {name: [obj] for name, obj in objects.items()} | _always_new(chance)

"""The error of `send` says which part of an object pickle refuses, in the words of Python."""

from __future__ import annotations

import collections
import functools
import signal
import threading
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest

import shmcast
from shmcast import Writer
from shmcast._codecs import unpicklable

LOCK = threading.Lock()


@dataclass
class Request:
    lock: Any = None
    hook: Any = None


@dataclass(slots=True)
class Slotted:
    lock: Any = None


@dataclass
class Step:
    requests: Any = None
    table: dict[Any, Any] = field(default_factory=dict)

    @property
    def costly(self) -> Any:
        raise AssertionError("a property is code of the user")


class Named(NamedTuple):
    first: int
    second: Any


class Items(list[Any]):
    pass


class Table(dict[Any, Any]):
    pass


class State:
    def __getstate__(self) -> Any:
        return {"kept": [threading.Lock()]}


class Reduced:
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def __reduce__(self) -> Any:
        return Reduced, (1, self.handle)


class Made:
    def __reduce__(self) -> Any:
        return Made, (1, [threading.Lock()])


class Key:
    def __repr__(self) -> str:
        raise AssertionError("a key's repr is code of the user")


def local() -> Any:
    class Local:
        pass

    return Local()


def in_a_cycle() -> Step:
    step = Step()
    step.requests = [step, {"of": step}, Request(LOCK)]
    return step


def nested(depth: int) -> Any:
    obj: Any = [LOCK]
    for _ in range(depth):
        obj = [obj]
    return obj


PATHS: dict[str, tuple[Callable[[], Any], str]] = {
    "an attribute": (lambda: Step([1, 2, 3, Request(LOCK)]), "Step.requests[3].lock"),
    "a slot": (lambda: Step((Slotted(LOCK),)), "Step.requests[0].lock"),
    "a named tuple's": (lambda: [Named(1, LOCK)], "list[0].second"),
    "an item": (lambda: {"a": [{1: LOCK}]}, "dict['a'][0][1]"),
    "an attribute that is no identifier": (
        lambda: types.SimpleNamespace(**{"a b": LOCK}),
        "SimpleNamespace.__dict__['a b']",
    ),
    "the value of an object": (lambda: {"a": {Key(): LOCK}}, "list(dict['a'].values())[0]"),
    "a key": (lambda: {"a": {0: 1, (1, LOCK): 2}}, "list(dict['a'])[1][1]"),
    "an element of a set": (lambda: Step({LOCK}), "list(Step.requests)[0]"),
    "an element of a subclass": (lambda: Items([1, Request(LOCK)]), "Items[1].lock"),
    "an item of a subclass": (lambda: [Table(a=1, b=Request(LOCK))], "list[0]['b'].lock"),
    "an item of an ordered dict": (lambda: collections.OrderedDict(a=LOCK), "OrderedDict['a']"),
    "what __getstate__ made": (lambda: Step(State()), "Step.requests.__getstate__()['kept'][0]"),
    "an attribute that is reduced": (lambda: [Reduced(LOCK)], "list[0].handle"),
    "an argument of a reduction": (lambda: [Made()], "list[0].__reduce__()[1][1][0]"),
    "an instance of a local class": (lambda: Step([local()]), "Step.requests[0]"),
    "a local function": (lambda: Step(table={"f": lambda: 1}), "Step.table['f']"),
    "a cycle": (in_a_cycle, "Step.requests[2].lock"),
    "a partial function's": (lambda: functools.partial(print, LOCK), "partial.args[0]"),
    "a method's object": (lambda: [Request(LOCK).__repr__], "list[0].__self__.lock"),
    "an array of objects": (
        lambda: Step([np.array([None, Request(LOCK)])]),
        "Step.requests[0].__reduce__()[2][4][1].lock",
    ),
    "a long key": (lambda: {"x" * 999: LOCK}, f"dict['{'x' * 27} … {'x' * 27}']"),
}


@pytest.mark.parametrize("what", PATHS)
def test_the_part_that_is_refused_is_named(what: str) -> None:
    make, path = PATHS[what]
    with Writer(1) as writer, pytest.raises(shmcast.EncodeError) as caught:
        writer.send(make())
    name = type(make()).__qualname__
    assert str(caught.value).startswith(f"writer: can't encode a {name}: in `{path}`: ")
    cause = caught.value.__cause__
    assert f": {type(cause).__name__}: {cause}; nothing was sent" in str(caught.value)


def test_what_is_refused_as_a_whole_has_no_path() -> None:
    with Writer(1) as writer:
        for obj in (LOCK, local()):
            with pytest.raises(shmcast.EncodeError) as caught:
                writer.send(obj)
            assert "in `" not in str(caught.value)


def test_no_path_takes_long_or_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(1) as writer:
        with pytest.raises(shmcast.EncodeError, match=r"in `list\[0\]\[0\].* … .*\[0\]`") as caught:
            writer.send(nested(150))
        assert len(str(caught.value)) < 450
        with pytest.raises(shmcast.EncodeError, match="can't encode a list: RecursionError"):
            writer.send(nested(100_000))
        monkeypatch.setattr(unpicklable, "MOST_OBJECTS", 1000)
        with pytest.raises(shmcast.EncodeError, match="can't encode a Step: TypeError"):
            writer.send(Step([*range(1000), LOCK]))


class Counted:
    calls = 0

    def __reduce__(self) -> Any:
        Counted.calls += 1
        return Counted, ()


def test_a_reduction_runs_once_more_and_once_only() -> None:
    Counted.calls = 0
    counted = Counted()
    with Writer(1) as writer, pytest.raises(shmcast.EncodeError, match=r"list\[2\]"):
        writer.send([counted, counted, LOCK])
    assert Counted.calls == 2


class Fickle:
    refuses = True

    def __reduce__(self) -> Any:
        if Fickle.refuses:
            Fickle.refuses = False
            raise ValueError("not now")
        return Fickle, ()


def test_what_pickles_the_second_time_has_no_path() -> None:
    Fickle.refuses = True
    with Writer(1) as writer, pytest.raises(shmcast.EncodeError) as caught:
        writer.send([Fickle()])
    assert str(caught.value) == "writer: can't encode a list: ValueError: not now; nothing was sent"


class Alarm(Exception):
    """Raised by a signal's handler."""


class Interrupted:
    calls = 0

    def __reduce__(self) -> Any:
        Interrupted.calls += 1
        if Interrupted.calls == 2:  # while the path is looked for
            signal.raise_signal(signal.SIGUSR1)
        return Interrupted, ()


def test_a_signal_ends_the_search_as_it_ends_a_send() -> None:
    def handler(_number: int, _frame: Any) -> None:
        raise Alarm

    Interrupted.calls = 0
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with Writer(1) as writer, pytest.raises(Alarm):
            writer.send([Interrupted(), LOCK])
    finally:
        signal.signal(signal.SIGUSR1, before)

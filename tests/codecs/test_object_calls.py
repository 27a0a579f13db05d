"""The methods that pickle calls are called, as often as pickle calls them, and no others."""

from __future__ import annotations

import collections
import copyreg
import functools
import gc
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from shmcast import ObjectCodec
from tests.support import codec_fuzz
from tests.support.differential import sent
from tests.support.permissions import by_core

CALLS: collections.Counter[str] = collections.Counter()


def counted(cls: Any) -> Any:
    """Count the calls of all methods that a class has of its own."""
    for name, method in [*vars(cls).items()]:
        if callable(method) and name not in ("__class__", "__qualname__"):
            wrapped = _counting(f"{cls.__name__}.{name}", method)
            setattr(cls, name, staticmethod(wrapped) if name == "__new__" else wrapped)
        elif isinstance(method, staticmethod):
            wrapped = _counting(f"{cls.__name__}.{name}", method.__func__)
            setattr(cls, name, staticmethod(wrapped))
    return cls


def _counting(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*args: Any, **named: Any) -> Any:
        CALLS[name] += 1
        return method(*args, **named)

    return wrapper


@counted
class Made:
    def __init__(self, value: Any = None) -> None:
        self.value = value


@counted
@dataclass
class PostInit:
    value: Any = None

    def __post_init__(self) -> None:
        self.was_made = True


@counted
class Stateful:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def __getstate__(self) -> Any:
        return {"value": self.value}

    def __setstate__(self, state: Any) -> None:
        self.value = state["value"]


@counted
class New:
    def __new__(cls, *args: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, value: Any = None) -> None:
        self.value = value


@counted
class NewWithArguments:
    def __new__(cls, value: Any) -> Any:
        made = object.__new__(cls)
        made.value = value
        return made

    value: Any

    def __getnewargs__(self) -> Any:
        return (self.value,)


@counted
class NewWithNames:
    def __new__(cls, *, value: Any) -> Any:
        made = object.__new__(cls)
        made.value = value
        return made

    value: Any

    def __getnewargs_ex__(self) -> Any:
        return (), {"value": self.value}


@counted
class Reduced:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        return Reduced, (self.value,)


@counted
class ReducedEx:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return ReducedEx, (self.value,)


@counted
class Both:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        raise AssertionError("the other is asked first")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Both, (self.value,)


@counted
class Set:
    def __init__(self, value: Any) -> None:
        self.__dict__["value"] = value

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


@counted
class SetSlots:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        object.__setattr__(self, "value", value)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


@counted
class Looked:
    """What programs define and pickle has no need of."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "Looked()"

    def __eq__(self, other: object) -> bool:
        return NotImplemented

    def __hash__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        return iter(())

    def __contains__(self, item: Any) -> bool:
        return False

    def __copy__(self) -> Any:
        return self

    def __sizeof__(self) -> int:
        return 100

    def __dir__(self) -> Any:
        return []


@counted
class Items(list):  # type: ignore[type-arg]
    def __init__(self, value: Any = ()) -> None:
        super().__init__([value, 2])

    def append(self, item: Any) -> None:
        super().append(item)

    def extend(self, items: Any) -> None:
        super().extend(items)

    def __iter__(self) -> Any:
        return super().__iter__()

    def __len__(self) -> int:
        return super().__len__()

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index)


@counted
class Table(dict):  # type: ignore[type-arg]
    def __init__(self, value: Any = 1) -> None:
        super().__init__(a=value, b=2)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)

    def items(self) -> Any:
        return super().items()

    def __len__(self) -> int:
        return super().__len__()


@counted
class Tags(set):  # type: ignore[type-arg]
    def __init__(self, value: Any = ()) -> None:
        super().__init__([3, str(type(value))])

    def add(self, item: Any) -> None:
        super().add(item)

    def __iter__(self) -> Any:
        return super().__iter__()


@counted
class Row(tuple):  # type: ignore[type-arg]
    __slots__ = ()

    def __new__(cls, items: Any = (1,)) -> Any:
        return tuple.__new__(cls, items if isinstance(items, tuple) else (items,))

    def __iter__(self) -> Any:
        return super().__iter__()

    def __len__(self) -> int:
        return super().__len__()


@counted
class Registered:
    def __init__(self, value: Any) -> None:
        self.value = value


def reduce_registered(obj: Registered) -> Any:
    CALLS["reduce_registered"] += 1
    return Registered, (obj.value,)


copyreg.pickle(Registered, reduce_registered)


class Watching(type):
    def __call__(cls, *args: Any) -> Any:
        CALLS["Watching.__call__"] += 1
        return super().__call__(*args)

    def __instancecheck__(cls, instance: Any) -> bool:
        CALLS["Watching.__instancecheck__"] += 1
        return super().__instancecheck__(instance)

    def __eq__(cls, other: object) -> bool:
        CALLS["Watching.__eq__"] += 1
        return cls is other

    def __hash__(cls) -> int:
        return id(cls)


class Watched(metaclass=Watching):
    def __init__(self, value: Any) -> None:
        self.value = value


class Descriptor:
    def __get__(self, obj: Any, owner: Any = None) -> Any:
        if obj is not None:
            CALLS["Descriptor.__get__"] += 1
        return self if obj is None else vars(obj).get("value")

    def __set__(self, obj: Any, value: Any) -> None:
        CALLS["Descriptor.__set__"] += 1
        vars(obj)["value"] = value


class Described:
    value = Descriptor()

    def __init__(self, value: Any) -> None:
        self.value = value


class Key:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        CALLS["Key.__hash__"] += 1
        return hash(str(self.value))

    def __eq__(self, other: object) -> bool:
        CALLS["Key.__eq__"] += 1
        return self is other


CLASSES = [
    Made, PostInit, Stateful, New, NewWithArguments, Reduced, ReducedEx, Both, Set, SetSlots,
    Looked, Items, Table, Tags, Row, Registered, Watched, Described,
]  # fmt: skip


def counts(codec: Any, obj: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Return the calls when an object is encoded, and when it is decoded."""
    CALLS.clear()
    frames = sent(codec, obj)
    encoding = dict(CALLS)
    CALLS.clear()
    codec.decode(frames)
    return encoding, dict(CALLS)


class ByPickle:
    """Pickle, as a codec."""

    def encode(self, obj: Any) -> Any:
        import pickle

        return [pickle.dumps(obj, 5)]

    def decode(self, frames: Any) -> Any:
        import pickle

        return pickle.loads(frames[0])  # noqa: S301


def check(codec: ObjectCodec, obj: Any) -> None:
    expected = counts(ByPickle(), obj)
    for _ in range(2):
        assert counts(codec, obj) == expected


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_methods_are_called_as_by_pickle(cls: Any) -> None:
    codec = ObjectCodec()
    plain: list[Any] = [Made(i) for i in range(3)]
    for obj in (
        cls(1),
        [cls([1]), cls(2)],
        [plain, {"a": cls(1)}, plain],
        [cls(Made(cls(2))), plain, (cls(3),)],
        Made([plain, cls([plain])]),
    ):
        check(codec, obj)


class Finalized:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __del__(self) -> None:
        CALLS["Finalized.__del__"] += 1


@dataclass(frozen=True)
class Hashed:
    value: Any

    def __hash__(self) -> int:
        CALLS["Hashed.__hash__"] += 1
        return hash(self.value)


@pytest.mark.parametrize("cls", [*CLASSES, Finalized, Hashed, Key], ids=lambda cls: cls.__name__)
def test_practice_runs_no_code_of_others(cls: Any) -> None:
    codec = ObjectCodec()
    codec.practise_encode(None)  # from now on it keeps what is sent
    for obj in (cls(1), [cls(2), cls([3])], [Made(1), {"a": cls(4)}], *_keys(cls)):
        got = codec.decode(sent(codec, obj))
        del got
        gc.collect()
        CALLS.clear()
        for _ in range(3):
            codec_fuzz.practise(codec, codec)
        assert CALLS == {}
        check(codec, obj)


def _keys(cls: Any) -> list[Any]:
    return [{cls(5): 1}, {cls(6)}, frozenset([cls(7)])] if cls in (Hashed, Key) else []


@by_core
def test_what_runs_no_code_is_practised() -> None:
    codec = ObjectCodec()
    plain = [Made(1), {"a": 2}]
    codec.practise_encode(None)
    codec.decode(sent(codec, plain))
    assert codec.practice_frames() is not None
    assert codec.practise_encode(None) == codec.encode(plain)
    codec.decode(sent(codec, [uuid.UUID(int=1)]))
    assert codec.practice_frames() is None
    assert codec.practise_encode(None) == codec.encode(None)


def test_names_are_called_as_by_pickle() -> None:
    codec = ObjectCodec()
    check(codec, [NewWithNames(value=1), NewWithNames(value=[NewWithNames(value=2)])])


def test_keys_are_hashed_as_often_as_by_pickle() -> None:
    codec = ObjectCodec()
    keys = [Key(i) for i in range(5)]
    check(codec, dict.fromkeys(keys, 1))
    check(codec, [{Key(1): [Key(2)]}, {Key(3), Key(4)}, Made({Key(1): 1})])


def test_an_object_that_is_there_twice_is_reduced_once() -> None:
    codec = ObjectCodec()
    for cls in CLASSES:
        shared = cls(1)
        check(codec, [shared, Made(1), shared, (shared,)])


def test_a_reduction_that_raises_ran_as_often_as_by_pickle() -> None:
    class Raises:
        def __reduce__(self) -> Any:
            CALLS["Raises"] += 1
            raise ValueError("no")

    obj = [Stateful(1), Reduced(2), Raises(), Stateful(3)]
    found = []
    for codec in (ByPickle(), ObjectCodec()):
        CALLS.clear()
        with pytest.raises(ValueError, match="no"):
            codec.encode(obj)
        found.append(dict(CALLS))
    assert found[0] == found[1]

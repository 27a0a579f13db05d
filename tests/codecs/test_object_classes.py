"""Classes that change between messages: what was known of them is looked at again, as by pickle."""

from __future__ import annotations

import copyreg
import importlib
import pickle
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcast import ObjectCodec
from tests.support.canonical import canonical
from tests.support.differential import by_pickle, check, difference, outcome, sent, through
from tests.support.permissions import IS_FREE_THREADED, by_core

SOURCE = """
import collections, dataclasses, enum, typing

class Bag:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

class Base:
    pass

class Derived(Base):
    def __init__(self, a=1):
        self.a = a

class Slots:
    __slots__ = ("a", "b")
    def __init__(self, a=1, b=2):
        self.a, self.b = a, b

@dataclasses.dataclass
class Point:
    x: typing.Any = 1
    y: typing.Any = 2

@dataclasses.dataclass(frozen=True, slots=True)
class Edge:
    source: typing.Any = 1
    target: typing.Any = 2

class Triple(typing.NamedTuple):
    a: typing.Any = 1
    b: typing.Any = 2
    c: typing.Any = 3

class Colour(enum.Enum):
    RED = 1
    GREEN = 2

class Stateful:
    def __init__(self, a=1):
        self.a = a
    def __getstate__(self):
        return {"a": self.a}
    def __setstate__(self, state):
        self.__dict__.update(state, restored=True)

def function():
    return 1
"""

NAME = "changing_classes"


def execute(source: str, module: types.ModuleType) -> None:
    exec(textwrap.dedent(source), vars(module))  # noqa: S102


@pytest.fixture
def module() -> Iterator[Any]:
    """Make a module of classes that a test may change."""
    made = types.ModuleType(NAME)
    sys.modules[NAME] = made
    execute(SOURCE, made)
    registered = dict(copyreg.dispatch_table)
    yield made
    sys.modules.pop(NAME, None)
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(registered)


def objects(m: Any) -> list[Any]:
    """Return an object of each class."""
    return [
        m.Bag(a=1, b=[2]), m.Derived(), m.Slots(), m.Point(), m.Edge(), m.Triple(), m.Colour.RED,
        m.Stateful(), m.function, m.Point, [m.Point(i) for i in range(5)],
    ]  # fmt: skip


def warmed(m: Any) -> ObjectCodec:
    """Return a codec that has seen all classes, again and again."""
    codec = ObjectCodec()
    for _ in range(3):
        for obj in [*objects(m), objects(m)]:
            check(codec, obj)
    return codec


def check_all(codec: ObjectCodec, m: Any, old: list[Any]) -> None:
    """Check objects from before a change and from after it, each by itself and all together."""
    for obj in old:
        check(codec, obj)
        check(codec, [obj, {"a": obj}, [1], "x"])
    check(codec, old)
    try:
        new = objects(m)
    except Exception:  # the change has broken a constructor
        return
    for obj in new:
        check(codec, obj)
    check(codec, new)


def _set(cls: str, **members: Any) -> Callable[[Any], None]:
    def change(m: Any) -> None:
        for name, value in members.items():
            setattr(getattr(m, cls), name, value)

    return change


def _delete(cls: str, *names: str) -> Callable[[Any], None]:
    def change(m: Any) -> None:
        for name in names:
            delattr(getattr(m, cls), name)

    return change


def _run(source: str) -> Callable[[Any], None]:
    return lambda m: execute(source, m)


def _registered(cls: str, reduce: Callable[[Any], Any]) -> Callable[[Any], None]:
    return lambda m: copyreg.pickle(getattr(m, cls), reduce)


def _marked(obj: Any, name: str, value: Any) -> None:
    object.__setattr__(obj, "marked", (name, value))


def _new(cls: type, *_args: Any, **_named: Any) -> Any:
    made: Any = object.__new__(cls)
    made.new = True
    return made


def _update(obj: Any, state: Any) -> None:
    obj.__dict__["state"] = state


METHODS: dict[str, Any] = {
    "__reduce__": lambda self: (dict, ([("reduced", 1)],)),
    "__reduce_ex__": lambda self, protocol: (dict, ([("reduced by", protocol)],)),
    "__getstate__": lambda self: {"state": "mine"},
    "__setstate__": _update,
    "__getnewargs__": lambda self: (),
    "__getnewargs_ex__": lambda self: ((), {}),
    "__new__": _new,
    "__setattr__": _marked,
    "__getattr__": lambda self, name: 5 if not name.startswith("__") else _no(name),
    "__getattribute__": lambda self, name: object.__getattribute__(self, name),
    "a": property(lambda self: 7),
    "x": property(lambda self: 7, lambda self, value: None),
    "__init__": lambda self, *args, **named: None,
    "__len__": lambda self: 0,
    "__eq__": lambda self, other: True,
}


def _no(name: str) -> Any:
    raise AttributeError(name)


def _answer_by_code(m: Any) -> None:
    hidden = vars(m).pop("Bag")
    m.__getattr__ = lambda name: hidden if name == "Bag" else _no(name)


CHANGES: dict[str, Callable[[Any], Any]] = {
    **{
        f"{cls} gets {name}": _set(cls, **{name: METHODS[name]})
        for cls in ("Bag", "Derived", "Base", "Point", "Slots", "Edge", "Triple", "Stateful")
        for name in METHODS
        if not (cls in ("Triple", "Slots", "Edge") and name in ("__new__", "x"))
    },
    "a slot goes": _delete("Slots", "a"),
    "a slot becomes a property": _set("Slots", a=property(lambda self: 9)),
    "a slot becomes a value": _set("Slots", a=9),
    "a state's methods go": _delete("Stateful", "__getstate__", "__setstate__"),
    "setstate goes": _delete("Stateful", "__setstate__"),
    "getstate goes": _delete("Stateful", "__getstate__"),
    "frozen slots lose their methods": _delete("Edge", "__getstate__", "__setstate__"),
    "object's own reduction is set": _set("Bag", __reduce_ex__=object.__reduce_ex__),
    "a reducer is registered": _registered("Bag", lambda o: (dict, ([("a", 1)],))),
    "a reducer of slots is registered": _registered("Slots", lambda o: (list, ())),
    "a reducer of dataclasses is registered": _registered("Point", lambda o: (list, ())),
    "a reducer of a named tuple is registered": _registered("Triple", lambda o: (list, ())),
    "a reducer of an enum is registered": _registered("Colour", lambda o: (list, ())),
    "a reducer of a base is registered": _registered("Base", lambda o: (list, ())),
    "a class is replaced": _run("class Bag:\n    pass"),
    "a dataclass is replaced": _run(
        "@dataclasses.dataclass\nclass Point:\n    x: int = 1\n    y: int = 2\n    z: int = 3"
    ),
    "slots are replaced": _run("class Slots:\n    __slots__ = ('b', 'c')"),
    "a named tuple is replaced": _run("Triple = collections.namedtuple('Triple', 'a b c')"),
    "an enum is replaced": _run("class Colour(enum.Enum):\n    RED = 5\n    GREEN = 6"),
    "a function is replaced": _run("def function():\n    return 2"),
    "a class goes": lambda m: delattr(m, "Bag"),
    "a class becomes a function": _run("def Bag(**attributes):\n    return 5"),
    "a class becomes a child of itself": _run("class Point(Point):\n    pass"),
    "a class is called otherwise": _set("Bag", __qualname__="Point"),
    "a class is said to be elsewhere": _set("Bag", __module__="collections"),
    "a class is called what is not there": _set("Point", __qualname__="Nowhere"),
    "an enum reduces": _set("Colour", __reduce_ex__=lambda self, _: (str, (self.name,))),
    "slotnames are set": _set("Slots", __slotnames__=["b"]),
    "bases change": lambda m: setattr(m.Derived, "__bases__", (m.Stateful,)),
    "a module is replaced": lambda m: sys.modules.__setitem__(NAME, types.ModuleType(NAME)),
    "a module is gone": lambda m: sys.modules.pop(NAME),
    "a module is None": lambda m: vars(sys)["modules"].__setitem__(NAME, None),
    "a module answers by code": _answer_by_code,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen_by_both_ends(what: str, module: Any) -> None:
    codec, old = warmed(module), objects(module)
    CHANGES[what](module)
    check_all(codec, module, old)


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_seen_by_who_has_not_decoded_yet(what: str, module: Any) -> None:
    codec, old = warmed(module), objects(module)
    encoded = [(sent(codec, obj), pickle.dumps(obj, 5)) for obj in [*old, old]]
    CHANGES[what](module)
    for decoder in (codec, ObjectCodec()):
        for frames, pickled in encoded:
            expected = outcome(pickle.loads, pickled)
            got = outcome(decoder.decode, [*map(bytearray, frames)])
            assert got == expected, difference(expected, got)


@pytest.mark.parametrize("name", ["__reduce__", "__getstate__", "__setstate__", "__new__"])
def test_a_change_that_is_taken_back_is_seen_too(name: str, module: Any) -> None:
    codec, old = warmed(module), objects(module)
    for _ in range(3):
        setattr(module.Bag, name, METHODS[name])
        check_all(codec, module, old)
        delattr(module.Bag, name)
        check_all(codec, module, old)


@pytest.mark.parametrize(
    "name",
    ["__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__getnewargs__", "__class__"],
)
def test_an_instance_may_have_methods_of_its_own(name: str, module: Any) -> None:
    codec = warmed(module)
    for cls in (module.Bag, module.Derived, module.Point):
        obj = cls()
        vars(obj)[name] = lambda *_: (dict, ())
        check(codec, obj)
        check(codec, [cls(), obj, cls()])
        vars(obj)[name] = 5
        check(codec, [cls(), obj, cls()])


def test_an_instance_may_change_its_class(module: Any) -> None:
    codec = warmed(module)
    obj, other = module.Bag(a=1), module.Bag(a=1)
    for cls in (module.Derived, module.Stateful, module.Point, module.Bag):
        obj.__class__ = cls
        check(codec, [obj, other, obj])


def test_one_module_has_the_name_of_another(module: Any) -> None:
    codec, old = warmed(module), objects(module)
    again = types.ModuleType(NAME)
    execute(SOURCE, again)
    sys.modules[NAME] = again
    check_all(codec, again, old)
    check_all(codec, again, objects(again))
    sys.modules[NAME] = module
    check_all(codec, module, old)
    check_all(codec, module, objects(again))


def test_a_module_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "reloaded_classes.py"
    path.write_text(SOURCE)
    m = importlib.import_module("reloaded_classes")
    try:
        codec, old = warmed(m), objects(m)
        frames = [(sent(codec, obj), pickle.dumps(obj, 5)) for obj in old]
        importlib.reload(m)
        check_all(codec, m, old)
        for sent_before, pickled in frames:
            got = codec.decode([*map(bytearray, sent_before)])
            assert canonical(got) == canonical(pickle.loads(pickled))  # noqa: S301
        del sys.modules["reloaded_classes"]
        check_all(codec, importlib.import_module("reloaded_classes"), old)
    finally:
        sys.modules.pop("reloaded_classes", None)


def test_a_reader_imports_what_it_has_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "imported_classes.py").write_text(SOURCE)
    m = importlib.import_module("imported_classes")
    codec = ObjectCodec()
    frames = sent(codec, [m.Point(1), m.Colour.RED, m.Triple()])
    for decoder in (codec, ObjectCodec()):
        sys.modules.pop("imported_classes", None)
        got = decoder.decode([*map(bytearray, frames)])
        assert type(got[0]).__module__ == "imported_classes"
        assert type(got[0]) is sys.modules["imported_classes"].Point
    sys.modules.pop("imported_classes", None)
    (tmp_path / "imported_classes.py").unlink()
    importlib.invalidate_caches()
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="imported_classes"):
            codec.decode([*map(bytearray, frames)])


def test_many_classes_of_one_name_come_and_go(module: Any) -> None:
    codec = ObjectCodec()
    for number in range(300):
        fields = "".join(f"    f{i}: int = {i}\n" for i in range(number % 7)) or "    pass\n"
        execute(f"@dataclasses.dataclass\nclass Point:\n{fields}", module)
        check(codec, [module.Point(), module.Point()])


@pytest.mark.parametrize("count", [300, 1030])
def test_more_classes_than_a_cache_holds(count: int, module: Any) -> None:
    codec = ObjectCodec()
    for number in range(count):
        execute(f"class C{number}:\n    def __init__(self, a):\n        self.a{number} = a", module)
    classes = [getattr(module, f"C{number}") for number in range(count)]
    first = {sent(codec, [cls(1) for cls in classes])[0][0] for _ in range(3)}
    assert first == ({0xF5} if count < 1000 and not IS_FREE_THREADED else {0x80})
    for _ in range(2):
        check(codec, [cls(number) for number, cls in enumerate(classes)])
        one, other = [[Stepped(), [cls(1) for cls in classes], classes] for _ in range(2)]
        assert outcome(lambda o: through(codec, o), one) == outcome(by_pickle, other)
    for cls in classes[:500]:
        check(codec, cls(1))


@by_core  # (and in 3.13 the interpreter itself lets no class go there)
def test_classes_are_let_go(module: Any, no_gc: None) -> None:
    import gc
    import weakref

    codec = ObjectCodec()
    execute("class Gone:\n    def __init__(self):\n        self.a = 1", module)
    for _ in range(3):
        check(codec, [module.Gone(), module.Gone()])
    gone = weakref.ref(module.Gone)
    del module.Gone
    for number in range(1100):  # (a cache may keep as many as it holds)
        execute(f"class C:\n    def __init__(self):\n        self.a{number} = 1", module)
        check(codec, [module.C(), module.C()])
    del codec
    gc.collect()
    assert gone() is None


def test_an_enum_with_a_value_that_is_gone_is_an_error(module: Any) -> None:
    codec = warmed(module)
    frames, pickled = sent(codec, module.Colour.RED), pickle.dumps(module.Colour.RED, 5)
    execute("class Colour(enum.Enum):\n    BLUE = 9", module)
    expected = outcome(pickle.loads, pickled)
    assert expected[0] == "ValueError"
    assert outcome(codec.decode, frames) == expected


@pytest.mark.parametrize("there", [None, 5, "function", "called"])
def test_what_is_no_class_at_the_reader_is_pickles_error(there: Any, module: Any) -> None:
    execute("class Items(list):\n    pass", module)
    instances = [obj for obj in objects(module) if type(obj).__module__ == NAME]
    for obj in [*instances, module.Items([1])]:
        name = type(obj).__name__
        frames, pickled = sent(warmed(module), [obj, 1]), pickle.dumps([obj, 1], 5)
        its_class = getattr(module, name)
        other = {"function": module.function, "called": lambda *args: args}.get(there, there)
        setattr(module, name, other)
        for _ in range(2):
            expected = outcome(pickle.loads, pickled)
            got = outcome(ObjectCodec().decode, frames)
            assert got == expected, (name, difference(expected, got))
        setattr(module, name, its_class)


def test_pickles_own_round_trip_is_what_these_tests_compare_with(module: Any) -> None:
    _set("Bag", __reduce__=METHODS["__reduce__"])(module)
    assert by_pickle(module.Bag()) == {"reduced": 1}


class Stepped:
    """Gives what can be given once only."""

    def __init__(self) -> None:
        self.items = iter([1, 2])

    def __reduce__(self) -> Any:
        return list, (), None, self.items


class Counting:
    """Counts its instances in itself."""

    made = 0

    def __init__(self, content: Any) -> None:
        Counting.made += 1
        self.content = content


@by_core
def test_a_class_that_changes_all_the_time_is_left_to_pickle() -> None:
    codec = ObjectCodec()
    firsts = []
    for k in range(40):
        obj = [Counting(k), Counting({"k": [k]})]
        frames = sent(codec, obj)
        firsts.append(bytes(frames[0][:1]))
        got = codec.decode(frames)
        assert [one.content for one in got] == [k, {"k": [k]}]
    assert firsts[0] == b"\xf5"
    assert set(firsts[-10:]) == {b"\x80"}

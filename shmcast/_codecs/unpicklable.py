"""Where in an object the part is that pickle refuses. Imported once something was refused."""

from __future__ import annotations

import contextlib
import functools
import pickle
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from shmcast._codecs.pickle_codec import Reducers

MOST_OBJECTS = 100_000
"""The walk gives up after so many: a tenth of a second or two, and only after a failure."""

_MOST_CHARACTERS = 300
_MOST_OF_A_KEY = 60


def path_of(obj: Any, pass_on: Callable[[BaseException], None], text: str | None = None) -> str:
    """Return the path to the part of `obj` that pickle refuses, such as "Step.requests[3].lock".

    The object is pickled once more, by Python's own pickler, whose bytes go nowhere: so the walk
    meets what pickle meets, in its order, cycles included, and runs the reductions that pickle
    runs. An expression in Python leads to what has no shorter name: a key or an element of a set
    (`list(Step.ids)[0]`), what only a reduction has (`Step.part.__reduce__()[1][0]`).

    Args:
        obj: what pickle has refused.
        pass_on: raises an error again if it is not pickling's, but of a signal's handler.
        text: what the refusal must say; None: anything. (A fallback takes some of what pickle
            refuses, and may refuse another part.)

    Returns:
        The path, or an empty string: `obj` itself is refused, is too large, or this time is not.
    """
    walk = _Walk()
    try:
        walk.dump(obj)
    except Exception as error:
        pass_on(error)
        if not isinstance(error, _GivenUp | RecursionError) and text in (None, str(error)):
            return walk.path()
    return ""


class _GivenUp(Exception):
    """There are more objects than a walk looks at."""


class _Nowhere:
    """The file that pickles are written to and that keeps nothing."""

    def write(self, _data: Any) -> None:
        pass


class _Table:
    """A `dispatch_table` with the codec's reducers, as the Python pickler asks for them."""

    def __init__(self) -> None:
        self._reducers = Reducers()

    def get(self, cls: type, default: Any = None) -> Any:
        try:
            return self._reducers[cls]
        except KeyError:
            return default


class _Walk(pickle._Pickler):  # noqa: SLF001 (the only one that says where it is)
    """Pickles to nowhere and knows how it came to the object that it is at.

    `save` is called for each object, by that of the object which has it. What a call that raises
    leaves behind is the chain of objects from the root to what was refused.
    """

    def __init__(self) -> None:
        super().__init__(_Nowhere(), pickle.HIGHEST_PROTOCOL, buffer_callback=lambda _buffer: None)
        self.dispatch_table = _Table()  # type: ignore[assignment] # (all that is called is `get`)
        self._chain: list[Any] = []
        self._reductions: dict[int, _Reduction] = {}
        self._count = 0

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        self._count += 1
        if self._count > MOST_OBJECTS:
            raise _GivenUp
        if _is_on_a_device(obj):  # its reduction by torch copies it to the host
            return
        self._chain.append(obj)
        super().save(obj, save_persistent_id)  # type: ignore[misc]
        self._chain.pop()

    def save_reduce(
        self,
        func: Any,
        args: Any,
        state: Any = None,
        listitems: Any = None,
        dictitems: Any = None,
        state_setter: Any = None,
        *,
        obj: Any = None,
    ) -> None:
        reduction = _Reduction(obj, func, args, state)
        self._reductions[id(obj)] = reduction
        items = listitems and reduction.elements(listitems)
        pairs = dictitems and reduction.pairs(dictitems)
        super().save_reduce(  # type: ignore[misc]
            func, args, state, items, pairs, state_setter, obj=obj
        )
        del self._reductions[id(obj)]  # (only those of the chain are asked for)

    def path(self) -> str:
        """Return the path to the last object of the chain; empty if that is the root."""
        chain = self._chain
        root = path = type(chain[0]).__name__ if chain else ""
        at = 0
        while at + 1 < len(chain):
            reduction = self._reductions.get(id(chain[at]))
            if reduction is None:
                step, length = _step(path, chain[at], chain[at + 1]), 1
            else:
                step, length = reduction.step(path, chain[at + 1 :])
            if not step:
                break
            path, at = step, at + length
        return "" if path == root else _shortened(path, _MOST_CHARACTERS)


class _Reduction:
    """How an object is reduced, while its parts are pickled."""

    def __init__(self, obj: Any, func: Any, args: Any, state: Any) -> None:
        self._obj = obj
        self._func = func
        self._args = args
        self._state = state
        self._to_item: Callable[[str], str] = lambda _path: ""
        """Leads from the object to the element or the value that is next."""

    def elements(self, items: Iterable[Any]) -> Iterator[Any]:
        """Go through the elements of a list's subclass."""
        for index, item in enumerate(items):
            self._to_item = f"{{}}[{index}]".format
            yield item

    def pairs(self, items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Go through the items of a dict's subclass."""
        for index, (key, value) in enumerate(items):
            self._to_item = functools.partial(_at_key, key=key, index=index)
            yield key, value

    def step(self, path: str, below: list[Any]) -> tuple[str, int]:
        """Return the path to the next object below that has a name, and how far down that is.

        An empty path: the object itself is refused, for its class.
        """
        child = below[0]
        if child is self._func:
            is_class = child is type(self._obj)
            return ("" if is_class else f"{path}.__reduce__()[0]"), 1
        if child is type(self._obj):  # the argument of `copyreg.__newobj__`
            return "", 1
        is_args = self._is_arguments(child)
        if is_args or child is self._state:
            # An attribute in the state, or among the arguments; with slots a level further down.
            for depth in (1, 2):
                if depth < len(below) and (name := _attribute(self._obj, below[depth])):
                    return path + name, depth + 1
            if is_args:
                return f"{path}.__reduce__()[1]", 1
            own = getattr(type(self._obj), "__getstate__", None)
            is_own = own is not None and own is not getattr(object, "__getstate__", None)
            return f"{path}.{'__getstate__()' if is_own else '__reduce__()[2]'}", 1
        return self._to_item(path), 1

    def _is_arguments(self, child: Any) -> bool:
        """Return whether it has the arguments; without their first one if that is the class."""
        return child is self._args or (
            type(child) is tuple
            and len(child) == len(self._args) - 1
            and all(one is other for one, other in zip(child, self._args[1:], strict=True))
        )


def _step(path: str, parent: Any, child: Any) -> str:
    """Return the path to a part of a builtin container."""
    if isinstance(parent, dict):
        for index, (key, value) in enumerate(parent.items()):
            if key is child:
                return f"list({path})[{index}]"
            if value is child:
                return _at_key(path, key, index)
    elif isinstance(parent, list | tuple):
        for index, item in enumerate(parent):
            if item is child:
                return f"{path}[{index}]"
    elif isinstance(parent, set | frozenset):
        for index, item in enumerate(parent):
            if item is child:
                return f"list({path})[{index}]"
    return ""


def _at_key(path: str, key: Any, index: int) -> str:
    """Return how to get at a dict's value: by its place, where the key's repr is code of others."""
    if type(key) in (str, bytes, int, float, bool, types.NoneType):
        return f"{path}[{_shortened(repr(key), _MOST_OF_A_KEY)}]"
    return f"list({path}.values())[{index}]"


def _attribute(obj: Any, value: Any) -> str:
    """Return ".name" of the attribute of an object that is a value, or an empty string.

    Only what is stored is looked at: properties are code.
    """
    for name, stored in _stored(obj):
        if stored is value:
            return f".{name}" if name.isidentifier() else f".__dict__[{name!r}]"
    return ""


def _stored(obj: Any) -> Iterator[tuple[str, Any]]:
    if type(obj) is types.MethodType:
        yield "__self__", obj.__self__
    if isinstance(obj, tuple) and type(fields := getattr(type(obj), "_fields", None)) is tuple:
        yield from zip(fields, tuple.__iter__(obj), strict=False)
    with contextlib.suppress(AttributeError):
        own = object.__getattribute__(obj, "__dict__")
        if type(own) is dict:
            yield from ((name, value) for name, value in own.items() if type(name) is str)
    for cls in type(obj).__mro__:
        for name, member in vars(cls).items():
            if type(member) is types.MemberDescriptorType and not name.startswith("__"):
                with contextlib.suppress(AttributeError):
                    yield name, member.__get__(obj)


def _is_on_a_device(obj: Any) -> bool:
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(obj, tensor) and not obj.is_cpu


def _shortened(text: str, most: int) -> str:
    if len(text) <= most:
        return text
    half = most // 2 - 2
    return f"{text[:half]} … {text[-half:]}"

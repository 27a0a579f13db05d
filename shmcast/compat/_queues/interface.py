"""What an engine's own message queue has, found out from its sources as they are imported."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Parameters = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Interface:
    """The shapes of an engine's queue that are known, over several of its releases.

    Attributes:
        methods: public methods and `__init__`, each with the lists of parameters that it has had.
        handle: the lists of fields that its handle has had.
    """

    methods: Mapping[str, tuple[Parameters, ...]]
    handle: tuple[Parameters, ...]

    def unknown_in(self, queue: type[Any], handle: type[Any]) -> list[str]:
        """Return what of a queue and its handle is not known, in words; empty: it is known."""
        found = {
            name: tuple(inspect.signature(getattr(queue, name)).parameters)
            for name, what in vars(queue).items()
            if (name == "__init__" or not name.startswith("_")) and _is_function(what)
        }
        unknown = [
            f"{name}({', '.join(parameters)})"
            for name, parameters in found.items()
            if parameters not in self.methods.get(name, ())
        ]
        unknown += [f"no {name}()" for name in self.methods if name not in found]
        fields = tuple(field.name for field in dataclasses.fields(handle))
        if fields not in self.handle:
            unknown.append(f"a handle of {', '.join(fields)}")
        return unknown


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine's own queue, as it is installed here.

    Attributes:
        name: of the engine.
        queue: its class `MessageQueue`.
        handle: its class `Handle`.
        logger: where it tells of its queues.
        long_wait: the text with which it tells of a long wait; it has the seconds in it.
        warning_interval: returns the seconds between two such texts, as they are now.
        long_wait_level: at which it logs them.
        arena_bytes: shared memory for large tensors where the engine asks for such.
        begin: called whenever a process gets an end of such a queue.
    """

    name: str
    queue: type[Any]
    handle: type[Any]
    logger: logging.Logger
    long_wait: str
    warning_interval: Callable[[], float]
    long_wait_level: int
    arena_bytes: int = 0
    begin: Callable[[], None] = lambda: None

    def arguments(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what a queue is made with, by name, defaults included.

        Raises:
            TypeError: the engine's own class does not take these either.
        """
        bound = inspect.signature(self.queue).bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)


def other_defaults(name: str, theirs: Callable[..., Any], ours: Callable[..., Any]) -> list[str]:
    """Return which defaults of an engine's function are not those of its stand-in, in words.

    Of what kind its parameters are makes no difference: ours can be given by position and by name.
    """
    parameters = inspect.signature(ours).parameters
    return [
        f"{name}({their.name}={their.default!r})"
        for their in inspect.signature(theirs).parameters.values()
        if their.name in parameters and their.default != parameters[their.name].default
    ]


def _is_function(what: object) -> bool:
    return inspect.isfunction(what) or isinstance(what, staticmethod | classmethod)

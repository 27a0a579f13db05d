"""Puts queues and functions of shmcast in the place of an engine's own, where it knows those."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from shmcast.compat._queues.interface import Engine, Interface, Parameters, other_defaults

Functions = dict[str, Callable[..., Any]]

_FORMAT = "(%(processName)s pid=%(process)d) %(levelname)s %(asctime)s [%(filename)s:%(lineno)d] "
_DATE_FORMAT = "%m-%d %H:%M:%S"

_told_in: dict[str, int] = {}  # by engine: the process that has said that it is in place; 0: none


@dataclass(frozen=True)
class StandIn:
    """What stands in for an engine's own.

    Its classes are made of the engine's, which is imported when they are first asked for.

    Attributes:
        engine: its name.
        face: the module where pickle finds the classes.
        variable: of the environment: `1` lets the plugin install them.
        module: of the engine's queue.
        known: that queue, as it may be.
        settings: returns those of an `Engine` that its module tells: its words, for instance.
        known_functions: those of the engine's functions and methods that have a stand-in, by where
            they are, `module:function` or `module:class.method`: with their parameters.
        make_functions: returns ours, given the engine's.
    """

    engine: str
    face: str
    variable: str
    module: str
    known: Interface
    settings: Callable[[ModuleType], dict[str, Any]]
    known_functions: Mapping[str, Parameters] = field(default_factory=dict)
    make_functions: Callable[[Functions], Functions] = dict

    @property
    def package(self) -> str:
        """Of the engine."""
        return self.module.partition(".")[0]

    @property
    def log(self) -> logging.Logger:
        """The engine's log has what is under its name."""
        return logging.getLogger(f"{self.package}.shmcast")

    def install(self) -> bool:
        """Put all in place, in this process; idempotent.

        Returns:
            Whether they are. If the engine's own are not what is known, they are not, and a warning
            says what is different.

        Raises:
            ImportError: there is no such engine.
        """
        from shmcast.compat._queues.stacks import offer_stacks

        if unknown := self._unknown():
            self.log.warning(
                "shmcast: %s %s has what this version of shmcast does not know (%s); %s's own is "
                "used",
                self.engine,
                getattr(sys.modules.get(self.package), "__version__", "of an unknown version"),
                "; ".join(unknown),
                self.engine,
            )
            return False
        _replace(self.package, self._own[0], self.classes["MessageQueue"])
        for where, own in self._own_functions.items():
            owner, name = _owner_and_name(where)
            if isinstance(owner, type):
                setattr(owner, name, self.functions[where])
            else:
                _replace(self.package, own, self.functions[where])
        offer_stacks()
        return True

    def plugin(self) -> None:
        """Install them if the environment asks for it. Never raises."""
        with _heard(self.log):
            self._install_if_asked()

    def _install_if_asked(self) -> None:
        value = os.environ.get(self.variable, "0")
        if value not in ("", "0", "1"):
            self.log.warning(
                "%s=%r is neither 0 nor 1: %s's own is used", self.variable, value, self.engine
            )
        if value != "1":
            return
        try:
            is_installed = self.install()
        except Exception:
            self.log.warning(
                "shmcast can't be put in place; %s's own is used", self.engine, exc_info=True
            )
        else:
            if is_installed:
                _told_in.setdefault(self.engine, 0)
                if self.known_functions:  # (they may be called where there is no queue)
                    self.tell_once()

    def tell_once(self) -> None:
        """Say in the log, once in each process, that messages go this way.

        In the first process, an engine sets up its log only after it has called its plugins.
        """
        here = os.getpid()
        if _told_in.get(self.engine, here) != here:
            _told_in[self.engine] = here
            self.log.info("shmcast carries the messages between %s's processes", self.engine)

    def attribute(self, name: str) -> type[Any]:
        """Return a class by its name, for the `__getattr__` of the face.

        Who asks for the handle's class unpickles a handle, and the engine's own queue can't read
        from where that leads. So all are put in place, whatever the environment says: a worker may
        have been started with another one than its core.

        Raises:
            AttributeError: there is none of that name.
        """
        if name not in ("MessageQueue", "Handle"):
            raise AttributeError(f"module {self.face!r} has no attribute {name!r}")
        if name == "Handle":
            self.install()
        return self.classes[name]

    @functools.cached_property
    def classes(self) -> dict[str, type[Any]]:
        """`MessageQueue` and `Handle`."""
        from shmcast.compat._queues.ring_queue import queue_class

        queue, handle = self._own
        own = importlib.import_module(self.module)
        settings = self.settings(own)
        engine = Engine(
            name=self.engine,
            queue=queue,
            handle=handle,
            logger=own.logger,
            begin=self.tell_once,
            **settings,
        )
        made = queue_class(engine, self.face)
        return dict(zip(("MessageQueue", "Handle"), made, strict=True))

    @functools.cached_property
    def functions(self) -> Functions:
        """Ours, by where they take the place of the engine's."""
        return self.make_functions(self._own_functions)

    @functools.cached_property
    def _own(self) -> tuple[type[Any], type[Any]]:
        """The engine's classes: found once, as the first one's name may lead to ours afterwards."""
        own = importlib.import_module(self.module)
        return own.MessageQueue, own.Handle

    @functools.cached_property
    def _own_functions(self) -> Functions:
        found = {where: getattr(*_owner_and_name(where), None) for where in self.known_functions}
        return {where: own for where, own in found.items() if own is not None}

    def _unknown(self) -> list[str]:
        importlib.import_module(self.package)
        try:
            self.settings(importlib.import_module(self.module))
            own_classes, own_functions = self._own, self._own_functions
        except (ImportError, AttributeError) as error:
            return [str(error)]
        unknown = self.known.unknown_in(*own_classes)
        for where, parameters in self.known_functions.items():
            name = where.partition(":")[2]
            own = own_functions.get(where)
            found = None if own is None else tuple(inspect.signature(own).parameters)
            if found is None:
                unknown.append(f"no {name}()")
            elif found != parameters:
                unknown.append(f"{name}({', '.join(found)})")
        return unknown or self._other_defaults()

    def _other_defaults(self) -> list[str]:
        """Return which defaults are not those of what stands in, in words."""
        from shmcast.compat._queues.ring_queue import RingQueue

        own = self._own[0]
        methods = {name for name in self.known.methods if hasattr(RingQueue, name)}
        methods -= {"__init__"}  # (which takes theirs)
        pairs = [(name, getattr(own, name), getattr(RingQueue, name)) for name in sorted(methods)]
        pairs += [
            (where.partition(":")[2], function, self.functions[where])
            for where, function in self._own_functions.items()
        ]
        return [told for pair in pairs for told in other_defaults(*pair)]


@contextlib.contextmanager
def _heard(log: logging.Logger) -> Iterator[None]:
    """Write what is logged meanwhile as the engine would, if it has no log yet."""
    if log.hasHandlers():
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(_FORMAT + "%(message)s", _DATE_FORMAT))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _owner_and_name(where: str) -> tuple[Any, str]:
    """Return the module or class that has a function, and under which name."""
    module, _, path = where.partition(":")
    of_class, _, name = path.rpartition(".")
    return pkgutil.resolve_name(f"{module}:{of_class}"), name


def _replace(package: str, old: object, new: object) -> None:
    """Put `new` wherever a module of a package that is imported has `old` under a global name.

    Modules that are imported later take it from the one that defines it.
    """
    for name, module in [*sys.modules.items()]:
        if isinstance(module, ModuleType) and name.partition(".")[0] == package:
            for attribute in [key for key, value in vars(module).items() if value is old]:
                setattr(module, attribute, new)

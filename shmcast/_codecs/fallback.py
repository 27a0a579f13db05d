"""What encodes the objects that pickle refuses, such as local functions. Imported with one."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from collections.abc import Callable
from typing import Any, Protocol

from shmcast._codecs.base import Frame
from shmcast.errors import InvalidArgument, MissingDependency

REFUSALS = (pickle.PicklingError, AttributeError, TypeError)
"""What pickle raises for what it can't pickle."""


class PickleLike(Protocol):
    """A module like pickle, whose `dumps` takes more: cloudpickle, dill."""

    __name__: str
    dumps: Callable[[Any], bytes]
    loads: Callable[[bytes], Any]


class Fallback:
    """Encodes by another module what pickle refuses.

    Args:
        module: the module, or its name. By name it is imported when it is first needed.

    Raises:
        InvalidArgument: it has no `dumps` and `loads`.
        MissingDependency: there is no module of this name.
    """

    def __init__(self, module: str | PickleLike) -> None:
        if isinstance(module, str):
            self.name = module
            if not _is_installed(module):
                raise MissingDependency(
                    f"fallback={module!r}: no module of this name is installed; run "
                    f"`pip install {module}` on every rank, or leave fallback out"
                )
            self._module = None
        else:
            _check(module)
            self.name, self._module = module.__name__, module

    def behind(
        self, encode: Callable[..., list[Frame]], otherwise: Callable[[Any], list[Frame]]
    ) -> Callable[..., list[Frame]]:
        """Return what encodes as `encode` does and, if that refuses the object, by this module.

        Args:
            encode: is called with an object, and whatever else it takes.
            otherwise: is called with what this module has made of the object.
        """

        def encode_or_fall_back(obj: Any, *more: Any) -> list[Frame]:
            try:
                return encode(obj, *more)
            except REFUSALS:
                wrapped = self.wrap(obj)
            return otherwise(wrapped)

        return encode_or_fall_back

    def wrap(self, obj: Any) -> Any:
        """Return what pickle takes in the place of `obj`: it is unpickled as `obj`.

        Raises:
            Exception: what the module raises for what it refuses, too; of any class.
        """
        if self._module is None:
            self._module = importlib.import_module(self.name)
            _check(self._module)
        return _Dumped(self.name, self._module.dumps(obj))


class _Dumped:
    def __init__(self, module: str, dumped: bytes) -> None:
        self._reduced = loads, (module, dumped)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def loads(module: str, dumped: bytes) -> Any:
    """Return the object that the source's fallback has encoded; called by name in pickles.

    Raises:
        MissingDependency: this process has no such module.
        Exception: what the module raises; of any class.
    """
    try:
        load = importlib.import_module(module).loads
    except ImportError as error:
        raise MissingDependency(
            f"the source has encoded this message by its fallback {module}, which is not installed "
            f"here ({error}); run `pip install {module}` on every rank"
        ) from error
    return load(dumped)


def _is_installed(name: str) -> bool:
    try:
        is_name = all(part.isidentifier() for part in name.split("."))
        return is_name and importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # its package is not, or it is no module
        return False


def _check(module: Any) -> None:
    for name in ("dumps", "loads"):
        if not callable(getattr(module, name, None)) or not hasattr(module, "__name__"):
            raise InvalidArgument(
                f"fallback={module!r} is no module with {name}(); pass 'cloudpickle', or a module "
                "like it"
            )

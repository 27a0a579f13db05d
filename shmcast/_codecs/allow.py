"""Codec: unpickle with a list of what a pickle may name. Imported once there is such a list."""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import sys
from collections.abc import Callable, Collection
from typing import Any

from shmcast._codecs.base import Received
from shmcast.errors import InvalidArgument

FindClass = Callable[[str, str], Any]
"""What `pickle.Unpickler.find_class` is: returns what a module has by that name."""

Allowed = type | Callable[..., Any] | str

_PLAIN = {
    "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice "
    "str tuple",
    "collections": "OrderedDict defaultdict deque",
    "copyreg": "__newobj__ __newobj_ex__",  # which call what was found by another name
    "datetime": "date datetime time timedelta timezone",
    "numpy": "dtype ndarray",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.numeric": "_frombuffer",
    "torch": "Size device",
    "shmcast._codecs.byte_strings": "bytes_of bytearray_of",
    "shmcast._codecs.arrays": "_rebuild_array _rebuild_read_only _rebuild_strided "
    "_rebuild_subclass",
    "shmcast._codecs.tensors": "_rebuild_tensor _rebuild_strided _rebuild_parameter "
    "_set_attributes",
    "shmcast._devices.codec": "_next_tensor _rebuild_staged",
}
"""What is always allowed, by module: plain values, arrays and tensors."""

_PLAIN_NAMES = {f"{module}.{name}" for module, names in _PLAIN.items() for name in names.split()}

_DTYPE_POSITION = {"_rebuild_subclass": 2}
"""The place of the dtype among a rebuilding function's arguments, where it is not 1."""


class AllowList:
    """What a pickle may name, beside plain values, arrays and tensors.

    Args:
        allow: classes and functions; or their names, such as "package.module.Class"; or
            "package.*" for all classes and functions that a package defines.

    Raises:
        InvalidArgument: one of them is neither.
    """

    def __init__(self, allow: Collection[Allowed]) -> None:
        if isinstance(allow, str) or not isinstance(allow, Collection):
            raise InvalidArgument(
                f"allow={allow!r} is no collection of classes or names; pass a list, "
                "such as [Step, 'package.module.Class', 'package.*']"
            )
        names = {_name_of(each) for each in allow}
        self._packages = tuple(name.removesuffix("*") for name in names if name.endswith(".*"))
        self._names = _PLAIN_NAMES | names

    def loads(self, frame: Received | bytes, *, buffers: list[Received] | None = None) -> Any:
        """Unpickle like `pickle.loads`.

        Raises:
            UnpicklingError: the pickle names what is not allowed.
            Exception: what unpickling raises; of any class.
        """
        return _Unpickler(self, io.BytesIO(frame), buffers).load()

    def find(self, module: str, name: str) -> Any:
        """Return what a pickle names, if it is allowed; import nothing else.

        Raises:
            UnpicklingError: it is not.
        """
        whole = f"{module}.{name}"
        if whole in self._names:
            found = _find(module, name)
            return _without_objects(found) if module == "shmcast._codecs.arrays" else found
        if module == "torch":
            found = _find(module, name)
            if type(found).__module__ == "torch" and not callable(found):
                return found  # a dtype, a layout
        elif f"{module}.".startswith(self._packages) and self._packages:
            found = _find(module, name)
            # By where it is defined: a module has names of others, too, such as `os.system`.
            home = f"{getattr(found, '__module__', None)}."
            if callable(found) and home.startswith(self._packages):
                return found
        raise pickle.UnpicklingError(
            f"the message names {whole}, which this codec does not allow: give the codec "
            f"allow=[..., {whole!r}] if it may be used"
        )


def _find(module: str, name: str) -> Any:
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, allowed: AllowList, file: io.BytesIO, buffers: list[Received] | None
    ) -> None:
        super().__init__(file, buffers=buffers)
        self._allowed = allowed

    def find_class(self, module: str, name: str, /) -> Any:
        return self._allowed.find(module, name)


def _name_of(allowed: Any) -> str:
    if isinstance(allowed, str):
        if "." in allowed.strip("."):
            return allowed
    elif callable(allowed) and hasattr(allowed, "__module__") and hasattr(allowed, "__qualname__"):
        return f"{allowed.__module__}.{allowed.__qualname__}"
    raise InvalidArgument(
        f"allow has {allowed!r}, which is no class, no function and no name such as "
        "'package.module.Class' or 'package.*'"
    )


@functools.cache
def _without_objects(rebuild: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that rebuilds arrays, but none whose bytes would be taken for pointers."""
    position = _DTYPE_POSITION.get(rebuild.__name__, 1)

    def checked(*args: Any) -> Any:
        dtype = sys.modules["numpy"].dtype(args[position])
        if dtype.hasobject:
            raise pickle.UnpicklingError(f"an array of {dtype} can't be made of bytes")
        return rebuild(*args)

    return checked

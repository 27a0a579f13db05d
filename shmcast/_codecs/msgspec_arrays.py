"""Codec: arrays and tensors in a msgpack message. Imported once msgspec is in use.

In an array's place the message has an extension that says how it lies. Its elements are in a buffer
beside the message, or, if they are few, in the extension.
"""

from __future__ import annotations

import functools
import importlib
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any

import msgspec

from shmcast._codecs.base import OUT_OF_BAND_BYTES, Received

Ext = msgspec.msgpack.Ext

Encoder = tuple[Callable[[Any], bytes], "list[memoryview]"]
"""What encodes an object, and the list to which it adds the object's buffers."""

Decoder = tuple[Callable[[Received], Any], "list[Received]"]
"""What decodes a message, and the list of frames in which it looks for the buffers."""

_CODES = {"numpy.ndarray": 96, "torch.Tensor": 97}  # of the extensions
_MODULES = {96: "shmcast._codecs.arrays", 97: "shmcast._codecs.tensors"}


def make_encoder() -> Encoder:
    """A new encoder, of any object."""
    buffers: list[memoryview] = []
    hook = functools.partial(_to_extension, buffers)
    return msgspec.msgpack.Encoder(enc_hook=hook).encode, buffers


def make_decoder(message_type: Any) -> Decoder:
    """A new decoder of one type.

    Raises:
        Exception: msgspec does not know the type; of any class.
    """
    frames: list[Received] = []
    hook = functools.partial(_from_extension, frames)
    return msgspec.msgpack.Decoder(message_type, ext_hook=hook).decode, frames


def is_array(cls: type) -> bool:
    """Whether instances of exactly this class travel as buffers."""
    return _qualified_name(cls) in _CODES


def _to_extension(buffers: list[memoryview], obj: Any) -> Ext:
    """The extension for an object that msgspec does not know.

    Raises:
        TypeError: it is no array and no tensor, or more than its elements.
    """
    cls = type(obj)
    code = _code_by_class.get(cls) or _code_of(cls)
    module = _module(code)
    rebuild, args = module.REDUCERS[cls](obj)[:2]
    if rebuild not in module.REBUILDERS:  # it was reduced in pickle's own way
        raise TypeError(_unsupported(obj))
    buffer, dtype, *layout = args
    if isinstance(buffer, pickle.PickleBuffer):
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES:
            buffer = raw
        else:
            buffers.append(raw)
            buffer = len(buffers)  # the number of its frame; 0 is the message
    which = module.REBUILDERS.index(rebuild)
    return Ext(code, _encode((which, buffer, module.dtype_name(dtype), *layout)))


def _from_extension(frames: list[Received], code: int, data: memoryview) -> Any:
    """The array or tensor of an extension. One that is the user's own is left as it is."""
    if code not in _MODULES:
        return Ext(code, bytes(data))
    module = _module(code)
    which, buffer, dtype, *layout = _decode(data)
    if isinstance(buffer, int):
        buffer = frames[buffer]
    return module.REBUILDERS[which](buffer, module.dtype_from_name(dtype), *layout)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

_code_by_class: dict[type, int] = {}


def _code_of(cls: type) -> int:
    """The extension of a class.

    Raises:
        TypeError: there is none.
    """
    name = _qualified_name(cls)
    if name not in _CODES:
        raise TypeError(
            f"a {name} is nothing that msgspec encodes, and not exactly a {' or '.join(_CODES)}"
        )
    _code_by_class[cls] = _CODES[name]
    return _CODES[name]


@functools.cache
def _module(code: int) -> ModuleType:
    """What takes arrays of an extension apart and makes them, and spells their dtypes."""
    return importlib.import_module(_MODULES[code])


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _unsupported(obj: Any) -> str:
    if hasattr(obj, "layout"):  # numpy arrays have none
        return (
            f"a tensor of {obj.dtype} on {obj.device}, {obj.layout}: only dense ones on the CPU "
            "without attributes of their own can be sent; PickleCodec takes others, too"
        )
    return f"an array of dtype {obj.dtype}: Python objects have no memory to send"

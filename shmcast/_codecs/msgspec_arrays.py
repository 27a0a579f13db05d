"""Codec: arrays and tensors in a msgpack message. Imported once msgspec is in use.

An array's place in the message holds an extension, which describes the array. Its elements are in a
frame beside the message or, if they are few, in the extension.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from shmcast._codecs.base import OUT_OF_BAND_BYTES, Received

Ext = msgspec.msgpack.Ext

Encoder = tuple[Callable[[Any], bytes], "list[memoryview]"]
"""What encodes an object, and the list to which it adds the object's buffers."""

Decoder = tuple[Callable[[Received], Any], "list[Received]"]
"""What decodes a message, and the list of frames in which it looks for the buffers."""

_NUMPY, _TORCH = 96, 97  # the extensions' codes
_CODES = {"numpy.ndarray": _NUMPY, "torch.Tensor": _TORCH}


class _Library(Protocol):
    """What a module of this room knows of its library's arrays."""

    REDUCERS: dict[type, Callable[[Any], Any]]
    REBUILDERS: tuple[Callable[..., Any], ...]

    def dtype_name(self, dtype: Any, /) -> str: ...

    def dtype_from_name(self, text: str, /) -> Any: ...


def make_encoder() -> Encoder:
    """Make an encoder of any object."""
    buffers: list[memoryview] = []
    hook = functools.partial(_to_extension, buffers)
    return msgspec.msgpack.Encoder(enc_hook=hook).encode, buffers


def make_decoder(message_type: Any) -> Decoder:
    """Make a decoder of one type.

    Raises:
        Exception: msgspec does not know the type; of any class.
    """
    frames: list[Received] = []
    hook = functools.partial(_from_extension, frames)
    return msgspec.msgpack.Decoder(message_type, ext_hook=hook).decode, frames


def is_array(cls: type) -> bool:
    """Return whether instances of exactly this class travel as buffers."""
    return _qualified_name(cls) in _CODES


def _to_extension(buffers: list[memoryview], obj: Any) -> Ext:
    """Return the extension for an object that msgspec does not know.

    Raises:
        TypeError: it is neither an array nor a tensor, or has more than its elements.
    """
    cls = type(obj)
    code = _code_by_class.get(cls) or _code_of(cls)
    library = _library(code)
    rebuild, args, *more = library.REDUCERS[cls](obj)
    if more or rebuild not in library.REBUILDERS:  # attributes, or reduced in pickle's own way
        raise TypeError(_reason_against(obj))
    buffer, dtype, *layout = args
    if isinstance(buffer, pickle.PickleBuffer):
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES:
            buffer = raw
        else:
            buffers.append(raw)
            buffer = len(buffers)  # the number of its frame; 0 is the message
    which = library.REBUILDERS.index(rebuild)
    return Ext(code, _encode((which, buffer, library.dtype_name(dtype), *layout)))


def _from_extension(frames: list[Received], code: int, data: memoryview) -> Any:
    """Return the array or tensor of an extension; leave an extension of the user's as it is."""
    if code not in (_NUMPY, _TORCH):
        return Ext(code, bytes(data))
    library = _library(code)
    which, buffer, dtype, *layout = _decode(data)
    if isinstance(buffer, int):
        buffer = frames[buffer]
    return library.REBUILDERS[which](buffer, library.dtype_from_name(dtype), *layout)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode

_code_by_class: dict[type, int] = {}


def _code_of(cls: type) -> int:
    """Return the extension's code for a class, and remember it.

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
def _library(code: int) -> _Library:
    if code == _NUMPY:
        from shmcast._codecs import arrays

        return arrays
    from shmcast._codecs import tensors

    return tensors


def _qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _reason_against(obj: Any) -> str:
    """Say why an array or tensor can't be sent."""
    if hasattr(obj, "layout"):  # numpy arrays have none
        return (
            f"a tensor of {obj.dtype} on {obj.device}, {obj.layout}: only dense ones on the CPU "
            "without attributes of their own can be sent; PickleCodec takes others, too"
        )
    if not obj.dtype.hasobject:
        return f"an array of dtype {obj.dtype}, whose elements have no bytes; PickleCodec takes it"
    return f"an array of dtype {obj.dtype}: Python objects have no memory to send"

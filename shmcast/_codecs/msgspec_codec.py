"""Objects of one type to frames and back: msgspec instead of pickle. Imports msgspec when used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shmcast._codecs.base import Frame, Received
from shmcast._codecs.msgspec_errors import describe_failure, type_name
from shmcast.errors import InvalidArgument, MissingDependency

if TYPE_CHECKING:
    from shmcast._codecs.msgspec_arrays import Decoder, Encoder

_FIRST_BYTES_OF_PICKLE_CODEC = (b"\x80", b"\0")  # of a pickle, of a manifest of device tensors
_MAX_SAMPLE_BYTES = 1024  # a message that comes during a warm-up has to wait


class MsgspecCodec:
    """A codec for messages of one type, which the readers know: msgspec's MessagePack.

    It is several times faster than `PickleCodec` for objects of many parts, because no class is
    looked up and no attribute is named. Readers check types, and run no code but that of the type's
    own classes.

    numpy arrays and CPU tensors may be in fields that are declared as `np.ndarray`, `NDArray[...]`,
    `torch.Tensor`, one of them `| None`, or `Any`. They travel as with `PickleCodec`: those of at
    least 4 KiB as frames, whatever their dtype and layout, and without a copy to or from an arena.
    No pickle is involved, so arrays of Python objects, tensors on devices, sparse tensors and
    subclasses are errors. An object that is in a message twice arrives as two.

    Like msgspec's, the encoder checks no types. A value of another type than declared, if msgspec
    encodes it, is found by the readers, whose error names its path (fields of `array_like` Structs
    by their positions). To find it at the source while developing, decode there:
    `codec.decode([bytearray(frame) for frame in codec.encode(obj)])`.

    MessagePack's extensions 96 and 97 stand for arrays and tensors; all others are yours.

    Args:
        type: what `msgspec.msgpack.Decoder` takes: a Struct, a dataclass, `list[...]`, a union of
            tagged Structs, and so on, at any depth. Structs with `array_like=True, gc=False` are
            the fastest. Their `__post_init__` must have no side effects: warm-ups run it, too.

    Raises:
        MissingDependency: msgspec is not installed.
        InvalidArgument: msgspec can't decode the type; the error names the part.
    """

    def __init__(self, type: Any) -> None:  # noqa: A002 (msgspec's name for it)
        try:
            import msgspec
        except ImportError as error:
            raise MissingDependency(
                "MsgspecCodec needs msgspec: pip install 'shmcast[msgspec]'"
            ) from error
        from shmcast._codecs.msgspec_arrays import make_decoder, make_encoder
        from shmcast._codecs.msgspec_types import checked_type_info

        try:
            type_info = checked_type_info(type)
            # For messages of one frame, which are most: it looks for no buffers, so one will do.
            self._decode_single, _ = make_decoder(type)
        except Exception as error:
            raise InvalidArgument(f"MsgspecCodec({type_name(type)}): {error}") from error
        self._type = type
        self._encode_error = msgspec.EncodeError
        self._decode_error = msgspec.DecodeError
        self._make_encoder = make_encoder
        self._make_decoder = make_decoder
        # Idle ones. One is taken out while it is used, because it knows the message's buffers.
        self._encoders: list[Encoder] = []
        self._decoders: list[Decoder] = []
        self.sample: Callable[[], Any] | None = self._make_sample(type_info)
        """See `Codec`. None: no small object of the type could be made up."""

    def encode(self, obj: Any, /) -> list[Frame]:
        """Return the MessagePack of `obj`, then its buffers of at least 4 KiB.

        Raises:
            msgspec.EncodeError: a part of it can't be encoded; the error names the path.
        """
        try:
            encoder = self._encoders.pop()
        except IndexError:
            encoder = self._make_encoder()
        encode, buffers = encoder
        try:
            frames: list[Frame] = [encode(obj)]
        except Exception as error:  # the encoder is thrown away
            what = describe_failure(obj, self._type, self._make_encoder()[0])
            raise self._encode_error(what or str(error)) from error
        if buffers:
            frames += buffers
            buffers.clear()
        self._encoders.append(encoder)
        return frames

    def decode(self, frames: list[Received], /) -> Any:
        """Return the object that `encode` took.

        Raises:
            msgspec.ValidationError: it is not of the type; the error names the path.
            msgspec.DecodeError: it is no MessagePack.
        """
        if len(frames) == 1:
            try:
                return self._decode_single(frames[0])
            except Exception as error:
                self._check_is_typed(error, frames)
                raise
        try:
            decoder = self._decoders.pop()
        except IndexError:
            decoder = self._make_decoder(self._type)
        decode, buffers = decoder
        buffers += frames
        try:
            return decode(frames[0])
        except Exception as error:
            self._check_is_typed(error, frames)
            raise
        finally:
            buffers.clear()
            self._decoders.append(decoder)

    def _check_is_typed(self, error: Exception, frames: list[Received]) -> None:
        """Raise an error that says so if a message that failed looks like `PickleCodec`'s."""
        if bytes(frames[0][:1]) in _FIRST_BYTES_OF_PICKLE_CODEC:
            raise self._decode_error(
                f"{error}; the message looks like one of PickleCodec: give the source and this end "
                "the same codec"
            ) from error

    def _make_sample(self, type_info: Any) -> Callable[[], Any] | None:
        from shmcast._codecs.msgspec_sample import SampleBuilder

        try:
            sample = SampleBuilder().build(type_info)
            frames = self.encode(sample)
            self.decode([bytearray(frame) for frame in frames])
        except Exception:  # the type's own classes or constraints refuse it
            return None
        return (lambda: sample) if len(frames[0]) <= _MAX_SAMPLE_BYTES else None

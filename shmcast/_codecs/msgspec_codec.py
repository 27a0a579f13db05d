"""Objects of one type to frames and back: msgspec instead of pickle. Imports msgspec when used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from shmcast._codecs.base import Frame, Received
from shmcast._codecs.msgspec_errors import describe_failure, type_name
from shmcast.errors import InvalidArgument, MissingDependency

if TYPE_CHECKING:
    from shmcast._codecs.msgspec_arrays import Decoder, Encoder

_MAX_SAMPLE_BYTES = 1024  # at most: a message that comes while it is practised on has to wait


class MsgspecCodec:
    """Messages of one type, which the readers know, by msgspec (MessagePack).

    Several times faster than `PickleCodec` for objects of many parts, as no class is looked up and
    no attribute named. Readers check types and run no code but that of the type's own classes.

    numpy arrays and CPU tensors, in fields that are declared as `np.ndarray`, `NDArray[...]`,
    `torch.Tensor`, either of them `| None`, or `Any`, travel as with `PickleCodec`: those of at
    least 4 KiB as frames, whatever their dtype and layout, without a copy from and to an arena. No
    pickle is involved: arrays of Python objects, tensors on devices, sparse ones and subclasses are
    errors. An object that is there twice arrives as two.

    The encoder checks no types, as msgspec's does not: a value of another type than declared, if
    it is one that msgspec encodes, is found by the readers, whose error names its path (fields of
    `array_like` Structs by their positions). To find it at the source while developing, decode
    there: `codec.decode([bytearray(frame) for frame in codec.encode(obj)])`.

    MessagePack's extensions 96 and 97 are arrays and tensors; others are the user's.

    Args:
        type: what `msgspec.msgpack.Decoder` takes: a Struct, a dataclass, `list[...]`, a union of
            tagged Structs, and so on, at any depth. Structs with `array_like=True, gc=False` are
            the fastest. Their `__post_init__` must have no side effects: it is practised, too.

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
        from shmcast._codecs import msgspec_arrays
        from shmcast._codecs.msgspec_types import checked_type_info

        try:
            type_info = checked_type_info(type)
            # For messages without buffers, which are most: it has no state, so one will do.
            self._decode_single, _ = msgspec_arrays.make_decoder(type)
        except Exception as error:
            raise InvalidArgument(f"MsgspecCodec({type_name(type)}): {error}") from error
        self._type = type
        self._encode_error = msgspec.EncodeError
        self._make_encoder = msgspec_arrays.make_encoder
        self._make_decoder = msgspec_arrays.make_decoder
        # At rest. One is taken out while it is used, because it knows the message's buffers.
        self._encoders: list[Encoder] = []
        self._decoders: list[Decoder] = []
        self.sample: Callable[[], Any] | None = self._make_sample(type_info)
        """See `Codec`. None if no object of the type could be made up, or a large one only."""

    def encode(self, obj: Any, /) -> list[Frame]:
        """The MessagePack of `obj`, and its buffers.

        Raises:
            msgspec.EncodeError: some part of it can't be encoded; the error names its path.
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
        """The object that `encode` took.

        Raises:
            msgspec.ValidationError: it is not of the type; the error names the path.
            msgspec.DecodeError: it is no MessagePack.
        """
        if len(frames) == 1:
            return self._decode_single(frames[0])
        try:
            decoder = self._decoders.pop()
        except IndexError:
            decoder = self._make_decoder(self._type)
        decode, known = decoder
        known += frames
        try:
            return decode(frames[0])
        finally:
            known.clear()
            self._decoders.append(decoder)

    def _make_sample(self, type_info: Any) -> Callable[[], Any] | None:
        from shmcast._codecs.msgspec_sample import SampleBuilder

        try:
            sample = SampleBuilder().build(type_info)
            frames = self.encode(sample)
            self.decode([bytearray(frame) for frame in frames])
        except Exception:  # what the type's own classes or constraints don't take
            return None
        return (lambda: sample) if len(frames[0]) <= _MAX_SAMPLE_BYTES else None

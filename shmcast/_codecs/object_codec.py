"""Objects to frames and back at a schema's speed, with no schema: pickle's meaning, in the core."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from shmcast._codecs import object_classes
from shmcast._codecs.base import OUT_OF_BAND_BYTES, Codec
from shmcast._codecs.pickle_codec import PickleCodec, Reducers
from shmcast._core import ObjectCoder
from shmcast.errors import InvalidArgument

if TYPE_CHECKING:
    from shmcast._codecs.fallback import PickleLike


def core_coder(codec: Codec) -> ObjectCoder | None:
    """Return the codec if it encodes and decodes by the core's own methods, and otherwise None."""
    if not isinstance(codec, ObjectCoder) or {"encode", "decode"} & vars(codec).keys():
        return None
    own = type(codec)
    is_core = (own.encode, own.decode) == (ObjectCoder.encode, ObjectCoder.decode)
    return codec if is_core else None


class ObjectCodec(ObjectCoder):
    """What pickle does, several times faster, with no schema and no registration.

    `decode(encode(obj))` is what `pickle.loads(pickle.dumps(obj, 5))` is: values, types, order,
    what is shared and what contains itself, and which special methods are called. Not promised, as
    pickle's are no promise either: whether equal strings, bytes or numbers are one object, and in
    what order keys and values are made. What this can't encode, pickle does from the start; so it
    is with every object on free-threaded Pythons.

    numpy arrays and CPU tensors travel beside the message as with `PickleCodec`, and so do bytes
    objects and bytearrays of at least 64 KiB. What a `PickleCodec` has encoded is decoded, too.

    Args:
        allow: see `PickleCodec`.
        fallback: "cloudpickle", or a module like it (`dumps`, `loads`): encodes the whole message
            where pickle refuses a part of it, such as a local function. By name it is imported only
            then. Readers need the module too, but not this argument. None: there is none.

    Raises:
        InvalidArgument: `allow` has what is no class, function or name; or `fallback` is no such
            module, or comes with `allow`, which could not look into what it has encoded.
        MissingDependency: no module of the name `fallback` is installed.
    """

    def __init__(
        self,
        *,
        allow: Collection[type | Callable[..., Any] | str] | None = None,
        fallback: str | PickleLike | None = None,
    ) -> None:
        self.fallback: str | PickleLike | None = fallback
        """What encodes the objects that pickle refuses, as it was given."""
        self.allow: Collection[type | Callable[..., Any] | str] | None = allow
        """What a message may name, as it was given."""
        self._pickle = self._make_pickle_codec()
        super().__init__(
            object_classes,
            self._make_reducers().own_reducer,
            self._pickle.find or object_classes.find,
            OUT_OF_BAND_BYTES,
            *self._otherwise(),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Reduce to the arguments: a program may give its processes a codec.

        A fallback that is a module goes by its name, as modules can't be pickled.
        """
        fallback = getattr(self.fallback, "__name__", self.fallback)
        return functools.partial(type(self), allow=self.allow, fallback=fallback), ()

    def _make_pickle_codec(self) -> PickleCodec:
        """Return the codec for what this one does not take."""
        return PickleCodec(allow=self.allow)

    def _otherwise(self) -> tuple[Any, ...]:
        """Return what encodes and decodes the rest, and which errors are not raised before that."""
        encode, encode_again = self._encode_by_pickle()
        if self.fallback is None:
            return encode, encode_again, self._pickle.decode, ()
        from shmcast._codecs.fallback import REFUSALS, Fallback

        if self.allow is not None:
            raise InvalidArgument(
                "ObjectCodec: allow and fallback exclude each other: an allow-list can't look "
                "into what a fallback has encoded"
            )
        fallback = Fallback(self.fallback)
        behind, behind_again = (
            fallback.behind(encode, encode),
            fallback.behind(encode_again, encode),
        )
        return behind, behind_again, self._pickle.decode, REFUSALS

    def _encode_by_pickle(self) -> tuple[Callable[..., list[Any]], Callable[..., list[Any]]]:
        """Return what encodes an object by pickle, and what does so after parts were reduced."""
        return self._pickle.dump, self._pickle.encode_again

    def _make_reducers(self) -> Reducers:
        return Reducers()

    def sample(self) -> Any:
        """Return a small message of the kinds of objects that messages are made of."""
        return self._pickle.sample()

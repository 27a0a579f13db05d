"""What kind of codec a rank has, to find out whether the others have its like."""

from __future__ import annotations

from dataclasses import dataclass

from shmcast._codecs.base import Codec
from shmcast._endpoints.objects import checked_codec
from shmcast.errors import InvalidArgument

_MAIN = ("__main__", "__mp_main__")  # one module, as a program and as its spawned processes know it


@dataclass(frozen=True)
class CodecKind:
    """A codec's class, by names: its module may be known to one rank only."""

    name: str
    """For people to read."""
    classes: frozenset[str]
    """The class and its bases, without those that only declare methods."""
    fallback: str = ""
    """The module that encodes what the codec refuses; empty: there is none."""

    @classmethod
    def of(cls, codec: Codec | None) -> CodecKind | None:
        """Return the kind of a codec, where None stands for the default; None: it is no codec."""
        try:
            kind = type(checked_codec(codec, ""))
        except InvalidArgument:
            return None
        classes = [
            _name(base)
            for base in kind.__mro__
            if base is not object and not getattr(base, "_is_protocol", False)
        ]
        fallback = getattr(codec, "fallback", None) or ""
        name = fallback if isinstance(fallback, str) else getattr(fallback, "__name__", "")
        return cls(kind.__qualname__, frozenset(classes), name)

    def fits(self, other: CodecKind) -> bool:
        """Return whether one is the other's class, or both extend the same one.

        And both have the same fallback: so each rank has found that its module is installed.
        """
        return bool(self.classes & other.classes) and self.fallback == other.fallback

    def __str__(self) -> str:
        return f"{self.name}(fallback={self.fallback!r})" if self.fallback else self.name


def _name(kind: type) -> str:
    module = "" if kind.__module__ in _MAIN else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"

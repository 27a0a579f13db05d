"""What some calls need and others do without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from shmcast.errors import MissingDependency


@contextlib.contextmanager
def needing_torch(what: str) -> Iterator[None]:
    """Import torch within, or what imports it; say who needs it where it is not installed.

    A torch that is there and can't be imported raises what it raises.

    Args:
        what: the call, as its user knows it.

    Raises:
        MissingDependency: there is no torch.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependency(
            f"{what} needs torch, which is not installed here: pip install 'shmcast[torch]'"
        ) from error

"""What an operator may switch on in the environment."""

from __future__ import annotations

import os

from shmcast.errors import InvalidArgument


def is_on(variable: str, to_do: str) -> bool:
    """Return whether a variable of the environment is 1, and not 0, the default.

    Args:
        variable: its name.
        to_do: what it is set to 1 for, as the error says.

    Raises:
        InvalidArgument: the operator has set something else.
    """
    chosen = os.environ.get(variable, "").strip() or "0"
    if chosen not in ("0", "1"):
        raise InvalidArgument(
            f"the environment variable {variable}={chosen!r} is neither 0 nor 1; "
            f"set it to 1 {to_do}"
        )
    return chosen == "1"

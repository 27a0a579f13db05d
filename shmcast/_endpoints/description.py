"""What a segment says of itself to those who look at a host's segments."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from shmcast import _core

BETWEEN_TWO = 0
"""In place of nodes: one rank's messages to another, held back while they are not received."""


@dataclass(frozen=True, slots=True)
class Description:
    """What operators see of a segment, beside its figures.

    Attributes:
        title: what it is called, in front of the program's name.
        nodes: over how many its group is spread; `BETWEEN_TWO`: see there.
    """

    title: str
    nodes: int = 1

    @classmethod
    def between(cls, sender: str, receiver: str, title: str) -> Description:
        """Describe one rank's messages to another.

        Args:
            sender: how errors name that rank.
            receiver: how they name the other.
            title: what their group is called.
        """
        return cls(f"{sender} to {receiver} of {title}", BETWEEN_TWO)

    @property
    def label(self) -> str:
        """What the segment holds of it: the title and the program, in no more bytes than fit.

        Not the arguments: labels are in logs and metrics, where an argument may not belong.
        """
        text = f"{encodable(self.title)}: {encodable(program())}".encode()
        return text[: _core.LABEL_BYTES].decode(errors="ignore")

    def arguments(self, name: str) -> tuple[str, int, str]:
        """Return the last arguments of the core's writer.

        Args:
            name: how errors name the writer.
        """
        return self.label, self.nodes, encodable(name)


def receiver_of(label: str) -> str:
    """Return how errors name the receiver, of a label made by `Description.between`."""
    found = re.match("(?:.*?) to (.*?) of ", label)
    return found[1] if found else "the receiver"


def program() -> str:
    """Return the name of the program that this process runs."""
    path = Path(sys.argv[0] if sys.argv else "")
    if path.name == "__main__.py":  # python -m package
        path = path.parent
    return path.name if path.name not in ("", "-c", "-m") else "python"


def encodable(text: str) -> str:
    """Return a text without what UTF-8 has nothing for: a file's name may have it."""
    return text.encode(errors="replace").decode()

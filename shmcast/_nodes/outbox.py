"""The messages of a source that not every leader has taken yet: what bounds what is on its way."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from shmcast._nodes.envelope import Envelope

WINDOW_MESSAGES = 64
WINDOW_BYTES = 64 * 1024 * 1024
"""So much may be on its way; a message larger than that may be by itself."""


@dataclass
class Sent:
    """A message on its way."""

    envelope: Envelope
    works: list[Any] = field(default_factory=list)
    """Its collectives, torch's."""


class Window:
    """In the order in which they were sent. Changed under the relay's lock only."""

    def __init__(self) -> None:
        self.sent: deque[Sent] = deque()
        self.nbytes: int = 0
        """Of all of them, padding included."""

    def __len__(self) -> int:
        return len(self.sent)

    def add(self, sent: Sent) -> None:
        """The next message."""
        self.sent.append(sent)
        self.nbytes += sent.envelope.nbytes

    def is_full(self) -> bool:
        """Whether no further message may be sent."""
        return len(self.sent) >= WINDOW_MESSAGES or self.nbytes >= WINDOW_BYTES

    def let_go(self, seq: int) -> None:
        """All leaders have taken the messages up to `seq`."""
        while self.sent and self.sent[0].envelope.seq <= seq:
            self.nbytes -= self.sent.popleft().envelope.nbytes

    def oldest_works(self) -> list[Any]:
        """Of the message that has been on its way for longest."""
        return self.sent[0].works if self.sent else []

    def forget_works(self) -> None:
        """The group in which they were sent is no more."""
        for sent in self.sent:
            sent.works = []

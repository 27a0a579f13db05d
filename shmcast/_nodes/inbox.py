"""What a leader receives: the gloo group, the estimate and the buffer for the next message.

The counterpart of the source's outbox.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch._C._distributed_c10d import TCPStore

from shmcast._endpoints.statistics import Statistics
from shmcast._nodes.envelope import HEARTBEAT, read_header, unpack
from shmcast._nodes.estimate import SizeEstimate
from shmcast._nodes.gloo_group import RelayGroup

_FIRST_BUFFER = 64 * 1024


class Message(NamedTuple):
    """A message as it was received."""

    kind: int
    """Of its envelope."""
    frames: list[memoryview]
    """Views of the inbox's buffer, until the next message is received."""
    seq: int
    """Its sequence number."""
    nbytes: int
    """Bytes of its envelope, without padding."""


class Inbox:
    """Receives messages one after the other. For one thread.

    Args:
        key: of the relay's groups.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self.store: TCPStore | None = None
        """The source's, by which the groups' members find one another."""
        self._group: RelayGroup | None = None
        self._estimate = SizeEstimate()
        self._memory: np.ndarray[tuple[int], np.dtype[np.uint8]]
        self._tensor: torch.Tensor
        self._replace_buffer(_FIRST_BUFFER)
        self._network_bytes = 0

    @property
    def is_connected(self) -> bool:
        """Whether there is a group to receive from."""
        return self._group is not None

    def connect(self, epoch: int, rank: int, size: int) -> None:
        """Make the group of an epoch; wait for its other members.

        Args:
            epoch: from 0; the source counts its groups.
            rank: this leader's in the group.
            size: the number of members, the source included.

        Raises:
            RuntimeError: gloo could not connect them all.
        """
        assert self.store is not None  # noqa: S101 (the source has said where it is)
        self._estimate.restart()
        self._group = RelayGroup(self.store, f"{self._key}/{epoch}", rank, size)

    def disconnect(self) -> None:
        """Leave the group."""
        group, self._group = self._group, None
        if group is not None:
            group.retire()

    def receive(self, is_interrupted: Callable[[], bool]) -> Message | None:
        """Receive the next message.

        Args:
            is_interrupted: asked about four times a second, whether to give up.

        Returns:
            The message; None: it was given up, and the group was left.

        Raises:
            RuntimeError: gloo has failed; the group was left.
            ValueError: it is no message.
        """
        first = self._estimate.next
        self._reserve(first)
        if not self._receive_part(0, first, is_interrupted):
            return None
        kind, count, seq, total = read_header(self._memory.data)
        if total > first:
            self._reserve(total, keep=first)
            if not self._receive_part(first, total, is_interrupted):
                return None
        if kind != HEARTBEAT:
            self._estimate.add(total)
            self._network_bytes += max(first, total)
        return Message(kind, unpack(self._memory.data, count, total), seq, total)

    def statistics(self, base: Statistics) -> Statistics:
        """Return `base` with what was received."""
        return dataclasses.replace(
            base,
            relayed_bytes=self._network_bytes,
            estimate_hits=self._estimate.hits,
            estimate_misses=self._estimate.misses,
        )

    def _reserve(self, size: int, keep: int = 0) -> None:
        """Make the buffer large enough; it keeps its first `keep` bytes."""
        if self._memory.nbytes < size:
            old = self._memory
            self._replace_buffer(max(size, 2 * old.nbytes))
            self._memory[:keep] = old[:keep]

    def _replace_buffer(self, size: int) -> None:
        self._memory = np.empty(size, np.uint8)
        self._tensor = torch.from_numpy(self._memory)

    def _receive_part(self, start: int, end: int, is_interrupted: Callable[[], bool]) -> bool:
        """Receive into a part of the buffer; return False if that was given up."""
        group = self._group
        assert group is not None  # noqa: S101 (the caller has connected it)
        try:
            work = group.broadcast(self._tensor[start:end])
            while not group.wait(work):
                if is_interrupted():
                    # gloo may still write there: it keeps the memory, the inbox gets another.
                    self.disconnect()
                    self._replace_buffer(_FIRST_BUFFER)
                    return False
        except RuntimeError:
            self.disconnect()
            raise
        return True

"""What the source has sent: numbered, broadcast in order, kept until every leader has it.

The messages that are not acknowledged yet bound what is in flight. They are what is sent again, in
a new group, when the source goes on without a leader.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from shmcast._endpoints.statistics import Statistics
from shmcast._nodes.envelope import HEARTBEAT, MESSAGE, Envelope, pack
from shmcast._nodes.estimate import SizeEstimate
from shmcast._nodes.gloo_group import RelayGroup, serve_store

WINDOW_MESSAGES = 64
WINDOW_BYTES = 64 * 1024 * 1024
"""Begin no further message while this many, or this many bytes, are not acknowledged."""


class GlooError(NamedTuple):
    """A collective that has failed."""

    since: float
    """On the clock of `time.monotonic`."""
    text: str


@dataclass
class _Sent:
    """A message that some leader has not acknowledged."""

    envelope: Envelope
    works: list[Any] = field(default_factory=list)
    """Its collectives, as torch's `Work`."""
    is_counted: bool = True
    """In the estimate and the statistics: it is no heartbeat."""


class Outbox:
    """Broadcasts messages to the leaders, and keeps them until they are acknowledged.

    One thread at a time sends and changes the group. Any thread may acknowledge, and close.

    Args:
        key: of the relay's groups.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._store = serve_store()
        self._group: RelayGroup | None = None
        self._estimate = SizeEstimate()
        self._unacknowledged: deque[_Sent] = deque()
        self._closed = False
        # Re-entrant: a signal's handler may close the source while its thread holds it.
        self._lock = threading.RLock()
        self.seq: int = 0
        """Sequence number of the latest message."""
        self.nbytes: int = 0
        """Bytes of the messages that are not acknowledged, padding included."""
        self.messages: int = 0
        """Messages sent, without the one that closes."""
        self.payload_bytes: int = 0
        """Bytes of their frames."""
        self._must_regroup = False
        self._error: GlooError | None = None
        self._network_bytes = 0

    @property
    def store_port(self) -> int:
        """Where leaders reach the store by which the groups' members find one another."""
        return int(self._store.port)

    def __len__(self) -> int:
        """Return the number of messages that are not acknowledged."""
        return len(self._unacknowledged)

    @property
    def is_connected(self) -> bool:
        """Whether there is a group to send to."""
        return self._group is not None

    def is_full(self) -> bool:
        """Return whether acknowledgements must come before the next message."""
        return len(self._unacknowledged) >= WINDOW_MESSAGES or self.nbytes >= WINDOW_BYTES

    @property
    def must_regroup(self) -> bool:
        """Whether the group must be replaced before the next message."""
        return self._must_regroup

    @property
    def error(self) -> GlooError | None:
        """The first error of the current group."""
        return self._error

    def is_blocked(self) -> bool:
        """Return whether the next message must wait, for whatever reason."""
        return self._must_regroup or self._error is not None or self.is_full()

    def statistics(self, base: Statistics) -> Statistics:
        """Return `base` with the relay's figures."""
        return dataclasses.replace(
            base,
            relayed=self.messages,
            relayed_bytes=self._network_bytes,
            estimate_hits=self._estimate.hits,
            estimate_misses=self._estimate.misses,
        )

    # The group.

    def connect(self, epoch: int, size: int) -> None:
        """Make the group of an epoch, of this process and `size` - 1 leaders; wait for them.

        Raises:
            RuntimeError: gloo could not connect them all.
        """
        group = RelayGroup(self._store, f"{self._key}/{epoch}", 0, size)
        with self._lock:
            if not self._closed:
                self._group = group
                return
        group.retire()

    def require_regroup(self) -> None:
        """Have the group replaced before the next message. From any thread."""
        self._must_regroup = True

    def begin_regroup(self) -> None:
        """Note that the group is being replaced; what is required from now on is another time."""
        self._must_regroup = False

    def reconnect(self, epoch: int, size: int) -> None:
        """Make the next group and send again what is not acknowledged; `error` if that fails.

        What is sent again counts again as bytes, and as a hit or a miss of the estimate.
        """
        try:
            self.connect(epoch, size)
        except RuntimeError as error:
            self._record(error)
            return
        self._estimate.restart()
        with self._lock:
            again = [*self._unacknowledged]
        for sent in again:
            self._begin(sent)

    def disconnect(self) -> None:
        """Leave the group. What is not acknowledged is kept for the next one."""
        with self._lock:
            self._error = None
            for sent in self._unacknowledged:
                sent.works = []
            group, self._group = self._group, None
        if group is not None:
            group.retire()

    def close(self) -> None:
        """Leave the group and forget all messages."""
        with self._lock:
            self._closed = True
            self.acknowledge(self.seq)
        self.disconnect()

    # Messages.

    def send(self, frames: Sequence[memoryview], kind: int = MESSAGE) -> None:
        """Begin to broadcast the next message.

        Args:
            frames: as `envelope.flat_views` returns them; their memory is copied.
            kind: of the envelope.
        """
        envelope = pack(frames, self.seq + 1, self._estimate.next, kind)
        sent = _Sent(envelope, is_counted=kind != HEARTBEAT)
        with self._lock:
            self.seq += 1
            self._unacknowledged.append(sent)
            self.nbytes += envelope.nbytes
        if kind == MESSAGE:
            self.messages += 1
            self.payload_bytes += sum(frame.nbytes for frame in frames)
        self._begin(sent)

    def acknowledge(self, seq: int) -> None:
        """Forget the messages up to `seq`: every leader has them."""
        with self._lock:
            while self._unacknowledged and self._unacknowledged[0].envelope.seq <= seq:
                self.nbytes -= self._unacknowledged.popleft().envelope.nbytes

    def check_oldest(self) -> None:
        """Look whether the message that is in flight for longest has failed."""
        with self._lock:
            works = self._unacknowledged[0].works if self._unacknowledged else []
        for work in works:
            try:
                if work.is_completed():
                    work.wait()
            except RuntimeError as error:
                self._record(error)

    def _begin(self, sent: _Sent) -> None:
        envelope, first, group = sent.envelope, self._estimate.next, self._group
        if group is None:
            return  # it was lost meanwhile
        tensor = envelope.tensor
        if envelope.nbytes < first:  # sent again, after other sizes than the first time
            tensor = torch.zeros(first, dtype=torch.uint8, device="cpu")
            tensor[: envelope.total] = envelope.tensor[: envelope.total]
        if sent.is_counted:
            self._network_bytes += max(first, envelope.total)
        try:
            # (Making a view costs torch as much as all else here.)
            head = tensor if tensor.nbytes == first else tensor[:first]
            sent.works = [group.broadcast(head)]
            if envelope.total > first:
                sent.works.append(group.broadcast(tensor[first : envelope.total]))
        except RuntimeError as error:
            self._record(error)
        except BaseException:  # a signal: the leaders may have less than they wait for
            self.require_regroup()
            raise
        if sent.is_counted:
            self._estimate.add(envelope.total)

    def _record(self, error: RuntimeError) -> None:
        self._error = self._error or GlooError(time.monotonic(), str(error))

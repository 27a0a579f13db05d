"""`Statistics`: what an endpoint has done, counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an endpoint has done since it was made (a group of one rank counts messages only)."""

    messages: int = 0
    """Messages sent, or received whole."""
    payload_bytes: int = 0
    """Bytes of their frames."""
    fragments: int = 0
    """Slots filled or emptied for them."""
    abandoned: int = 0
    """Messages given up half-way, after a time-out or signal in the writer."""
    spins: int = 0
    """Waits that ended while spinning."""
    parks: int = 0
    """Times that the endpoint went to sleep: until woken, or until shortly before a message."""
    wakeups: int = 0
    """Sleeps that ended because what it waited for was there."""
    wakes: int = 0
    """System calls made to wake others."""
    preemptions: int = 0
    """Times that the core was taken away from a spinner (adaptive only)."""
    spun_seconds: float = 0.0
    """Time spent spinning."""
    parked_seconds: float = 0.0
    """Time spent asleep."""
    gap_seconds: float = 0.0
    """The median of the last gaps between messages, 0 until some are known. Bursts count as one."""
    tensor_sets: int = 0
    """Messages with device tensors whose broadcasts were begun (`ShmBroadcaster` only)."""
    arena_frames: int = 0
    """Buffers sent or received in the arena."""
    arena_full: int = 0
    """Writer only: buffers and loans that found no room there; streamed, or in ordinary memory."""
    arena_reserved_bytes: int = 0
    """Writer only: bytes of the arena that have memory."""
    lag: tuple[int, ...] = ()
    """Writer only: fragments that each reader has not consumed yet, by reader index."""
    readers: tuple[Statistics, ...] = ()
    """Writer only: what each reader has done, by reader index."""
    relayed: int = 0
    """Source and leaders of several nodes: messages sent to other nodes, or received for one."""
    relayed_bytes: int = 0
    """Bytes of those collectives, padding included; on the source to one node, not to all."""
    estimate_hits: int = 0
    """Such messages that took one collective, because the estimate of their size was enough."""
    estimate_misses: int = 0
    """Such messages that took two."""

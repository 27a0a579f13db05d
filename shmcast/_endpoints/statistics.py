"""`Statistics`: what an endpoint has done, counted."""

from __future__ import annotations

from dataclasses import dataclass

from shmcast._endpoints.latencies import merged, quantile


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an endpoint has done since it was made (a group of one rank counts messages only).

    Attributes:
        messages: messages sent, or received whole.
        payload_bytes: bytes of their frames.
        fragments: slots filled or emptied for them.
        abandoned: messages given up half-way, after a time-out or signal in the writer.
        spins: waits that ended while spinning.
        parks: times that the endpoint went to sleep: until woken, or until shortly before a
            message.
        wakeups: sleeps that ended because what it waited for was there.
        wakes: system calls made to wake others.
        preemptions: times that the core was taken away from a spinner (adaptive only).
        parked_crowded: adaptive waits that went to sleep until woken because the members outnumber
            the usable CPUs.
        parked_preempted: the same, because the core had been taken away a few messages before.
        parked_beside_peer: the same, on the CPU where the member waited for was last seen.
        parked_unpaced: the same, because the message could not be foreseen, or was too far away.
        spun_seconds: time spent spinning.
        parked_seconds: time spent asleep.
        gap_seconds: the median of the last gaps between messages, 0 until some are known. Bursts
            count as one.
        latency_seconds: readers only: the sum of the latencies counted.
        latencies: readers only: how long messages took from `send` until all of their frames were
            there, counted by size in buckets an eighth of an octave wide, for a quarter of the
            messages, chosen by their numbers. See `latency`.
        tensor_sets: messages with device tensors whose broadcasts were begun (`ShmBroadcaster`
            only).
        arena_frames: buffers sent or received in the arena.
        arena_full: writer only: buffers and loans that found no room there; streamed, or in
            ordinary memory.
        arena_reserved_bytes: writer only: bytes of the arena that have memory.
        arena_huge_bytes: writer only: those of them that are in huge pages.
        spilled: writer only: messages of which a part was put beside the ring, because a reader was
            busy.
        spill_full: writer only: messages that found no memory there, so that `send` waited.
        spill_reserved_bytes: writer only: bytes of memory that were taken for it.
        spill_huge_bytes: writer only: those of them that are in huge pages.
        non_temporal_bytes: writer only: bytes that went past the caches, because the readers are
            far away or because there are too many for a cache.
        lag: writer only: fragments that each reader has not consumed yet, by reader index.
        readers: writer only: what each reader has done, by reader index.
        relayed: source and leaders of several nodes: messages sent to other nodes, or received for
            one.
        relayed_bytes: bytes of those collectives, padding included; on the source to one node, not
            to all. What is sent again when a node was dropped counts again, here and below.
        estimate_hits: how many of them took one collective, because the estimate of the size was
            enough.
        estimate_misses: how many took two.
    """

    messages: int = 0
    payload_bytes: int = 0
    fragments: int = 0
    abandoned: int = 0
    spins: int = 0
    parks: int = 0
    wakeups: int = 0
    wakes: int = 0
    preemptions: int = 0
    parked_crowded: int = 0
    parked_preempted: int = 0
    parked_beside_peer: int = 0
    parked_unpaced: int = 0
    spun_seconds: float = 0.0
    parked_seconds: float = 0.0
    gap_seconds: float = 0.0
    latency_seconds: float = 0.0
    latencies: tuple[int, ...] = ()
    tensor_sets: int = 0
    arena_frames: int = 0
    arena_full: int = 0
    arena_reserved_bytes: int = 0
    arena_huge_bytes: int = 0
    spilled: int = 0
    spill_full: int = 0
    spill_reserved_bytes: int = 0
    spill_huge_bytes: int = 0
    non_temporal_bytes: int = 0
    lag: tuple[int, ...] = ()
    readers: tuple[Statistics, ...] = ()
    relayed: int = 0
    relayed_bytes: int = 0
    estimate_hits: int = 0
    estimate_misses: int = 0

    def latency(self, q: float) -> float:
        """Return the one-way latency that a part of all messages did not exceed, in seconds.

        It is that of the frames, without encoding and decoding; what a busy reader leaves in the
        ring waits there, and that counts. On a writer it is that of all its readers together.

        Args:
            q: the part, 0.5 for the median.

        Returns:
            Seconds, exact to an eighth; 0 until one is known.
        """
        return quantile(self.latencies or merged(r.latencies for r in self.readers), q)

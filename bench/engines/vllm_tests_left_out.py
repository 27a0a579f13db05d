"""Which of vLLM's own tests can't pass with shmcast in the place of its queue, and why.

By file and name, in vLLM's folder of tests; a name stands for all that it is parametrized with.
What needs GPUs, vLLM skips by itself. What those are about that look into the queue is tested in
tests/compat/.
"""

from __future__ import annotations

_QUEUE = "distributed/test_shm_broadcast.py::"
_WAITING = "looks into the queue: sets or counts how vLLM's own waits (_spin_condition)"
_PICKLING = "looks into the queue: counts what vLLM's own pickles and sends by a socket"
_RING = "looks into the queue: at the metadata of vLLM's own ring, and reads an object as a block"
_ARENA = "looks into the queue: at vLLM's own arena for tensors"

LEFT_OUT = {
    f"{_QUEUE}test_message_queue_shutdown_busy": _WAITING,
    f"{_QUEUE}test_message_queue_shutdown_idle": _WAITING,
    f"{_QUEUE}test_message_queue_idle_wake": _WAITING,
    f"{_QUEUE}test_message_queue_busy_to_idle": _WAITING,
    f"{_QUEUE}test_reader_rechecks_shm_after_idle_wait_timeout_without_notify": _WAITING,
    f"{_QUEUE}test_tensor_broadcast": _PICKLING,
    f"{_QUEUE}test_broadcast_retains_values_after_ring_reuse": _PICKLING,
    f"{_QUEUE}test_acquire_read_releases_slot_when_reader_raises": _RING,
    f"{_QUEUE}test_tensor_arena_registry_is_weak_and_survives_shutdown": _ARENA,
    f"{_QUEUE}test_create_from_handle_tolerates_arena_attach_failure": _ARENA,
    f"{_QUEUE}test_arena_broadcast": _ARENA,
}
"""Reasons, by test."""

"""Workers of Ray's for vLLM on CPUs, which does not know where there it could have any."""

from __future__ import annotations

from typing import Any

_LOOK_S = 1.0  # a worker that can't wait any more has ended by then


def start_ray() -> str:
    """Start Ray on this host, with a GPU by name for one worker; return vLLM's name for it."""
    import ray

    allow_workers()
    ray.init(
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=100 << 20,
        runtime_env={"worker_process_setup_hook": f"{__name__}.{allow_workers.__name__}"},
    )
    return "ray"


def allow_workers() -> None:
    """Let vLLM in this process take what Ray calls a GPU for a place of a worker on CPUs."""
    from vllm.platforms import current_platform

    platform: Any = type(current_platform)
    platform.ray_device_key = "GPU"


def ended_without_core(server: Any) -> int:
    """Close the queue from an engine's core to its workers; return how many of them then end.

    So it is when the engine is shut down and Ray takes its time to end them.
    """
    import ray

    executor = server._llm.llm_engine.engine_core.engine_core.model_executor
    runs = [worker.run_ref for worker in executor.ray_worker_handles]
    executor.rpc_broadcast_mq._writer.close()
    ended, _ = ray.wait(runs, num_returns=len(runs), timeout=_LOOK_S)
    return len(ended)

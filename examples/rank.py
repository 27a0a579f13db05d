"""One rank of `tp_generate.py`: it makes the passes; rank 0 drives them and checks the tokens."""

import time
from collections.abc import Callable
from itertools import zip_longest

import torch
import torch.distributed as dist

import shmcast
from gpt_config import BLOCK_SIZE, CONFIG, MAX_RUNNING, NUM_BLOCKS, TOKEN_BUDGET
from passes import CHECK_PARTS, Message, Pass
from scheduler import BlockPool, Request, Scheduler
from tiny_gpt import PagedKVCache, TensorParallel, TinyGPT, continue_alone
from worker import Worker

Broadcast = Callable[[Message], Message]  # called with the message on rank 0, with None elsewhere
Tell = Callable[[str], None]  # called on rank 0 with what begins now


def drive(scheduler: Scheduler, worker: Worker, broadcast: Broadcast) -> dict[str, int]:
    """Run every request of `scheduler` to its end, as rank 0.

    Returns:
        When each request had its first token, in ns of the host's monotonic clock.
    """
    first_tokens: dict[str, int] = {}
    while (step := scheduler.schedule()) is not None:
        broadcast(step)
        tokens = worker.sample(worker.execute(step))
        now = time.monotonic_ns()
        for req_id in tokens:
            first_tokens.setdefault(req_id, now)
        scheduler.update(tokens)
    broadcast(None)
    return first_tokens


def follow(worker: Worker, broadcast: Broadcast) -> None:
    """Compute what rank 0 broadcasts until there is no more work, as any other rank."""
    while (step := broadcast(None)) is not None:
        worker.execute(step)


def broadcast_with_gloo(message: Message) -> Message:
    """Broadcast `message` from rank 0 with `torch.distributed`, over the gloo group."""
    box = [message]
    dist.broadcast_object_list(box, src=0)
    return box[0]


class Stopwatch:
    """A broadcast that notes its messages, and when each was called and returned.

    Attributes:
        messages: what was broadcast, in order.
        spans: the call and the return of each, in ns of the host's monotonic clock.
    """

    def __init__(self, broadcast: Broadcast) -> None:
        self.messages: list[Message] = []
        self.spans: list[tuple[int, int]] = []
        self._broadcast = broadcast

    def __call__(self, message: Message) -> Message:
        """Broadcast `message` and return it on every rank."""
        called = time.monotonic_ns()
        message = self._broadcast(message)
        self.spans.append((called, time.monotonic_ns()))
        self.messages.append(message)
        return message


def run_pass(
    transport: str,
    broadcast: Broadcast,
    model: TinyGPT,
    tp: TensorParallel,
    requests: list[Request],
) -> Pass | None:
    """Run all `requests` once, collectively; return the pass on rank 0 and None elsewhere."""
    cache = PagedKVCache(CONFIG, tp, num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)
    worker, stopwatch = Worker(model, cache), Stopwatch(broadcast)
    dist.barrier()
    if tp.rank > 0:
        follow(worker, stopwatch)
        dist.gather_object(stopwatch.spans)
        return None

    pool = BlockPool(NUM_BLOCKS, BLOCK_SIZE)
    scheduler = Scheduler(pool, requests, token_budget=TOKEN_BUDGET, max_running=MAX_RUNNING)
    start = time.monotonic_ns()
    first_tokens = drive(scheduler, worker, stopwatch)
    seconds = (time.monotonic_ns() - start) * 1e-9
    first_token_ms = [(first - start) * 1e-6 for first in first_tokens.values()]
    spans_of_ranks: list[list[tuple[int, int]]] = [[] for _ in range(tp.size)]
    dist.gather_object(stopwatch.spans, spans_of_ranks)
    # From the last rank's call to the last rank's return: until the last one calls, the others
    # wait for its computation, which is no broadcast's fault.
    broadcast_us = [
        (max(returned for _, returned in spans) - max(called for called, _ in spans)) * 1e-3
        for spans in zip(*spans_of_ranks, strict=True)
    ]
    driver_us = [(returned - called) * 1e-3 for called, returned in stopwatch.spans]
    return Pass(
        transport,
        scheduler.outputs,
        stopwatch.messages,
        broadcast_us,
        driver_us,
        first_token_ms,
        seconds,
    )


TRANSPORTS = ("shmcast", "gloo")


def run_rank(
    rank: int,
    ranks: int,
    tell: Tell,
    init_method: str,
    requests: list[Request],
    repeats: int,
    seed: int,
) -> list[Pass]:
    """Make every pass as one of the ranks; on rank 0 check the tokens and return the passes.

    Raises:
        ValueError: a token is not the unsharded model's.
    """
    torch.set_num_threads(1)  # the ranks share the cores
    torch.set_grad_enabled(False)
    tell(f"{ranks} ranks meet")
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=ranks)
    tp = TensorParallel(rank, ranks)
    model = TinyGPT(CONFIG, seed, tp)
    passes = []
    with shmcast.ShmBroadcaster(None, group_src=0) as broadcaster:
        broadcasts: tuple[Broadcast, ...] = (broadcaster.broadcast_object, broadcast_with_gloo)
        by_name = [*zip(TRANSPORTS, broadcasts, strict=True)]
        for number in range(1 + repeats):
            # In turns: a machine that gets slower or faster meanwhile favours neither.
            for transport, broadcast in by_name if number % 2 else reversed(by_name):
                what = f"pass {number} of {repeats}" if number else "pass that warms up"
                tell(f"generating with {transport}, {what}")
                passes.append(run_pass(transport, broadcast, model, tp, requests))
    dist.destroy_process_group()

    measured = [done for done in passes[len(TRANSPORTS) :] if done]  # the first ones warm up
    if rank == 0:
        check_tokens(requests, measured, seed, tell)
    return measured


def check_tokens(requests: list[Request], passes: list[Pass], seed: int, tell: Tell) -> None:
    """Raise ValueError unless every pass made the tokens of the unsharded model."""
    model = TinyGPT(CONFIG, seed, TensorParallel())
    for index, request in enumerate(requests):
        part, start = divmod(index * CHECK_PARTS, len(requests))
        if start < CHECK_PARTS:  # it is the part's first
            tell(f"checking tokens with the unsharded model, {part + 1} of {CHECK_PARTS}")
        checked: dict[tuple[int, ...], list[int]] = {}
        for done in passes:
            tokens = done.outputs[request.req_id]
            if tuple(tokens) not in checked:
                checked[tuple(tokens)] = continue_alone(
                    model, request.prompt_token_ids, tokens, request.sampling_params
                )
            expected = checked[tuple(tokens)]
            if tokens != expected:
                pairs = enumerate(zip_longest(tokens, expected))
                place = next(index for index, (got, wanted) in pairs if got != wanted)
                raise ValueError(
                    f"{request.req_id}, broadcast with {done.transport}, differs at output token "
                    f"{place}: got {tokens}, the unsharded model makes {expected}"
                )

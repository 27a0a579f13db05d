"""Generate text with a tensor-parallel GPT whose steps are broadcast through shared memory.

As in vLLM, rank 0 is driver and worker in one: at each step it schedules, broadcasts what to do,
computes its shard, samples, and gives the tokens back to the scheduler. The other ranks know of
the requests only what the broadcasts tell them. The same work is done with `ShmBroadcaster` and
with `broadcast_object_list` of `torch.distributed`, and every token of both is checked against
the unsharded model.

    python examples/tp_generate.py --ranks 2
    torchrun --nproc-per-node 2 examples/tp_generate.py

Over two nodes, on each with its own number. (Clocks of two hosts differ, so the times in the table
mean something only where the nodes share one, as namespaces or containers of a host do.)

    torchrun --nnodes 2 --node-rank 0 --master-addr host0 examples/tp_generate.py
"""

import os
import pickle
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

import shmcast
from scheduler import BlockPool, Request, SamplingParams, Scheduler, SchedulerOutput
from shmcast._endpoints.waiting import CpuBudget
from tiny_gpt import GPTConfig, PagedKVCache, TensorParallel, TinyGPT, generate_alone
from worker import Worker

PROMPTS = Path(__file__).with_name("prompts.txt")
CONFIG = GPTConfig()
BLOCK_SIZE = 16
NUM_BLOCKS = 40  # some requests have to wait for blocks
TOKEN_BUDGET = 64  # some prompts are prefilled in chunks
MAX_RUNNING = 8

Message = SchedulerOutput | None  # None: no more work
Broadcast = Callable[[Message], Message]  # called with the message on rank 0, with None elsewhere


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


@dataclass(frozen=True)
class Pass:
    """One pass over all the requests, as rank 0 reports it."""

    transport: str
    outputs: dict[str, list[int]]
    messages: list[Message]
    broadcast_us: list[float]  # of each message, on all ranks together
    driver_us: list[float]  # of each message, in the driver's own call
    first_token_ms: list[float]  # of each request; all of them arrive when the pass begins
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Return the generated tokens per second."""
        return sum(len(tokens) for tokens in self.outputs.values()) / self.seconds

    @property
    def broadcast_share(self) -> float:
        """Return the part of the time that went by in broadcasts."""
        return sum(self.broadcast_us) * 1e-6 / self.seconds


def run_pass(
    transport: str,
    broadcast: Broadcast,
    model: TinyGPT,
    tp: TensorParallel,
    requests: list[Request],
) -> Pass | None:
    """Run all `requests` once, collectively; returns the pass on rank 0 and None elsewhere."""
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


def run_rank(
    rank: int, ranks: int, init_method: str, requests: list[Request], repeats: int, seed: int
) -> None:
    """Be one of the ranks: make every pass, and on rank 0 check the tokens and print the table."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=ranks)
    tp = TensorParallel(rank, ranks)
    model = TinyGPT(CONFIG, seed, tp)
    passes = []
    with shmcast.ShmBroadcaster(None, group_src=0) as broadcaster:
        transports: dict[str, Broadcast] = {
            "shmcast": broadcaster.broadcast_object,
            "gloo": broadcast_with_gloo,
        }
        for _ in range(1 + repeats):
            for transport, broadcast in transports.items():
                passes.append(run_pass(transport, broadcast, model, tp, requests))
    dist.destroy_process_group()

    if rank == 0:
        measured = [done for done in passes[len(transports) :] if done]  # the first ones warm up
        check_tokens(requests, measured, seed)
        print_results(measured, ranks)


def check_tokens(requests: list[Request], passes: list[Pass], seed: int) -> None:
    """Raise ValueError unless every pass made the tokens of the unsharded model."""
    model = TinyGPT(CONFIG, seed, TensorParallel())
    for request in requests:
        expected = generate_alone(model, request.prompt_token_ids, request.sampling_params)
        for done in passes:
            tokens = done.outputs[request.req_id]
            if tokens != expected:
                pairs = enumerate(zip_longest(tokens, expected))
                place = next(index for index, (got, wanted) in pairs if got != wanted)
                raise ValueError(
                    f"{request.req_id}, broadcast with {done.transport}, differs at output token "
                    f"{place}: got {tokens}, the unsharded model makes {expected}"
                )


def print_results(passes: list[Pass], ranks: int) -> None:
    """Print the table: medians over passes, and percentiles over the messages of all passes."""
    table = Table("transport")
    columns = (
        "tokens/s",
        "first token p50",
        "broadcast p50",
        "p99",
        "driver's call p50",
        "share of time",
        "steps",
    )
    for column in columns:
        table.add_column(column, justify="right")
    for transport in dict.fromkeys(done.transport for done in passes):
        own = [done for done in passes if done.transport == transport]
        broadcast_us = [us for done in own for us in done.broadcast_us]
        table.add_row(
            transport,
            f"{median(done.tokens_per_second for done in own):.0f}",
            f"{median(ms for done in own for ms in done.first_token_ms):.0f} ms",
            f"{median(broadcast_us):.0f} µs",
            f"{quantiles(broadcast_us, n=100)[-1]:.0f} µs",
            f"{median(us for done in own for us in done.driver_us):.0f} µs",
            f"{median(done.broadcast_share for done in own):.1%}",
            f"{len(broadcast_us)}",
        )
    sizes = [len(pickle.dumps(message, protocol=5)) for message in passes[0].messages]
    cores = CpuBudget().usable()

    console = Console(highlight=False)
    console.print(table)
    console.print(
        "all requests arrive at once: the first tokens of the last ones wait for blocks\n"
        "a broadcast lasts from the last rank's call to the last rank's return\n"
        f"tokens equal the unsharded model's for {len(passes[0].outputs)} requests (checked)\n"
        f"message p50 {median(sizes):.0f} bytes pickled; {ranks} ranks on {cores:g} usable cores"
    )
    if ranks > cores:
        console.print("more ranks than cores: a wait is also a wait for a core")


def read_requests(path: Path, max_tokens: int, seed: int) -> list[Request]:
    """Make a request of each line of `path`: by turns greedy and sampled, of varied lengths.

    Raises:
        typer.BadParameter: there are none, or one is too long for the model.
    """
    requests = []
    for index, line in enumerate(path.read_bytes().splitlines()):
        tokens = max(1, max_tokens - index % 4 * max_tokens // 8)
        if index % 2 == 0:
            params = SamplingParams(tokens)
        else:
            params = SamplingParams(tokens, temperature=0.8, top_k=40, seed=seed + index)
        if len(line) + tokens > CONFIG.context:
            raise typer.BadParameter(
                f"{path}, line {index + 1}: {len(line)} bytes and {tokens} new tokens are more "
                f"than the model's context of {CONFIG.context}"
            )
        if line:
            requests.append(Request(f"request-{index}", list(line), params))
    if not requests:
        raise typer.BadParameter(f"{path} has no prompts")
    return requests


def main(
    ranks: Annotated[int, typer.Option(min=2, max=4, help="Ignored under torchrun.")] = 2,
    prompts: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="One prompt a line.")
    ] = PROMPTS,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens of a request.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Measured passes of each transport.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the weights and the sampling.")] = 0,
) -> None:
    """Generate from every prompt with both transports, check the tokens, compare the speed."""
    requests = read_requests(prompts, max_tokens, seed)
    if "RANK" in os.environ:  # started by torchrun
        rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        run_rank(rank, ranks, "env://", requests, repeats, seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        args = (ranks, f"file://{folder}/rendezvous", requests, repeats, seed)
        try:  # if a rank fails, `spawn` ends the others and raises its error
            spawn(run_rank, args, nprocs=ranks, daemon=True)  # type: ignore[no-untyped-call]
        except (ProcessRaisedException, ProcessExitedException) as error:
            typer.echo(error, err=True)
            raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)

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

This file starts the ranks and shows what they do; `rank.py` has what they do.
"""

import contextlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from passes import CHECK_PARTS, Pass, print_summary
from prompts import PROMPTS, read_requests

# torch is imported by the ranks only (in rank.py): the first line is shown before that.

Tell = Callable[[str], None]  # called with what begins now


@contextlib.contextmanager
def progress(console: Console, steps: int) -> Iterator[Tell]:
    """Show what is being done: in a terminal by a bar, elsewhere by a line for each step."""
    if not console.is_terminal:
        yield lambda what: console.print(f"{what} ...", highlight=False)
        return
    columns = (BarColumn(20), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("", total=steps, completed=-1)

        def tell(what: str) -> None:
            shown.update(task, description=what, advance=1)

        yield tell


def serve_rank(rank: int, ranks: int, sender: Connection | None, *job: Any) -> None:
    """Be one of the ranks, in a process of its own; rank 0 sends what it does, then the passes."""
    from rank import run_rank

    passes = run_rank(rank, ranks, sender.send if sender else keep_silent, *job)
    if sender:
        sender.send(passes)


def keep_silent(_what: str) -> None:
    """Tell nobody."""


def run_ranks(ranks: int, tell: Tell, *job: Any) -> list[Pass]:
    """Start the ranks as processes of this host; return the passes, as soon as rank 0 has them.

    Raises:
        typer.Exit: a rank has failed, and has said why on stderr; the others are killed.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for rank in range(ranks):
            args = (rank, ranks, None if rank else sender, f"file://{folder}/rendezvous", *job)
            processes.append(context.Process(target=serve_rank, args=args, daemon=True))
        try:
            for process in processes:
                process.start()
            sender.close()  # so that the end of rank 0 is the end of the pipe
            return listen(receiver, processes, tell)
        except BaseException:
            for process in processes:
                process.kill()
            raise
        finally:
            for process in processes:
                process.join()


def listen(receiver: Connection, processes: Sequence[SpawnProcess], tell: Tell) -> list[Pass]:
    """Tell what rank 0 says until it sends the passes."""
    while True:
        running = [process.sentinel for process in processes if process.exitcode is None]
        if any(process.exitcode for process in processes):
            raise typer.Exit(1)
        wait([receiver, *running])
        if receiver.poll():
            try:
                heard: str | list[Pass] = receiver.recv()
            except EOFError:
                raise typer.Exit(1) from None
            if not isinstance(heard, str):
                return heard
            tell(heard)


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
    console = Console()
    try:
        requests = read_requests(prompts, max_tokens, seed)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    rank = int(os.environ.get("RANK", "0"))
    with contextlib.ExitStack() as shown:
        tell: Tell = keep_silent
        if rank == 0:  # (those that torchrun starts share a terminal)
            tell = shown.enter_context(progress(console, steps=2 * (1 + repeats) + 2 + CHECK_PARTS))
        tell("importing torch")
        if "RANK" in os.environ:  # started by torchrun
            from rank import run_rank

            ranks = int(os.environ["WORLD_SIZE"])
            passes = run_rank(rank, ranks, tell, "env://", requests, repeats, seed)
        else:
            passes = run_ranks(ranks, tell, requests, repeats, seed)
    if rank == 0:
        print_summary(console, passes, ranks)


if __name__ == "__main__":
    typer.run(main)

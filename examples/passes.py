"""What the passes of `tp_generate.py` measured, and the table of it."""

import os
import pickle
from dataclasses import dataclass
from statistics import median, quantiles

from rich import box
from rich.console import Console, Group
from rich.table import Table

from scheduler import SchedulerOutput

Message = SchedulerOutput | None  # None: no more work

CHECK_PARTS = 4  # of the requests, whose tokens are checked part by part


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


def summarize(passes: list[Pass], ranks: int) -> Group:
    """Return the table: medians over passes, and percentiles over the messages of all passes."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("transport", vertical="bottom", no_wrap=True)
    headings = (
        "broadcast\np50",
        "broadcast\np99",
        "driver's\ncall p50",
        "share of\nthe time",
        "first token\np50",
        "tokens/s",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    rates: dict[str, list[float]] = {}
    for transport in dict.fromkeys(done.transport for done in passes):
        own = [done for done in passes if done.transport == transport]
        broadcast_us = [us for done in own for us in done.broadcast_us]
        table.add_row(
            transport,
            f"{median(broadcast_us):,.0f} µs",
            f"{quantiles(broadcast_us, n=100)[-1]:,.0f} µs",
            f"{median(us for done in own for us in done.driver_us):,.0f} µs",
            f"{median(done.broadcast_share for done in own):.1%}",
            f"{median(ms for done in own for ms in done.first_token_ms):,.0f} ms",
            f"{median(done.tokens_per_second for done in own):.0f}",
        )
        rates[transport] = [done.tokens_per_second for done in own]
    steps = len(passes[0].messages)
    sizes = [len(pickle.dumps(message, protocol=5)) for message in passes[0].messages]
    cores = len(os.sched_getaffinity(0))
    notes = [
        f"a pass: {len(passes[0].outputs)} requests, all there from the start; {steps} steps are "
        "broadcast",
        f"a step: {median(sizes):.0f} bytes pickled (p50); {ranks} ranks on {cores} cores",
        "a broadcast lasts from the last rank's call to the last rank's return",
        "tokens equal the unsharded model's, each of them (checked)",
    ]
    if len({f"{median(own):.0f}" for own in rates.values()}) > 1:
        noise = max((max(own) - min(own)) / median(own) for own in rates.values())
        by_noise = f"passes of one transport differ by {noise:.0%}" if noise else "run more passes"
        notes.append(f"tokens/s: computation but for the share; {by_noise}")
    if ranks > cores:
        notes.append("more ranks than cores: a wait is also a wait for a core")
    return Group(table, "", *notes)


def print_summary(console: Console, passes: list[Pass], ranks: int) -> None:
    """Print what `summarize` returns."""
    console.print(summarize(passes, ranks), highlight=False)

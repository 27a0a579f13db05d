"""A small simulated engine that batches continuously: its driver's messages and their timing."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from bench.workloads.steps import (
    BLOCKS,
    TOKEN_BUDGET,
    blocks_for,
    prompt_length,
    request_id,
    sampling_params,
    token_ids,
)
from bench.workloads.vllm_messages import CachedRequestData, NewRequestData, SchedulerOutput

STEP_MS = 8.0
"""How long a step takes without requests: the weights are read once."""
REQUEST_MS = 0.06
"""How much each request adds to a step: its part of the KV cache is read."""
PROMPT_TOKEN_MS = 0.04
"""How much each token of a prompt adds to a step: arithmetic."""
JITTER = 0.05
"""The share by which steps are uniformly longer or shorter."""


@dataclass(frozen=True)
class Step:
    """A message, and how long after the message before it is sent.

    The gap is the duration of the step before: `STEP_MS` + `REQUEST_MS` for each of its requests +
    `PROMPT_TOKEN_MS` for each token of its prompts, within `JITTER`. It is longer if the engine had
    nothing to do then.
    """

    message: SchedulerOutput
    gap_ms: float


@dataclass
class _Request:
    req_id: str
    prompt: list[int]
    left: int  # tokens still to be generated
    output: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)


def simulate(
    steps: int = 1000,
    seed: int = 0,
    arrivals_per_second: float = 18.0,
    max_running: int = 64,
) -> Iterator[Step]:
    """Yield the steps of an engine from its start on.

    Requests arrive as a Poisson process, with prompts of 50 to 2000 tokens (lognormal) and some 200
    tokens to generate (geometric). A step has one token of each running request, and new prompts
    in chunks as `TOKEN_BUDGET` lets them in. Workers are told what changes: whole prompts of new
    requests, new blocks and token counts of the others, who is finished.

    Raises:
        RuntimeError: the running requests need more than `BLOCKS` blocks (nothing is preempted).
    """
    rng = np.random.default_rng(seed)
    engine = _Engine(rng, max_running)
    between_ms = 1000 / arrivals_per_second
    now = sent = 0.0
    arrival = rng.exponential(between_ms)
    for _ in range(steps):
        if engine.is_idle:
            now = max(now, arrival)
        while arrival <= now:
            engine.arrive()
            arrival += rng.exponential(between_ms)
        message = engine.step()
        yield Step(message, now - sent)
        sent = now
        now += _duration_ms(message) * rng.uniform(1 - JITTER, 1 + JITTER)


def _duration_ms(message: SchedulerOutput) -> float:
    counts = message.num_scheduled_tokens.values()
    prompt_tokens = sum(count for count in counts if count > 1)
    return STEP_MS + REQUEST_MS * len(counts) + PROMPT_TOKEN_MS * prompt_tokens


class _Engine:
    """Choose each step's tokens, serving requests in the order in which they came."""

    def __init__(self, rng: np.random.Generator, max_running: int) -> None:
        self._rng = rng
        self._max_running = max_running
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._finished: set[str] = set()  # since the last step
        self._free = deque(range(1, BLOCKS))  # vLLM keeps block 0 for padding

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def arrive(self) -> None:
        """Let a request come in."""
        rng = self._rng
        prompt = token_ids(rng, prompt_length(rng))
        self._waiting.append(_Request(request_id(rng), prompt, int(rng.geometric(1 / 200))))

    def step(self) -> SchedulerOutput:
        """Schedule and compute one step."""
        while self._waiting and len(self._running) < self._max_running:
            self._running.append(self._waiting.popleft())
        new: list[NewRequestData] = []
        cached = CachedRequestData()
        tokens: dict[str, int] = {}
        budget = TOKEN_BUDGET
        for request in self._running:
            count = min(max(len(request.prompt) - request.computed, 1), budget)
            if not count:
                break
            budget -= count
            tokens[request.req_id] = count
            added = self._take(blocks_for(request.computed + count) - len(request.blocks))
            if request.computed:
                cached.req_ids.append(request.req_id)
                cached.new_block_ids.append((added,) if added else None)
                cached.num_computed_tokens.append(request.computed)
                cached.num_output_tokens.append(request.output)
            else:
                new.append(_new_request(request, added))
            request.blocks += added
            request.computed += count
            if request.computed >= len(request.prompt):
                request.output += 1
                request.left -= 1
        finished = self._finished
        self._finish()
        return SchedulerOutput(
            scheduled_new_reqs=new,
            scheduled_cached_reqs=cached,
            num_scheduled_tokens=tokens,
            total_num_scheduled_tokens=TOKEN_BUDGET - budget,
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            finished_req_ids=finished,
            free_encoder_mm_hashes=[],
            preempted_req_ids=set(),
        )

    def _take(self, count: int) -> list[int]:
        if count > len(self._free):
            raise RuntimeError(f"{count} blocks are needed and {len(self._free)} free")
        return [self._free.popleft() for _ in range(count)]

    def _finish(self) -> None:
        """Let finished requests leave, and free their blocks, the last ones first, as in vLLM."""
        done = [request for request in self._running if not request.left]
        self._running = [request for request in self._running if request.left]
        self._finished = {request.req_id for request in done}
        for request in done:
            self._free.extend(reversed(request.blocks))


def _new_request(request: _Request, block_ids: list[int]) -> NewRequestData:
    return NewRequestData(
        req_id=request.req_id,
        prompt_token_ids=request.prompt,
        mm_features=[],
        sampling_params=sampling_params(),
        pooling_params=None,
        block_ids=(block_ids,),
        num_computed_tokens=0,
        lora_request=None,
    )


def decode_steps(steps: int = 1000, seed: int = 0) -> Iterator[SchedulerOutput]:
    """Yield the messages of `simulate`, without their timing."""
    return (step.message for step in simulate(steps, seed))


def sizes(messages: Iterable[object]) -> list[int]:
    """Return the size of each message's pickle, in bytes."""
    return [len(pickle.dumps(message, pickle.HIGHEST_PROTOCOL)) for message in messages]

"""What an inference engine's driver broadcasts: the messages of a small simulated scheduler."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BLOCK_TOKENS = 16


@dataclass
class _Request:
    name: str
    prompt: list[int]
    left: int  # tokens still to be generated
    computed: int = 0
    blocks: list[int] = field(default_factory=list)


def decode_steps(
    steps: int = 1000,
    seed: int = 0,
    arrivals_per_step: float = 0.3,
    max_running: int = 64,
    token_budget: int = 2048,
) -> Iterator[dict[str, Any]]:
    """One message for each step of an engine that batches continuously.

    Requests arrive as a Poisson process, with prompts of about 50 to 2000 tokens (lognormal) and
    some 200 tokens to generate (geometric). A step has one token of each running request, and new
    prompts in chunks as the token budget lets them in. Workers are told what changes: whole
    prompts of new requests, new tokens and blocks of the others, who is finished.
    """
    rng = np.random.default_rng(seed)
    waiting: deque[_Request] = deque()
    running: list[_Request] = []
    finished: list[str] = []
    known: set[str] = set()
    next_block = made = 0
    for step in range(steps):
        for _ in range(rng.poisson(arrivals_per_step)):
            length = int(np.clip(rng.lognormal(5.7, 0.8), 50, 2000))
            prompt = rng.integers(0, 128_000, length).tolist()
            waiting.append(_Request(f"chatcmpl-{made:08x}", prompt, int(rng.geometric(1 / 200))))
            made += 1
        while waiting and len(running) < max_running:
            running.append(waiting.popleft())
        budget, new, cached, tokens = token_budget, [], [], {}
        for request in running:
            prefill = len(request.prompt) - request.computed
            count = min(max(prefill, 1), budget)
            if not count:
                break
            budget -= count
            needed = -(-(request.computed + count) // BLOCK_TOKENS) - len(request.blocks)
            added = [*range(next_block, next_block + needed)]
            next_block += needed
            request.blocks += added
            tokens[request.name] = count
            if request.name in known:
                token = int(rng.integers(0, 128_000))
                cached.append((request.name, [token], added, request.computed))
            else:
                known.add(request.name)
                sampling = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 512, "seed": made}
                new.append((request.name, request.prompt, sampling, added, request.computed))
            request.computed += count
            if request.computed >= len(request.prompt):
                request.left -= 1
        yield {
            "step": step,
            "new": new,
            "cached": cached,
            "tokens": tokens,
            "total": token_budget - budget,
            "finished": finished,
        }
        finished = [request.name for request in running if request.left <= 0]
        running = [request for request in running if request.left > 0]


def sizes(messages: Iterator[dict[str, Any]]) -> list[int]:
    """Their pickles' bytes."""
    return [len(pickle.dumps(message, pickle.HIGHEST_PROTOCOL)) for message in messages]

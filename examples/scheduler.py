"""Continuous batching for `tp_generate.py`: who computes what at each step, and in which blocks.

The dataclasses have the shape of vLLM's `SchedulerOutput`: a request travels in full once, then as
differences. They are what the driver broadcasts, so they hold plain Python values only.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SamplingParams:
    """How a request's tokens are chosen, and when it is finished."""

    max_tokens: int
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 1
    seed: int = 0
    stop_token_id: int = ord("\n")  # prompts are single lines: a new line ends the answer


@dataclass(frozen=True)
class Request:
    """A prompt to continue."""

    req_id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams


@dataclass(frozen=True)
class NewRequest:
    """A request scheduled for the first time: everything a worker will ever need of it."""

    req_id: str
    prompt_token_ids: list[int]
    sampling_params: SamplingParams
    block_ids: list[int]
    num_computed_tokens: int


@dataclass(frozen=True)
class CachedRequests:
    """What changed in the scheduled requests that the workers already know; parallel lists."""

    req_ids: list[str] = field(default_factory=list)
    new_token_ids: list[list[int]] = field(default_factory=list)
    new_block_ids: list[list[int]] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class SchedulerOutput:
    """One step's metadata: all that the workers are told."""

    scheduled_new_reqs: list[NewRequest]
    scheduled_cached_reqs: CachedRequests
    num_scheduled_tokens: dict[str, int]
    total_num_scheduled_tokens: int
    finished_req_ids: set[str]


class BlockPool:
    """A finite pool of KV-cache blocks, reserved as a count and handed out as they are needed.

    Args:
        num_blocks: the blocks are 0 to `num_blocks - 1`.
        block_size: tokens a block holds.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._free = list(reversed(range(num_blocks)))
        self._unreserved = num_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self._block_size)

    def reserve(self, num_tokens: int) -> bool:
        """Set aside blocks for `num_tokens` tokens, or return False if too few are left."""
        num_blocks = self.blocks_for(num_tokens)
        if num_blocks > self._unreserved:
            return False
        self._unreserved -= num_blocks
        return True

    def take(self, num_blocks: int) -> list[int]:
        """Hand out `num_blocks` blocks of a reservation."""
        return [self._free.pop() for _ in range(num_blocks)]

    def release(self, block_ids: list[int], num_tokens: int) -> None:
        """End a reservation for `num_tokens` tokens, of which `block_ids` were handed out."""
        self._free.extend(block_ids)
        self._unreserved += self.blocks_for(num_tokens)


@dataclass
class _Sequence:
    """A request, how far it has come, and the blocks it holds."""

    request: Request
    output_token_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0

    @property
    def num_uncomputed_tokens(self) -> int:
        known = len(self.request.prompt_token_ids) + len(self.output_token_ids)
        return known - self.num_computed_tokens

    @property
    def max_num_tokens(self) -> int:
        return len(self.request.prompt_token_ids) + self.request.sampling_params.max_tokens

    @property
    def is_finished(self) -> bool:
        params = self.request.sampling_params
        return (
            len(self.output_token_ids) == params.max_tokens
            or self.output_token_ids[-1] == params.stop_token_id
        )


class Scheduler:
    """Choose each step's tokens: of running requests first, then of waiting ones, in their order.

    A request is admitted once its longest possible sequence fits the unreserved blocks. A running
    request therefore never runs out of blocks, and nothing is ever preempted. A prompt longer than
    what a step has left is prefilled in chunks, over several steps.

    Args:
        pool: where the blocks come from; it can hold the longest request.
        requests: all of them, in order.
        token_budget: most tokens computed in a step.
        max_running: most requests in a step.

    Attributes:
        outputs: the tokens of each finished request, by its id.
    """

    def __init__(
        self, pool: BlockPool, requests: list[Request], *, token_budget: int, max_running: int
    ) -> None:
        self.outputs: dict[str, list[int]] = {}
        self._pool = pool
        self._token_budget = token_budget
        self._max_running = max_running
        self._waiting = deque(_Sequence(request) for request in requests)
        self._running: dict[str, _Sequence] = {}
        self._finished_req_ids: set[str] = set()  # since the last step

    def schedule(self) -> SchedulerOutput | None:
        """Return the next step's metadata, or None when every request is finished."""
        if not self._running and not self._waiting:
            return None
        budget = self._token_budget
        num_scheduled_tokens: dict[str, int] = {}

        cached = CachedRequests()
        for req_id, sequence in self._running.items():
            if budget == 0:
                break
            cached.req_ids.append(req_id)
            cached.new_token_ids.append(sequence.output_token_ids[-1:])
            cached.num_computed_tokens.append(sequence.num_computed_tokens)
            num_tokens, new_block_ids = self._advance(sequence, budget)
            cached.new_block_ids.append(new_block_ids)
            num_scheduled_tokens[req_id] = num_tokens
            budget -= num_tokens

        new: list[NewRequest] = []
        while self._waiting and budget > 0 and len(self._running) < self._max_running:
            sequence = self._waiting[0]
            if not self._pool.reserve(sequence.max_num_tokens):
                break
            request = self._waiting.popleft().request
            num_tokens, new_block_ids = self._advance(sequence, budget)
            new.append(
                NewRequest(
                    request.req_id,
                    request.prompt_token_ids,
                    request.sampling_params,
                    block_ids=new_block_ids,
                    num_computed_tokens=0,
                )
            )
            self._running[request.req_id] = sequence
            num_scheduled_tokens[request.req_id] = num_tokens
            budget -= num_tokens

        finished_req_ids, self._finished_req_ids = self._finished_req_ids, set()
        return SchedulerOutput(
            new, cached, num_scheduled_tokens, self._token_budget - budget, finished_req_ids
        )

    def update(self, sampled_token_ids: Mapping[str, int]) -> None:
        """Take in a step's tokens, one of each request whose known tokens are all computed."""
        for req_id, token_id in sampled_token_ids.items():
            sequence = self._running[req_id]
            sequence.output_token_ids.append(token_id)
            if sequence.is_finished:
                del self._running[req_id]
                self._pool.release(sequence.block_ids, sequence.max_num_tokens)
                self._finished_req_ids.add(req_id)
                self.outputs[req_id] = sequence.output_token_ids

    def _advance(self, sequence: _Sequence, budget: int) -> tuple[int, list[int]]:
        """Count up to `budget` more tokens as computed; return how many and their new blocks."""
        num_tokens = min(sequence.num_uncomputed_tokens, budget)
        sequence.num_computed_tokens += num_tokens
        missing = self._pool.blocks_for(sequence.num_computed_tokens) - len(sequence.block_ids)
        new_block_ids = self._pool.take(missing)
        sequence.block_ids.extend(new_block_ids)
        return num_tokens, new_block_ids

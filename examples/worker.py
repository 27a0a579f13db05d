"""One rank's part of every step of `tp_generate.py`, done as the broadcast metadata says."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scheduler import SamplingParams, SchedulerOutput
from tiny_gpt import Chunk, PagedBatch, PagedKVCache, TinyGPT, sample


@dataclass
class RequestState:
    """What a worker knows of a request, learned from the broadcasts alone."""

    token_ids: list[int]
    block_ids: list[int]
    num_computed_tokens: int
    sampling_params: SamplingParams
    generator: torch.Generator


class Worker:
    """One rank's shard of the model, its KV cache, and its view of the requests in flight."""

    def __init__(self, model: TinyGPT, cache: PagedKVCache) -> None:
        self._model = model
        self._cache = cache
        self._states: dict[str, RequestState] = {}

    def execute(self, step: SchedulerOutput) -> dict[str, Tensor]:
        """Compute one step.

        Returns:
            The final hidden state, float64 [hidden], of the last token of each request whose known
            tokens are now all computed: the next one is to be sampled from it.
        """
        self._update_states(step)
        chunks = []
        for req_id, num_tokens in step.num_scheduled_tokens.items():
            state = self._states[req_id]
            start, end = state.num_computed_tokens, state.num_computed_tokens + num_tokens
            chunks.append(Chunk(state.token_ids[start:end], start, state.block_ids))
            state.num_computed_tokens = end

        batch = PagedBatch(self._cache, chunks)
        hidden = self._model.forward(batch.token_ids, batch.positions, batch.attention)
        last_hidden = {}
        for req_id, chunk_hidden in zip(
            step.num_scheduled_tokens, torch.split(hidden, batch.sizes), strict=True
        ):
            state = self._states[req_id]
            if state.num_computed_tokens == len(state.token_ids):
                last_hidden[req_id] = chunk_hidden[-1]
        return last_hidden

    def sample(self, last_hidden: dict[str, Tensor]) -> dict[str, int]:
        """Choose the next token of each request from what `execute` returned."""
        return {
            req_id: sample(
                self._model.logits(hidden),
                self._states[req_id].sampling_params,
                self._states[req_id].generator,
            )
            for req_id, hidden in last_hidden.items()
        }

    def _update_states(self, step: SchedulerOutput) -> None:
        for req_id in step.finished_req_ids:
            del self._states[req_id]
        for new in step.scheduled_new_reqs:
            self._states[new.req_id] = RequestState(
                list(new.prompt_token_ids),
                list(new.block_ids),
                new.num_computed_tokens,
                new.sampling_params,
                torch.Generator().manual_seed(new.sampling_params.seed),
            )
        cached = step.scheduled_cached_reqs
        for i, req_id in enumerate(cached.req_ids):
            state = self._states[req_id]
            state.token_ids.extend(cached.new_token_ids[i])
            state.block_ids.extend(cached.new_block_ids[i])
            state.num_computed_tokens = cached.num_computed_tokens[i]

"""A small GPT split over tensor-parallel ranks, with a paged key/value cache.

The model of `tp_generate.py`. Every rank draws the same full weights from one seed and keeps its
shard, so the sharded model and the unsharded one (`TensorParallel()`, a single rank) are one model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from gpt_config import GPTConfig
from scheduler import SamplingParams

# Sharding changes the order in which products are summed. In float32 that moves a logit by 1e-6,
# enough to turn a near tie into another token once in a while; in float64 it is 1e-15, which in
# practice never does. So the sharded tokens can be demanded to *equal* the unsharded ones.
DTYPE = torch.float64

# (layer, query, key, value) -> output; all four tensors are DTYPE [tokens, local heads, head_dim].
Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TensorParallel:
    """A rank's place among those that share a model, which are the default process group."""

    rank: int = 0
    size: int = 1

    def shard(self, weight: Tensor, dim: int) -> Tensor:
        """Return a copy of this rank's equal part of `weight` along `dim`."""
        return weight.chunk(self.size, dim)[self.rank].clone()

    def all_reduce(self, x: Tensor) -> None:
        """Sum `x` over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(x)


class ColumnParallelLinear:
    """A linear layer, of full `weight` [out, in], whose output features the ranks split."""

    def __init__(self, weight: Tensor, tp: TensorParallel) -> None:
        self._weight = tp.shard(weight, dim=0)

    def __call__(self, x: Tensor) -> Tensor:
        """Map `x` [tokens, in], the same on every rank, to this rank's [tokens, out / size]."""
        return linear(x, self._weight)


class RowParallelLinear:
    """A linear layer, of full `weight` [out, in], whose input features the ranks split."""

    def __init__(self, weight: Tensor, tp: TensorParallel) -> None:
        self._weight = tp.shard(weight, dim=1)
        self._tp = tp

    def __call__(self, x: Tensor) -> Tensor:
        """Map this rank's `x` [tokens, in / size] to [tokens, out], summed over the ranks."""
        y = linear(x, self._weight)
        self._tp.all_reduce(y)
        return y


class TinyGPT:
    """One rank's shard of a pre-norm GPT; embeddings and head are replicated.

    Args:
        config: the sizes of the full model.
        seed: of the full weights, which are the same on every rank.
        tp: which shard to keep.

    Raises:
        ValueError: the ranks can't share the heads equally.
    """

    def __init__(self, config: GPTConfig, seed: int, tp: TensorParallel) -> None:
        if config.heads % tp.size:
            raise ValueError(f"{config.heads} heads do not split over {tp.size} ranks equally")
        self._config = config
        generator = torch.Generator().manual_seed(seed)

        def weight(outputs: int, inputs: int) -> Tensor:
            full = torch.randn(outputs, inputs, generator=generator, dtype=DTYPE)
            return full / math.sqrt(inputs)

        hidden = config.hidden
        self._token_embedding = weight(config.vocab_size, hidden)
        self._position_embedding = weight(config.context, hidden)
        self._head = weight(config.vocab_size, hidden)
        # QKV rows are ordered [heads, 3, head_dim], so that an equal part of them is whole heads.
        self._layers = [
            (
                ColumnParallelLinear(weight(3 * hidden, hidden), tp),
                RowParallelLinear(weight(hidden, hidden), tp),
                ColumnParallelLinear(weight(4 * hidden, hidden), tp),
                RowParallelLinear(weight(hidden, 4 * hidden), tp),
            )
            for _ in range(config.layers)
        ]

    def forward(self, token_ids: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """Return the final hidden states, DTYPE [tokens, hidden], of int64 [tokens] ids."""
        x = self._token_embedding[token_ids] + self._position_embedding[positions]
        for index, (qkv, attention_out, mlp_up, mlp_down) in enumerate(self._layers):
            heads = qkv(self._norm(x)).view(len(x), -1, 3, self._config.head_dim)
            query, key, value = heads.unbind(dim=2)
            x = x + attention_out(attention(index, query, key, value).flatten(start_dim=1))
            x = x + mlp_down(gelu(mlp_up(self._norm(x))))
        return self._norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Map final hidden states, DTYPE [..., hidden], to DTYPE [..., vocab_size]."""
        return linear(hidden, self._head)

    def _norm(self, x: Tensor) -> Tensor:
        return layer_norm(x, (self._config.hidden,))


class PagedKVCache:
    """One rank's keys and values, in `num_blocks` blocks of `block_size` slots, a slot a token.

    It starts full of NaN, so that a slot read before its first use spoils the logits.

    Attributes:
        keys: DTYPE [layers, slots, local heads, head_dim].
        values: the same.
    """

    def __init__(
        self, config: GPTConfig, tp: TensorParallel, *, num_blocks: int, block_size: int
    ) -> None:
        self._block_size = block_size
        slots, heads = num_blocks * block_size, config.heads // tp.size
        shape = (config.layers, slots, heads, config.head_dim)
        self.keys = torch.full(shape, torch.nan, dtype=DTYPE)
        self.values = torch.full(shape, torch.nan, dtype=DTYPE)

    def slots(self, block_table: Sequence[int], num_tokens: int) -> Tensor:
        """Return the slots, int64 [num_tokens], of a request's first tokens."""
        positions = torch.arange(num_tokens)
        first_slots = torch.tensor(block_table) * self._block_size
        return first_slots[positions // self._block_size] + positions % self._block_size


@dataclass(frozen=True)
class Chunk:
    """The tokens of one request that a step computes; `start` is the first one's position."""

    token_ids: list[int]
    start: int
    block_table: list[int]


class PagedBatch:
    """The chunks of a step, end to end in one batch, each attending through its block table.

    Attributes:
        sizes: tokens of each chunk.
        token_ids: int64 [tokens].
        positions: int64 [tokens].
    """

    def __init__(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> None:
        self._cache = cache
        self.sizes = [len(chunk.token_ids) for chunk in chunks]
        self.token_ids = torch.tensor([t for chunk in chunks for t in chunk.token_ids])
        positions = [c.start + torch.arange(len(c.token_ids)) for c in chunks]
        self.positions = torch.cat(positions)
        # Of each chunk: the slots of its request's tokens up to its own last one.
        self._slots = [cache.slots(c.block_table, c.start + len(c.token_ids)) for c in chunks]
        # Of each chunk, bool [chunk tokens, slots]: no token sees a later one.
        self._visible = [
            torch.arange(len(slots)) <= p[:, None]
            for p, slots in zip(positions, self._slots, strict=True)
        ]
        self._written = torch.cat(
            [slots[c.start :] for c, slots in zip(chunks, self._slots, strict=True)]
        )

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store the batch's keys and values, then attend to each request's own (an `Attention`)."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys[self._written] = key
        values[self._written] = value
        return torch.cat(
            [
                _attend(chunk_query, keys[slots], values[slots], visible)
                for chunk_query, slots, visible in zip(
                    torch.split(query, self.sizes), self._slots, self._visible, strict=True
                )
            ]
        )


def causal_attention(_layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend within one whole sequence, without a cache (an `Attention`)."""
    visible = torch.ones(len(query), len(key), dtype=torch.bool).tril()
    return _attend(query, key, value, visible)


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    """Attend from `query` [q, heads, head_dim] to `key` and `value` [k, ...]; `visible` [q, k]."""
    query, key, value = (x.transpose(0, 1) for x in (query, key, value))  # heads first
    return scaled_dot_product_attention(query, key, value, attn_mask=visible).transpose(0, 1)


def sample(logits: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Choose a token by `params` from `logits` [vocab_size], drawing from the request's stream."""
    if params.temperature == 0.0:
        return int(logits.argmax())
    top = logits.topk(params.top_k)
    drawn = torch.multinomial(
        torch.softmax(top.values / params.temperature, dim=0), 1, generator=generator
    )
    return int(top.indices[drawn])


def continue_alone(
    model: TinyGPT, prompt: Sequence[int], outputs: Sequence[int], params: SamplingParams
) -> list[int]:
    """Return what an unsharded `model` makes of a prompt: no batch, no cache, no scheduler.

    The model sees the prompt and `outputs` in one pass, and answers for each place in them. Up to
    the first token that differs from `outputs`, that is what it would generate by itself; there the
    answer ends.
    """
    known = torch.tensor([*prompt, *outputs])
    hidden = model.forward(known, torch.arange(len(known)), causal_attention)
    generator = torch.Generator().manual_seed(params.seed)
    made: list[int] = []
    while len(made) < params.max_tokens and made[-1:] != [params.stop_token_id]:
        place = len(prompt) + len(made) - 1
        if place == len(hidden):
            break
        made.append(sample(model.logits(hidden[place]), params, generator))
        if made != [*outputs[: len(made)]]:
            break
    return made

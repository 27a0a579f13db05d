"""Single messages of inference engines, made up: decode steps, a prefill chunk, new requests.

They come from a generator with a fixed seed, so that they are the same in each process.
"""

from __future__ import annotations

from array import array

import numpy as np

from bench.workloads import sglang_messages as sglang
from bench.workloads.vllm_messages import (
    CachedRequestData,
    GrammarOutput,
    MaskedStep,
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    NewRequestData,
    PlaceholderRange,
    RequestOutputKind,
    SamplingParams,
    SchedulerOutput,
)

VOCABULARY = 152_064
BLOCK_TOKENS = 16
BLOCKS = 30_000
"""The blocks of the KV cache: their ids are smaller."""
TOKEN_BUDGET = 2048
"""The most tokens of a step."""
SPEC_TOKENS = 3
"""The drafted tokens of a request that has them."""

_END_OF_TURN, _END_OF_TEXT, _IMAGE_PAD = 151_645, 151_643, 151_655
_PATCH_VALUES = 3 * 2 * 14 * 14
"""Colours x frames x height x width of a patch of Qwen2-VL."""
_PATCHES = (1, 70, 70)
"""Frames, rows and columns of patches: an image of 980 x 980, 23 MB of float32."""
_WORDS = ("the", "user", "asks", "a", "model", "that", "answers", "in", "short", "sentences")


def request_id(rng: np.random.Generator) -> str:
    """Return an id like those of vLLM's API server, with the 8 digits that the engine adds."""
    digits = rng.bytes(12).hex()
    return f"chatcmpl-{digits[:16]}-{digits[16:]}"


def prompt_length(rng: np.random.Generator) -> int:
    """Return the number of a prompt's tokens: 50 to 2000, lognormal."""
    return int(np.clip(rng.lognormal(5.7, 0.8), 50, 2000))


def token_ids(rng: np.random.Generator, count: int) -> list[int]:
    """Return tokens drawn from the whole vocabulary."""
    ids: list[int] = rng.integers(0, VOCABULARY, count).tolist()
    return ids


def sampling_params() -> SamplingParams:
    """Return the parameters of a chat request, as the engine has filled them in."""
    return SamplingParams(
        temperature=0.7,
        top_p=0.95,
        top_k=20,
        stop=[],
        stop_token_ids=[],
        max_tokens=2048,
        output_kind=RequestOutputKind.DELTA,
        skip_clone=True,
        _eos_token_id=_END_OF_TURN,
        _all_stop_token_ids={_END_OF_TURN, _END_OF_TEXT},
        bad_words=[],
    )


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold a number of tokens."""
    return -(-tokens // BLOCK_TOKENS)


def decode(requests: int, spec_tokens: int = 0) -> SchedulerOutput:
    """Make a step in which each of `requests` computes one token, and those drafted for it.

    About one in 16 takes a new block. One in 64 was finished since the step before.
    """
    rng = np.random.default_rng(requests)
    free = iter(rng.permutation(BLOCKS).tolist())
    cached = CachedRequestData()
    drafted: dict[str, list[int]] = {}
    for _ in range(requests):
        req_id = request_id(rng)
        output = int(rng.integers(1, 500))
        computed = prompt_length(rng) + output - 1
        count = blocks_for(computed + 1 + spec_tokens) - blocks_for(computed)
        cached.req_ids.append(req_id)
        cached.new_block_ids.append(([next(free) for _ in range(count)],) if count else None)
        cached.num_computed_tokens.append(computed)
        cached.num_output_tokens.append(output)
        if spec_tokens:
            drafted[req_id] = token_ids(rng, spec_tokens)
    tokens = dict.fromkeys(cached.req_ids, 1 + spec_tokens)
    return SchedulerOutput(
        scheduled_new_reqs=[],
        scheduled_cached_reqs=cached,
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_spec_decode_tokens=drafted,
        scheduled_encoder_inputs={},
        finished_req_ids={request_id(rng) for _ in range(requests // 64)},
        free_encoder_mm_hashes=[],
        preempted_req_ids=set(),
        num_spec_tokens_to_schedule=spec_tokens,
    )


def masked_decode(requests: int) -> MaskedStep:
    """Make a decode step of requests that all follow a grammar."""
    step = decode(requests)
    step.has_structured_output_requests = True
    rng = np.random.default_rng(requests)
    bits = np.iinfo(np.int32)
    shape = (requests, VOCABULARY // 32)
    mask = rng.integers(bits.min, bits.max, shape, np.int32, endpoint=True)
    return MaskedStep(step, GrammarOutput([*step.num_scheduled_tokens], mask))


def prefill_chunk(requests: int = 32, prompt: int = 8192) -> SchedulerOutput:
    """Make a decode step with a new request: its whole prompt, and the blocks of a first chunk.

    The chunk has the tokens of the step that the `requests` leave.
    """
    rng = np.random.default_rng(prompt)
    step = decode(requests)
    _add(step, rng, token_ids(rng, prompt), [])
    return step


def multimodal(requests: int = 32) -> SchedulerOutput:
    """Make a decode step with a new request that has an image: 23 MB of pixel values."""
    rng = np.random.default_rng(requests)
    patches = int(np.prod(_PATCHES))
    pixels = rng.standard_normal((patches, _PATCH_VALUES), np.float32)
    grid = np.array(_PATCHES, np.int64)
    position = PlaceholderRange(offset=15, length=patches // 4)  # four patches are one token
    image_hash = rng.bytes(32).hex()
    feature = MultiModalFeatureSpec(
        data={
            "pixel_values": MultiModalFieldElem(pixels, MultiModalBatchedField()),
            "image_grid_thw": MultiModalFieldElem(grid, MultiModalBatchedField(keep_on_cpu=True)),
        },
        modality="image",
        identifier=image_hash,
        mm_position=position,
        mm_hash=image_hash,
    )
    image = [_IMAGE_PAD] * position.length
    step = decode(requests)
    prompt = token_ids(rng, position.offset) + image + token_ids(rng, 200)
    request = _add(step, rng, prompt, [feature])
    step.scheduled_encoder_inputs[request.req_id] = [0]
    return step


def _add(
    step: SchedulerOutput,
    rng: np.random.Generator,
    prompt: list[int],
    features: list[MultiModalFeatureSpec],
) -> NewRequestData:
    """Schedule a new request's first tokens, with blocks that no other request has."""
    count = min(len(prompt), TOKEN_BUDGET - step.total_num_scheduled_tokens)
    used = {b for new in step.scheduled_cached_reqs.new_block_ids if new for b in new[0]}
    free = [block for block in rng.permutation(BLOCKS).tolist() if block not in used]
    request = NewRequestData(
        req_id=request_id(rng),
        prompt_token_ids=prompt,
        mm_features=features,
        sampling_params=sampling_params(),
        pooling_params=None,
        block_ids=(free[: blocks_for(count)],),
        num_computed_tokens=0,
        lora_request=None,
    )
    step.scheduled_new_reqs.append(request)
    step.num_scheduled_tokens[request.req_id] = count
    step.total_num_scheduled_tokens += count
    return request


def sglang_requests(count: int) -> list[sglang.TokenizedGenerateReqInput]:
    """Make a burst of chat requests, each with text, token ids and sampling parameters."""
    rng = np.random.default_rng(count)
    return [_sglang_request(rng) for _ in range(count)]


def _sglang_request(rng: np.random.Generator) -> sglang.TokenizedGenerateReqInput:
    ids = token_ids(rng, prompt_length(rng))
    return sglang.TokenizedGenerateReqInput(
        rid=rng.bytes(16).hex(),
        input_text=" ".join(rng.choice(_WORDS, len(ids)).tolist()),
        input_ids=array("q", ids),
        sampling_params=sglang.SamplingParams(
            max_new_tokens=2048, temperature=0.7, top_p=0.95, top_k=20, is_normalized=True
        ),
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        stream=True,
    )

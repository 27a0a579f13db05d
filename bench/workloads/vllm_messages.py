"""What vLLM 0.33 tells its workers at each step: plain dataclasses with its names and fields.

The fields, their order and their defaults are those of vLLM's `SchedulerOutput` and of what it
holds, so that a pickle has the structure and the size of the real one. Fields that no benchmark
uses have the type None.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt


class RequestOutputKind(Enum):
    """What of a request's output its client is sent."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    """How a request's tokens are chosen, and when it is finished."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    watermarking: bool | None = None
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprob_token_ids: None = None
    prompt_logprob_start: int | None = None
    logprob_token_ids: list[int] | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    skip_clone: bool = False
    output_text_buffer_length: int = 0
    _eos_token_id: int | None = None
    _all_stop_token_ids: set[int] = field(default_factory=set)
    _watermarking_skipped: bool = False
    structured_outputs: None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    extra_args: None = None
    bad_words: list[str] | None = None
    _bad_words_token_ids: list[list[int]] | None = None
    skip_reading_prefix_cache: bool | None = None
    thinking_token_budget: int | None = None
    repetition_detection: None = None
    routed_experts_prompt_start: int = 0
    trace_decode_token_ids: list[int] | None = None

    def __reduce__(self) -> tuple[type[SamplingParams], tuple[Any, ...]]:
        # vLLM's is a msgspec Struct, which is pickled as its values in order, without their names.
        return SamplingParams, tuple(vars(self).values())


@dataclass(frozen=True)
class PlaceholderRange:
    """Where an image's tokens lie in the prompt."""

    offset: int
    length: int
    is_embed: None = None


@dataclass(frozen=True)
class MultiModalBatchedField:
    """How the model joins such arrays of several images: one item for each."""

    keep_on_cpu: bool = False


@dataclass
class MultiModalFieldElem:
    """One array for the model, where vLLM has a tensor."""

    data: npt.NDArray[np.float32 | np.int64]
    field: MultiModalBatchedField


@dataclass
class MultiModalFeatureSpec:
    """An image of a request, after the processor of its model."""

    data: dict[str, MultiModalFieldElem] | None
    modality: str
    identifier: str
    mm_position: PlaceholderRange
    mm_hash: str | None = None


@dataclass
class NewRequestData:
    """A request scheduled for the first time: all that a worker will need of it."""

    req_id: str
    prompt_token_ids: list[int] | None
    mm_features: list[MultiModalFeatureSpec]
    sampling_params: SamplingParams | None
    pooling_params: None
    block_ids: tuple[list[int], ...]
    num_computed_tokens: int
    lora_request: None
    prompt_embeds: None = None
    prompt_is_token_ids: list[bool] | None = None
    prefill_token_ids: list[int] | None = None
    replay_start: int = 0


@dataclass
class CachedRequestData:
    """What changed in requests that the workers know: parallel lists."""

    req_ids: list[str] = field(default_factory=list)
    resumed_req_ids: set[str] = field(default_factory=set)
    new_token_ids: list[list[int]] = field(default_factory=list)
    all_token_ids: dict[str, list[int]] = field(default_factory=dict)
    new_block_ids: list[tuple[list[int], ...] | None] = field(default_factory=list)
    num_computed_tokens: list[int] = field(default_factory=list)
    num_output_tokens: list[int] = field(default_factory=list)


@dataclass
class SchedulerOutput:
    """One step: which requests compute how many tokens, and in which blocks."""

    scheduled_new_reqs: list[NewRequestData]
    scheduled_cached_reqs: CachedRequestData
    num_scheduled_tokens: dict[str, int]
    total_num_scheduled_tokens: int
    scheduled_spec_decode_tokens: dict[str, list[int]]
    scheduled_encoder_inputs: dict[str, list[int]]
    finished_req_ids: set[str]
    free_encoder_mm_hashes: list[str]
    encoder_input_updates: dict[str, dict[int, None]] = field(default_factory=dict)
    scheduled_encoder_input_stats: None = None
    preempted_req_ids: set[str] | None = None
    has_structured_output_requests: bool = False
    pending_structured_output_tokens: bool = False
    num_invalid_spec_tokens: dict[str, int] | None = None
    kv_connector_metadata: None = None
    has_sync_kv_loads: bool = False
    aux_output_connector_metadata: None = None
    ec_connector_metadata: None = None
    ec_manager_metadata: None = None
    new_block_ids_to_zero: list[int] | None = None
    kv_cache_block_copies: None = None
    kv_connector_block_state: None = None
    num_spec_tokens_to_schedule: int = 0
    num_common_prefix_blocks: list[int] = field(default_factory=list)
    skip_drafts: bool = False


@dataclass
class GrammarOutput:
    """Which tokens the grammars of some requests allow next, a bit for each of the vocabulary."""

    structured_output_request_ids: list[str]
    grammar_bitmask: npt.NDArray[np.int32]
    num_acceptable_drafts: list[int] | None = None


@dataclass
class MaskedStep:
    """A step and its bitmask. vLLM sends them as two messages, one right after the other."""

    scheduler_output: SchedulerOutput
    grammar_output: GrammarOutput

"""What SGLang 0.5.23 broadcasts: the requests that came in since the last step, tokenized.

Plain dataclasses with the names and fields of SGLang's Structs. Fields that no benchmark uses have
the type None.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    TokenIds = array[int]
else:
    TokenIds = array  # before Python 3.12 it takes no parameter at run time

TOP_K_ALL = 1 << 30
"""SGLang's "no limit"."""


@dataclass(kw_only=True)
class SamplingParams:
    """How a request's tokens are chosen, and when it is finished."""

    max_new_tokens: int | None = 128
    stop: list[str] | None = None
    stop_token_ids: set[int] | None = None
    stop_regex: list[str] | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = TOP_K_ALL
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0
    n: int = 1
    beam_width: int | None = None
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    stream_interval: int | None = None
    logit_bias: dict[str, float] | None = None
    sampling_seed: int | None = None
    custom_params: None = None
    watermark: None = None
    stop_strs: list[str] | None = None
    stop_regex_strs: list[str] | None = None
    stop_str_max_len: int = 0
    stop_regex_max_len: int = 0
    is_normalized: bool = False
    ebnf_full_assistant: bool = False


@dataclass(kw_only=True)
class TokenizedGenerateReqInput:
    """A request to continue a prompt, as the tokenizer passes it on to the schedulers."""

    rid: str | None = None
    http_worker_ipc: str | None = None
    input_text: str | None
    input_ids: TokenIds | None
    input_embeds: None = None
    mm_inputs: None = None
    token_type_ids: list[int] | None = None
    sampling_params: SamplingParams
    return_logprob: bool
    logprob_start_len: int
    top_logprobs_num: int
    token_ids_logprob: list[int] | None = None
    stream: bool
    return_sampling_mask: bool = False
    return_flat_raw_top_logprobs: bool = False
    return_hidden_states: bool = False
    return_routed_experts: bool = False
    routed_experts_start_len: int = 0
    return_indexer_topk: bool = False
    session_id: str | None = None
    session_params: None = None
    lora_id: str | None = None
    custom_logit_processor: str | None = None
    positional_embed_overrides: None = None
    bootstrap_host: str | None = None
    bootstrap_port: int | None = None
    bootstrap_room: int | None = None
    bootstrap_pair_key: str | None = None
    decode_tp_size: int | None = None
    routed_dp_rank: int | None = None
    disagg_prefill_dp_rank: int | None = None
    routing_key: str | None = None
    require_reasoning: bool = False
    priority: int | None = None
    extra_key: str | None = None
    no_logs: bool = False
    return_bytes: bool = False
    return_entropy: bool = False
    need_wait_for_mm_inputs: bool | None = None
    num_items_assigned: None = None
    encoder_urls: list[str] | None = None
    multi_item_delimiter_indices: list[int] | None = None
    token_indices_to_pool: list[int] | None = None
    time_stats: None = None
    cache_salt: str | None = None
    kv_hints: None = None
    pp_prefetch_ticketed: bool = False
    sampling_logprobs_mode: str = "selected"
    lora_name: str | None = None

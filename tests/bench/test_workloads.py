"""The benchmarks' messages: the same in every process, shaped like the engines', consistent."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from array import array
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.workloads import catalogue, simulation, steps, structs
from bench.workloads.sglang_messages import TokenizedGenerateReqInput
from bench.workloads.vllm_messages import CachedRequestData, NewRequestData, SchedulerOutput
from tests.support.permissions import needs_torch

SCHEDULER_OUTPUT = [  # of vLLM 0.33, as are those below
    "scheduled_new_reqs",
    "scheduled_cached_reqs",
    "num_scheduled_tokens",
    "total_num_scheduled_tokens",
    "scheduled_spec_decode_tokens",
    "scheduled_encoder_inputs",
    "finished_req_ids",
    "free_encoder_mm_hashes",
    "encoder_input_updates",
    "scheduled_encoder_input_stats",
    "preempted_req_ids",
    "has_structured_output_requests",
    "pending_structured_output_tokens",
    "num_invalid_spec_tokens",
    "kv_connector_metadata",
    "has_sync_kv_loads",
    "aux_output_connector_metadata",
    "ec_connector_metadata",
    "ec_manager_metadata",
    "new_block_ids_to_zero",
    "kv_cache_block_copies",
    "kv_connector_block_state",
    "num_spec_tokens_to_schedule",
    "num_common_prefix_blocks",
    "skip_drafts",
]
NEW_REQUEST = [
    "req_id",
    "prompt_token_ids",
    "mm_features",
    "sampling_params",
    "pooling_params",
    "block_ids",
    "num_computed_tokens",
    "lora_request",
    "prompt_embeds",
    "prompt_is_token_ids",
    "prefill_token_ids",
    "replay_start",
]
CACHED_REQUESTS = [
    "req_ids",
    "resumed_req_ids",
    "new_token_ids",
    "all_token_ids",
    "new_block_ids",
    "num_computed_tokens",
    "num_output_tokens",
]
SIZES = {  # bytes of pickles
    "49 B": (45, 55),
    "0.5 KB": (450, 550),
    "16 KB": (14_000, 17_000),
    "1 MiB": (1 << 20, (1 << 20) + 512),
    "64 KiB array": (1 << 16, (1 << 16) + 512),
    "8 x 64 KiB tensors, nested": (1 << 19, (1 << 19) + 8192),
    "metadata only": (45, 55),
    "decode 1": (800, 1200),
    "decode 8": (1100, 1700),
    "decode 64": (3500, 5500),
    "decode 128": (6000, 10_000),
    "decode 256": (11_000, 20_000),
    "decode 64, 3 spec tokens": (4500, 7000),
    "decode 64, bitmask": (1_216_512, 1_225_000),
    "prefill chunk": (30_000, 60_000),
    "sglang 64": (250_000, 500_000),
    "multimodal": (23_049_600, 23_070_000),
}
TYPED = [name for name, each in catalogue.WORKLOADS.items() if each.typed]
PLAIN = ("49 B", "0.5 KB", "16 KB")  # typed as they are


def pickled(obj: Any) -> bytes:
    return pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)


def made_structs(cls: type) -> list[type]:
    """Return the Struct of a dataclass, if msgspec is here."""
    return [structs.struct_type(cls)] if "msgspec" in sys.modules else []


def assert_same(one: Any, other: Any) -> None:
    """Equal values in equal places, of the same class or of the Struct made of it."""
    if is_dataclass(one):
        assert type(other) in (type(one), *made_structs(type(one)))
        for member in fields(one):
            assert_same(getattr(one, member.name), getattr(other, member.name))
    elif isinstance(one, (np.ndarray, array)):
        assert np.asarray(one).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(one, other)
    elif isinstance(one, dict):
        assert [*one] == [*other]
        assert_same([*one.values()], [*other.values()])
    elif isinstance(one, (list, tuple)):
        assert type(one) is type(other)
        for mine, its in zip(one, other, strict=True):
            assert_same(mine, its)
    else:
        assert type(one) is type(other)
        assert one == other


def test_there_is_a_workload_of_each_kind_and_each_has_a_sentence() -> None:
    assert {*SIZES, "256 MiB array", "64 x 4 MiB tensors, flat"} <= catalogue.WORKLOADS.keys()
    for name, each in catalogue.WORKLOADS.items():
        assert each.name == name
        assert each.what.endswith(".")


def test_an_unknown_workload_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'decode 7' is none of: .*decode 8; decode 64"):
        catalogue.workload("decode 7")


@needs_torch
@pytest.mark.parametrize("name", SIZES)
def test_a_pickle_has_the_size_that_its_name_promises(name: str) -> None:
    (message,) = catalogue.workload(name).make()
    least, most = SIZES[name]
    assert least <= len(pickled(message)) <= most


@pytest.mark.parametrize("name", TYPED)
def test_messages_are_the_same_each_time_and_survive_pickling(name: str) -> None:
    make = catalogue.workload(name).make
    first = make()
    assert_same(first, pickle.loads(pickled(make())))  # noqa: S301
    assert_same(first, make())


def test_every_process_makes_the_same() -> None:
    code = (
        "from bench.workloads import catalogue\n"
        "for name in ('decode 64', 'prefill chunk', 'sglang 64', 'trace'):\n"
        "    print(catalogue.sizes(catalogue.workload(name).make()))\n"
        "print(catalogue.workload('trace').gaps_ms(1000))\n"
    )
    run = [sys.executable, "-c", code]
    folder = Path(__file__).parents[2]
    one, other = (subprocess.check_output(run, cwd=folder, text=True) for _ in range(2))  # noqa: S603
    assert one == other


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (SchedulerOutput, SCHEDULER_OUTPUT),
        (NewRequestData, NEW_REQUEST),
        (CachedRequestData, CACHED_REQUESTS),
    ],
)
def test_a_step_has_the_fields_of_vllm_s(cls: Any, names: list[str]) -> None:
    assert [member.name for member in fields(cls)] == names


def test_steps_carry_what_their_names_say() -> None:
    drafted = steps.decode(64, 3)
    assert {len(ids) for ids in drafted.scheduled_spec_decode_tokens.values()} == {3}
    assert drafted.total_num_scheduled_tokens == 64 * 4

    masked = steps.masked_decode(64)
    mask = masked.grammar_output.grammar_bitmask
    assert mask.shape == (64, 152_064 // 32)
    assert mask.dtype == np.int32
    known = [*masked.scheduler_output.num_scheduled_tokens]
    assert masked.grammar_output.structured_output_request_ids == known

    chunk = steps.prefill_chunk()
    (new,) = chunk.scheduled_new_reqs
    assert new.prompt_token_ids is not None
    assert len(new.prompt_token_ids) == 8192
    assert chunk.total_num_scheduled_tokens == steps.TOKEN_BUDGET

    (new,) = steps.multimodal().scheduled_new_reqs
    (image,) = new.mm_features
    assert image.data is not None
    assert image.data["pixel_values"].data.nbytes == 23_049_600
    assert image.data["pixel_values"].data.dtype == np.float32

    requests = steps.sglang_requests(64)
    assert len({request.rid for request in requests}) == len(requests) == 64
    assert all(isinstance(request, TokenizedGenerateReqInput) for request in requests)


@pytest.mark.parametrize("name", TYPED)
def test_the_typed_message_equals_the_original_and_survives_msgpack(name: str) -> None:
    msgspec = pytest.importorskip("msgspec")
    chosen = catalogue.workload(name)
    assert chosen.typed is not None
    kind, convert = chosen.typed()
    encode = msgspec.msgpack.Encoder(
        enc_hook=lambda array: [array.dtype.str, array.tolist()]
    ).encode
    decode = msgspec.msgpack.Decoder(
        kind, dec_hook=lambda _, got: np.array(got[1], got[0]), strict=True
    ).decode
    for message in chosen.make()[:200]:
        made = convert(message)
        if name not in PLAIN:
            assert isinstance(made[0] if isinstance(made, list) else made, msgspec.Struct)
        assert_same(message, made)
        if name != "multimodal":  # 23 MB as a list
            assert_same(message, decode(encode(made)))


@pytest.mark.parametrize("name", ["trace", "trace, fast"])
def test_a_trace_has_a_positive_gap_for_each_message_and_begins_anew(name: str) -> None:
    trace = catalogue.workload(name)
    assert trace.gaps_ms is not None
    assert len(trace.make()) == 1000
    gaps = trace.gaps_ms(1500)
    assert len(gaps) == 1500
    assert min(gaps) > 0
    assert gaps[1000:] == gaps[:500]


def test_the_fast_trace_is_the_same_ten_times_as_fast() -> None:
    slow, fast = (catalogue.workload(name) for name in ("trace", "trace, fast"))
    assert slow.gaps_ms is not None
    assert fast.gaps_ms is not None
    assert fast.gaps_ms(1000) == pytest.approx([gap / 10 for gap in slow.gaps_ms(1000)])
    assert catalogue.sizes(slow.make()) == catalogue.sizes(fast.make())


@pytest.mark.parametrize("seed", range(2))
def test_decode_steps_take_8_to_15_ms_and_prefills_longer(seed: int) -> None:
    made = [*simulation.simulate(1000, seed)]
    for step, following in itertools.pairwise(made[50:]):  # from there on it is never idle
        counts = step.message.num_scheduled_tokens.values()
        if max(counts) == 1:
            assert 7.5 <= following.gap_ms <= 15
        else:
            assert following.gap_ms > 9


@pytest.mark.parametrize("seed", range(4))
def test_requests_of_a_trace_live_consistently(seed: int) -> None:
    computed: dict[str, int] = {}  # of those that live, as are all below
    blocks: dict[str, list[int]] = {}
    prompts: dict[str, int] = {}
    outputs: dict[str, int] = {}
    ended = 0
    for step in catalogue.decode_steps(1000, seed):
        for req_id in step.finished_req_ids:  # it was started, or there were no such key
            assert outputs.pop(req_id) > 0
            ended += 1
            for of_all in (computed, blocks, prompts):
                del of_all[req_id]
        for new in step.scheduled_new_reqs:
            assert new.req_id not in computed
            assert new.prompt_token_ids is not None
            prompts[new.req_id] = len(new.prompt_token_ids)
            computed[new.req_id] = outputs[new.req_id] = 0
            blocks[new.req_id] = [*new.block_ids[0]]
        cached = step.scheduled_cached_reqs
        lists = (cached.new_block_ids, cached.num_computed_tokens, cached.num_output_tokens)
        for req_id, added, before, output in zip(cached.req_ids, *lists, strict=True):
            assert before == computed[req_id]
            assert output == outputs[req_id]
            blocks[req_id] += added[0] if added else []
        tokens = step.num_scheduled_tokens
        assert tokens.keys() == computed.keys()  # who lives computes
        assert tokens.keys() == {*cached.req_ids} | {r.req_id for r in step.scheduled_new_reqs}
        assert step.total_num_scheduled_tokens == sum(tokens.values()) <= steps.TOKEN_BUDGET
        for req_id, count in tokens.items():
            assert count > 0
            computed[req_id] += count
            outputs[req_id] += computed[req_id] >= prompts[req_id]
            assert len(blocks[req_id]) == steps.blocks_for(computed[req_id])
        held = [block for owned in blocks.values() for block in owned]
        assert len(held) == len({*held})
    assert ended > 100

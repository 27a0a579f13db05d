"""The example generates text by every rank together, and says what it is doing."""

from __future__ import annotations

import dataclasses
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer

import passes
import prompts
import rank
import tp_generate
from gpt_config import CONFIG
from passes import Pass
from scheduler import Request, SamplingParams
from tests.support.failing_ranks import raises_on_rank_1, rank_0_ends
from tests.support.subprocess_programs import TORCH_SECONDS, imports_torch, without_gloo
from tests.support.terminal import rendered
from tiny_gpt import TensorParallel, TinyGPT, continue_alone
from tp_generate import keep_silent

GREEDY = Request("greedy", [*b"Once upon a time"], SamplingParams(6))
SAMPLED = Request("sampled", [*b"Rain"], SamplingParams(6, temperature=0.8, top_k=40, seed=1))


@pytest.fixture
def model() -> Iterator[TinyGPT]:
    """Make the unsharded model, and let it work in one thread without gradients."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield TinyGPT(CONFIG, 0, TensorParallel())
    torch.set_num_threads(threads)


def grown(model: TinyGPT, request: Request) -> list[int]:
    """Make the model's own tokens one after the other."""
    tokens: list[int] = []
    while True:
        longer = continue_alone(model, request.prompt_token_ids, tokens, request.sampling_params)
        if longer == tokens:
            return tokens
        tokens = longer


def a_pass(outputs: dict[str, list[int]], transport: str = "shmcast", us: float = 80.0) -> Pass:
    return Pass(transport, outputs, [None] * 3, [us] * 3, [us] * 3, [500.0] * len(outputs), 0.1)


@pytest.mark.parametrize("request_", [GREEDY, SAMPLED], ids=lambda request: request.req_id)
def test_tokens_made_one_by_one_are_those_that_are_expected_of_all_at_once(
    model: TinyGPT, request_: Request
) -> None:
    tokens = grown(model, request_)
    assert len(tokens) == 6
    rank.check_tokens([request_], [a_pass({request_.req_id: tokens})], 0, keep_silent)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda tokens: [tokens[0], tokens[1] ^ 1, *tokens[2:]], 1),
        (lambda tokens: tokens[:-1], 5),
        (lambda tokens: [*tokens, 7], 6),
    ],
    ids=["other", "too few", "too many"],
)
def test_a_wrong_token_is_found_and_its_place_named(
    model: TinyGPT, change: object, place: int
) -> None:
    assert callable(change)
    tokens = grown(model, SAMPLED)
    right, wrong = a_pass({"sampled": tokens}), a_pass({"sampled": change(tokens)}, "gloo")
    with pytest.raises(ValueError, match=rf"sampled, broadcast with gloo, .* token {place}: got"):
        rank.check_tokens([SAMPLED], [right, wrong], 0, keep_silent)


def test_its_table_fits_a_terminal() -> None:
    outputs = {"request-1": [1, 2, 3]}
    measured = [a_pass(outputs), a_pass(outputs, "gloo", 123_456.7)]
    slow = [dataclasses.replace(done, first_token_ms=[98_765.4] * 2) for done in measured]
    lines = rendered(passes.summarize(slow, ranks=4))
    assert sum(line.startswith("shmcast  ") for line in lines) == 1
    assert sum(line.startswith("gloo  ") for line in lines) == 1
    assert not any(line.startswith("tokens/s:") for line in lines)


def test_a_difference_in_tokens_per_second_is_put_beside_the_noise() -> None:
    outputs = {"request-1": [1, 2, 3]}
    measured = [
        dataclasses.replace(a_pass(outputs, transport), seconds=seconds)
        for transport, seconds in (("shmcast", 0.1), ("gloo", 0.2), ("shmcast", 0.125))
    ]
    lines = rendered(passes.summarize(measured, ranks=2))
    # 30 and 24 tokens/s, of which 27 is the median
    told = "tokens/s: computation but for the share; passes of one transport differ by 22%"
    assert told in lines
    (heads,) = (line.split() for line in lines if line.startswith("transport"))
    assert heads[1:] == ["p50", "p99", "call", "p50", "the", "time", "p50", "tokens/s"]


def test_a_prompt_that_is_too_long_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("short\n" + "x" * CONFIG.context + "\n")
    with pytest.raises(ValueError, match=r"line 2: 256 bytes and 8 new tokens"):
        prompts.read_requests(path, 9, seed=0)
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no prompts"):
        prompts.read_requests(path, 8, seed=0)


@imports_torch
def test_it_says_what_it_does_and_generates_the_same_by_both_transports(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("The sea\nA long road\n")
    command = [sys.executable, tp_generate.__file__, "--max-tokens=4", "--repeats=1"]
    ran = subprocess.run(  # noqa: S603
        [*command, f"--prompts={path}"],
        capture_output=True,
        text=True,
        timeout=TORCH_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = without_gloo(ran.stdout).splitlines()
    assert lines[:8] == [
        "importing torch ...",
        "2 ranks meet ...",
        "generating with gloo, pass that warms up ...",
        "generating with shmcast, pass that warms up ...",
        "generating with shmcast, pass 1 of 1 ...",
        "generating with gloo, pass 1 of 1 ...",
        "checking tokens with the unsharded model, 1 of 4 ...",
        "checking tokens with the unsharded model, 3 of 4 ...",
    ]
    assert "tokens equal the unsharded model's, each of them (checked)" in lines
    assert all(len(line) <= 80 for line in lines)


@pytest.mark.parametrize("serve", [raises_on_rank_1, rank_0_ends])
def test_a_rank_that_fails_ends_all(monkeypatch: pytest.MonkeyPatch, serve: object) -> None:
    monkeypatch.setattr(tp_generate, "serve_rank", serve)
    others = set(multiprocessing.active_children())  # another test's ranks may live on
    with pytest.raises(typer.Exit) as exited:
        tp_generate.run_ranks(2, tp_generate.keep_silent)
    assert exited.value.exit_code == 1
    assert set(multiprocessing.active_children()) <= others

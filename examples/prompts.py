"""The requests of `tp_generate.py`: a prompt a line."""

from pathlib import Path

from gpt_config import CONFIG
from scheduler import Request, SamplingParams

PROMPTS = Path(__file__).with_name("prompts.txt")


def read_requests(path: Path, max_tokens: int, seed: int) -> list[Request]:
    """Make a request of each line of `path`: by turns greedy and sampled, of varied lengths.

    Raises:
        ValueError: there are none, or one is too long for the model.
    """
    requests = []
    for index, line in enumerate(path.read_bytes().splitlines()):
        tokens = max(1, max_tokens - index % 4 * max_tokens // 8)
        if index % 2 == 0:
            params = SamplingParams(tokens)
        else:
            params = SamplingParams(tokens, temperature=0.8, top_k=40, seed=seed + index)
        if len(line) + tokens > CONFIG.context:
            raise ValueError(
                f"{path}, line {index + 1}: {len(line)} bytes and {tokens} new tokens are more "
                f"than the model's context of {CONFIG.context}"
            )
        if line:
            requests.append(Request(f"request-{index}", list(line), params))
    if not requests:
        raise ValueError(f"{path} has no prompts")
    return requests

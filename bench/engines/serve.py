"""A process with vLLM in it, which does what it is told: `python -m bench.engines.serve ADDRESS`.

It is run by the Python of the engines' environment, with the probe's folder in PYTHONPATH.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Client
from typing import Any

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
}
"""A model that takes so little time that the rest of a step shows; its weights are made up."""

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


class Server:
    """What can be asked for, by name.

    Args:
        model: a folder with the model's config.json.
        ranks: of tensor parallelism, each a process.
        executor: who starts and calls them.
    """

    def __init__(self, model: str, ranks: int, executor: str = "mp") -> None:
        import vllm

        self._llm = vllm.LLM(
            model=model,
            load_format="dummy",
            skip_tokenizer_init=True,
            tensor_parallel_size=ranks,
            distributed_executor_backend=executor,
            enforce_eager=True,
            max_model_len=1024,
            dtype="float32",
            seed=0,
            enable_prefix_caching=False,
            block_size=32,
        )
        self._params = vllm.SamplingParams

    def generate(self, batch: int, tokens: int) -> dict[str, Any]:
        """Let so many sequences have so many tokens each; return the seconds, and the tokens."""
        prompts = [{"prompt_token_ids": [1 + i, 2, 3, 4]} for i in range(batch)]
        params = self._params(
            max_tokens=tokens, min_tokens=tokens, temperature=0, detokenize=False, ignore_eos=True
        )
        begin = time.monotonic()
        outputs: Any = self._llm.generate(prompts, params, use_tqdm=False)
        seconds = time.monotonic() - begin
        return {"seconds": seconds, "tokens": [[*o.outputs[0].token_ids] for o in outputs]}

    def pace(self, steps: int, gap_s: float) -> dict[str, Any]:
        """Take so many steps, each by itself, so far apart; return the seconds."""
        begin = time.monotonic()
        for _ in range(steps):
            self.generate(1, 1)
            time.sleep(gap_s)
        return {"seconds": time.monotonic() - begin}

    def kill(self, pid: int) -> dict[str, Any]:
        """Kill a worker while it generates; return after how many seconds who asked is told."""
        killed: list[float] = []

        def kill() -> None:
            killed.append(time.monotonic())
            os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(0.5, kill)
        timer.start()
        try:
            while True:
                self.generate(8, 500)
        except Exception as error:
            told = time.monotonic()
            return {"killed": killed[0], "user_s": told - killed[0], "error": type(error).__name__}


def main() -> None:
    """Serve until the one who has started this, in a session of its own, hangs up."""
    address, model, ranks = sys.argv[1:]
    with Client(address) as control:
        server = Server(model, int(ranks))
        control.send({})
        while True:
            try:
                what, arguments = control.recv()
            except EOFError:
                # At once, with core and workers: one whose worker was killed takes long to end.
                os.killpg(0, signal.SIGKILL)
            control.send(getattr(server, what)(**arguments))


if __name__ == "__main__":
    main()

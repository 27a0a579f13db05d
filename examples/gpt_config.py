"""The sizes of `tp_generate.py`: of its model, its KV cache and its steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GPTConfig:
    """The model's sizes."""

    vocab_size: int = 256  # a token is a byte
    context: int = 256
    layers: int = 4
    hidden: int = 288
    heads: int = 12  # divides among 2, 3 or 4 ranks

    @property
    def head_dim(self) -> int:
        """Return the features of one head."""
        return self.hidden // self.heads


CONFIG = GPTConfig()
BLOCK_SIZE = 16
NUM_BLOCKS = 40  # some requests have to wait for blocks
TOKEN_BUDGET = 64  # some prompts are prefilled in chunks
MAX_RUNNING = 8

"""Messages that an engine fills and reads as memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class Block:
    """What `acquire_write` has filled and `acquire_read` gets, as one message.

    Args:
        data: its bytes.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data


class Blocks:
    """The part of a queue that lends memory."""

    enqueue: Callable[..., None]
    dequeue: Callable[..., Any]
    _is_writer: bool
    _is_local_reader: bool
    _block_bytes: int

    @contextlib.contextmanager
    def acquire_write(self, timeout: float | None = None) -> Iterator[memoryview]:
        """Lend memory to be filled; it is sent when the block ends, to `acquire_read`.

        As in the engine's own, readers on other hosts get none of it.

        Args:
            timeout: as for `enqueue`, when the block ends.

        Yields:
            `max_chunk_bytes` of zeros.

        Raises:
            RuntimeError: this is a reader's end.
            Exception: what `enqueue` raises.
        """
        if not self._is_writer:
            raise RuntimeError("Only writers can acquire write")
        data = bytearray(self._block_bytes)
        yield memoryview(data)
        self.enqueue(Block(data), timeout)

    @contextlib.contextmanager
    def acquire_read(
        self, timeout: float | None = None, indefinite: bool = False
    ) -> Iterator[memoryview]:
        """Receive what an `acquire_write` has filled.

        Args:
            timeout: as for `dequeue`.
            indefinite: as for `dequeue`.

        Yields:
            It.

        Raises:
            RuntimeError: the next message was sent by `enqueue`. It is consumed. Or this is a
                writer's end.
            Exception: what else `dequeue` raises.
        """
        if not self._is_local_reader:
            raise RuntimeError("Only readers can acquire read")
        block = self.dequeue(timeout, indefinite)
        if not isinstance(block, Block):
            raise RuntimeError(f"the next message is a {type(block).__qualname__}: call dequeue()")
        yield memoryview(block.data)

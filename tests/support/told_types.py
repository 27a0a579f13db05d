"""What type checkers must make of our calls. `make lint` checks it by mypy; nothing runs this."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import shmcast

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import assert_type

    def of_tensor_dicts(
        broadcaster: shmcast.ShmBroadcaster, tensors: dict[str, Tensor], is_async: bool
    ) -> None:
        """Return dicts, whose values have any type; with `async_op`, a `Work`."""
        broadcast = broadcaster.broadcast_tensor_dict
        assert_type(broadcast(tensors if broadcaster.is_src else None, 60), dict[Any, Any])
        assert_type(broadcast(out=tensors), dict[Any, Any])
        assert_type(broadcast(tensors, async_op=True), shmcast.Work)
        assert_type(broadcast(tensors, async_op=is_async), Any)

"""What a broadcaster lends: arrays in the source's arena, as its `Writer` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import FrameWriter
from shmcast._endpoints.loans import Shape
from shmcast._group.single_rank import SingleRank
from shmcast.errors import WrongRole

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from shmcast._nodes.source import SourceRelay


class Lender:
    """The part of a `ShmBroadcaster` that lends."""

    src: int
    """The source's global rank."""

    _label: str
    _end: FrameWriter | FrameReader | SourceRelay | SingleRank

    def empty(self, shape: Shape, dtype: npt.DTypeLike = float) -> npt.NDArray[Any]:
        """Lend an array in the arena, to fill and send without a copy; see `Writer.empty`.

        Raises:
            WrongRole: this is not the source.
            ShmcastError: what `Writer.empty` raises.
        """
        return self._lender("empty").empty(shape, dtype)

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Lend a tensor on the CPU; see `Writer.empty_tensor`.

        Raises:
            ShmcastError: what `empty` raises.
        """
        return self._lender("empty_tensor").empty_tensor(shape, dtype)

    def thaw(self, array: npt.NDArray[Any] | torch.Tensor) -> bool:
        """Return whether every rank is done with a loan that was sent; see `Writer.thaw`.

        Raises:
            ShmcastError: what `empty` raises.
        """
        return self._lender("thaw").thaw(array)

    def record_stream(self, view: npt.NDArray[Any] | torch.Tensor, stream: torch.Stream) -> None:
        """Note work on a stream that reads a pinned view or loan; see `Writer.record_stream`."""
        self._end.record_stream(view, stream)

    def _lender(self, action: str) -> FrameWriter | SourceRelay | SingleRank:
        if isinstance(self._end, FrameReader):
            raise WrongRole(
                f"{self._label}: {action}() is for the source, rank {self.src}; receive with "
                "copy=False here"
            )
        return self._end

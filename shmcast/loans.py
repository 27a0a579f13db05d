"""Loans: arrays and tensors in the arena, which the writer's program fills and sends uncopied.

Of what is lent it knows what was sent and is not to be written to until every reader is done.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shmcast import _core
from shmcast.errors import InvalidArgument, ShmcastWarning

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from shmcast._pinning import PinnedArena

    LoanedArray = npt.NDArray[Any] | torch.Tensor

Shape = int | Sequence[int]


@dataclass
class _Lent:
    """One loan that is still in use."""

    root: Callable[[], LoanedArray | None]
    """A weak reference to what the program was given."""
    extent: int
    begin: int
    """Its address."""
    end: int
    frozen: list[Callable[[], npt.NDArray[Any] | None]] = field(default_factory=list)
    """Weak references to the arrays that were made read-only when they were sent."""
    version: int | None = None
    """How often a tensor had been written to when it was sent."""
    is_frozen: bool = False


class Lender:
    """The loans of one writer.

    Args:
        ring: the writer's.
        label: how errors name the writer.
        pinned: the arena, if it is pinned.
    """

    def __init__(self, ring: _core.RingWriter, label: str, pinned: PinnedArena | None) -> None:
        self._ring = ring
        self._pinned = pinned
        self._label = label
        self._lent: dict[int, _Lent] = {}  # by extent

    def empty(self, shape: Shape, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array in the arena; in ordinary memory if there is no room, or nothing to hold."""
        import numpy as np

        exact = np.dtype(dtype)
        if exact.hasobject:
            raise InvalidArgument(
                f"{self._label}: empty(dtype={dtype!r}): Python objects can't be shared; use a "
                "dtype without them"
            )
        loan = self._loan(self._elements(shape) * exact.itemsize)
        if loan is None:
            return np.empty(shape, exact)
        array = np.ndarray(shape, exact, loan)  # type: ignore[arg-type]
        self._keep(array, array.__array_interface__["data"][0], loan)
        return array

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None) -> torch.Tensor:
        """The same as a tensor on the CPU."""
        import torch

        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype):
            raise InvalidArgument(
                f"{self._label}: empty_tensor(dtype={dtype!r}): that is no torch.dtype"
            )
        elements = self._elements(shape)
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        loan = self._loan(elements * dtype.itemsize)
        if loan is None:
            return torch.empty(sizes, dtype=dtype)
        tensor = torch.frombuffer(loan, dtype=dtype)[:elements].view(sizes)
        self._keep(tensor, tensor.data_ptr(), loan)
        return tensor

    def forget_views(self) -> None:
        """Before an object is encoded: no view was seen in it yet."""
        if self._pinned is not None:
            self._pinned.release_finished()
        for lent in self._lent.values():
            _views(lent.root()).clear()

    def freeze_sent(self) -> None:
        """After a message was sent: what it has of the loans is read-only from now on."""
        sent = self._ring.sent()
        for lent in [lent for lent in self._lent.values() if lent.is_frozen]:
            self._thaw(lent, look=False)
        for extent in sent:
            entry = self._lent.get(extent)  # None: the frame was copied to the arena
            root = None if entry is None else entry.root()
            if entry is not None and root is not None:
                self._freeze(entry, root)

    def thaw(self, array: LoanedArray) -> bool:
        """Whether every reader is done with `array`, which can then be written to again."""
        lent = self._find(array)
        return not lent.is_frozen or self._thaw(lent, look=True)

    def _elements(self, shape: Shape) -> int:
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        if any(not isinstance(size, int) or size < 0 for size in sizes):
            raise InvalidArgument(
                f"{self._label}: shape={shape!r} must be an integer >= 0, or a sequence of such"
            )
        return math.prod(sizes)

    def _loan(self, nbytes: int) -> _core.Loan | None:
        if self._pinned is not None:
            self._pinned.release_finished()
        return self._ring.loan(nbytes) if nbytes else None

    def _keep(self, root: LoanedArray, address: int, loan: _core.Loan) -> None:
        # (The entry goes before the extent does: a reference ends before what it refers to.)
        extent, everything = loan.extent, self._lent
        reference = weakref.ref(root, lambda _: everything.pop(extent, None))
        everything[extent] = _Lent(reference, extent, address, address + len(memoryview(loan)))

    def _find(self, array: LoanedArray) -> _Lent:
        try:
            address = address_of(array)
        except AttributeError:
            raise InvalidArgument(
                f"{self._label}: a {type(array).__qualname__} is no array or tensor"
            ) from None
        for lent in self._lent.values():
            if lent.begin <= address < lent.end:
                return lent
        raise InvalidArgument(
            f"{self._label}: this array is not in a loan of this writer: make it with its empty() "
            "or empty_tensor() (without room in the arena they give ordinary memory, which is "
            "never frozen)"
        )

    def _freeze(self, lent: _Lent, root: LoanedArray) -> None:
        lent.is_frozen = True
        if hasattr(root, "data_ptr"):
            lent.version = _version(root)
            return
        views = _views(root)
        for reference in (lent.root, *views):
            array = reference()
            if array is not None and array.flags.writeable:
                array.flags.writeable = False
                lent.frozen.append(weakref.ref(array))
        views.clear()

    def _thaw(self, lent: _Lent, look: bool) -> bool:
        root = lent.root()
        if root is None or not self._ring.is_done(lent.extent, look):
            return root is None
        for reference in lent.frozen:
            array = reference()
            if array is not None:
                array.flags.writeable = True
        lent.frozen.clear()
        lent.is_frozen = False
        if lent.version is not None and lent.version != _version(root):
            warnings.warn(
                f"{self._label}: a tensor of empty_tensor(), shape {tuple(root.shape)}, was "
                "written to after it was sent and before every reader was done with it: they may "
                "have seen half of what was written. Look at thaw() first, or take a new one",
                ShmcastWarning,
                stacklevel=2,
            )
        return True


def address_of(array: Any) -> int:
    """Where a numpy array or a tensor begins. Raises AttributeError: it is neither."""
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    return int(array.__array_interface__["data"][0])


def _views(root: LoanedArray | None) -> list[Any]:
    """Where the arrays are noted that were seen in an object; see _arrays.py."""
    base = getattr(root, "base", None)
    return base.views if isinstance(base, _core.Loan) else []


def _version(tensor: Any) -> int | None:
    """How often it was written to in place, as autograd counts. None: it does not count."""
    return None if tensor.is_inference() else int(tensor._version)

"""Loans: arrays and tensors in the arena, which a program fills and sends without a copy.

Of what is lent it knows what was sent and is not to be written to until every reader is done.
"""

from __future__ import annotations

import functools
import math
import operator
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, SupportsIndex

from shmcast import _core
from shmcast._endpoints.dependencies import needing_torch
from shmcast.errors import InvalidArgument, ShmcastWarning

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from shmcast._endpoints.pinned import PinnedArena

    LoanedArray = npt.NDArray[Any] | torch.Tensor

Shape = SupportsIndex | Sequence[SupportsIndex]

_MOST_BYTES = 2**63 - 1


@dataclass
class _Lent:
    """One loan that is still in use."""

    loan: Callable[[], _core.Loan | None]
    """A weak reference. It lives as long as anything that uses its memory."""
    root: Callable[[], LoanedArray | None]
    """A weak reference to the array that all others over this memory are views of. A tensor need
    not live as long as they do: `detach` and inference mode make such as don't know of it."""
    extent: int
    begin: int
    """The address of its first byte."""
    end: int
    views: list[Callable[[], npt.NDArray[Any] | None]]
    """Weak references to views that were found in an object to be sent: the loan's own list."""
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
        """Lend an array in the arena; in ordinary memory if that is full, or the array empty."""
        import numpy as np

        try:
            exact = np.dtype(dtype)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"{self._label}: empty(dtype={dtype!r}): {error}") from None
        if exact.hasobject:
            raise InvalidArgument(
                f"{self._label}: empty(dtype={dtype!r}): Python objects can't be shared; use a "
                "dtype without them"
            )
        sizes = self._sizes(shape, exact.itemsize)
        loan = self._loan(math.prod(sizes) * exact.itemsize)
        if loan is None:
            return np.empty(sizes, exact)
        array = np.ndarray(sizes, exact, loan)  # type: ignore[arg-type]
        self._keep(array, loan)
        return array

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None) -> torch.Tensor:
        """Lend a tensor on the CPU; otherwise like `empty`."""
        with needing_torch(f"{self._label}: empty_tensor()"):
            import torch

        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not isinstance(dtype, torch.dtype):
            raise InvalidArgument(
                f"{self._label}: empty_tensor(dtype={dtype!r}): that is no torch.dtype"
            )
        if str(dtype) in _QUANTIZED:
            raise InvalidArgument(
                f"{self._label}: empty_tensor(dtype={dtype!r}): a quantized tensor has a scale, "
                "too; use the integers that it is made of"
            )
        sizes = self._sizes(shape, dtype.itemsize)
        loan = self._loan(math.prod(sizes) * dtype.itemsize)
        if loan is None:
            return torch.empty(sizes, dtype=dtype, device="cpu")
        tensor = torch.frombuffer(loan, dtype=dtype)
        self._keep(tensor, loan)
        return tensor.view(sizes)

    def forget_views(self) -> None:
        """Forget the views that were seen in an object: it is sent, or never will be."""
        for lent in self._all():
            lent.views.clear()

    def freeze_sent(self) -> None:
        """Make read-only what the message that was just sent has of the loans."""
        if self._pinned is not None:
            self._pinned.release_finished()
        # Few steps: all of this is cold once a decode loop comes here again.
        everything = self._lent
        for lent in [*everything.values()]:
            if lent.is_frozen:
                self._thaw(lent, look=False)
        for extent in {*self._ring.sent()}:  # a loan may be in many frames
            entry = everything.get(extent)  # None: the frame was copied to the arena
            if entry is not None:
                self._freeze(entry)
        for lent in [*everything.values()]:
            lent.views.clear()

    def thaw(self, array: LoanedArray) -> bool:
        """Return whether every reader is done with `array`, which can then be written to again."""
        lent = self._find(array)
        return lent is None or not lent.is_frozen or self._thaw(lent, look=True)

    def _all(self) -> list[_Lent]:
        # A copy: any of them may end meanwhile, by another thread or the garbage collector.
        return list(self._lent.values())

    def _sizes(self, shape: Shape, itemsize: int) -> tuple[int, ...]:
        try:
            sizes = tuple(map(operator.index, shape if isinstance(shape, Iterable) else (shape,)))
        except TypeError:
            sizes = (-1,)
        if any(size < 0 for size in sizes):
            raise InvalidArgument(
                f"{self._label}: shape={shape!r} must be an integer >= 0, or a sequence of such"
            )
        if math.prod(sizes) * itemsize > _MOST_BYTES:
            raise InvalidArgument(f"{self._label}: no memory holds an array of shape={shape!r}")
        return sizes

    def _loan(self, nbytes: int) -> _core.Loan | None:
        if self._pinned is not None:
            self._pinned.release_finished()
        return self._ring.loan(nbytes) if nbytes else None

    def _keep(self, root: LoanedArray, loan: _core.Loan) -> None:
        # (The entry goes before the extent does: a reference ends before what it refers to.)
        extent, everything = loan.extent, self._lent
        # No Python code: a signal's handler could take its place.
        reference = weakref.ref(loan, functools.partial(everything.pop, extent))
        begin = address_of(root)
        end = begin + len(memoryview(loan))
        everything[extent] = _Lent(reference, weakref.ref(root), extent, begin, end, loan.views)

    def _find(self, array: LoanedArray) -> _Lent | None:
        """Return the loan of this writer in which an array lies."""
        address = _checked_address(array, self._label)
        for lent in self._all():
            if lent.begin <= address < lent.end:
                return lent
        return None

    def _freeze(self, lent: _Lent) -> None:
        root = lent.root()
        was_frozen, lent.is_frozen = lent.is_frozen, True
        if hasattr(root, "data_ptr"):
            if not was_frozen:  # else: as of its first sending
                lent.version = _version(root)
        elif root is not None:
            arrays: tuple[Callable[[], Any], ...] = (lent.root, *lent.views)
            for reference in arrays:
                array = reference()
                if array is not None and array.flags.writeable:
                    array.flags.writeable = False
                    lent.frozen.append(weakref.ref(array))

    def _thaw(self, lent: _Lent, look: bool) -> bool:
        if lent.loan() is not None and not self._ring.is_done(lent.extent, look):
            return False
        root = lent.root()
        for reference in lent.frozen:
            array = reference()
            if array is not None:
                array.flags.writeable = True
        lent.frozen.clear()
        lent.is_frozen = False
        version, lent.version = lent.version, None
        if root is not None and version is not None and version != _version(root):
            warnings.warn(
                f"{self._label}: a tensor of empty_tensor(), {root.dtype}, {root.nbytes} bytes, "
                "was written to after it was sent and before every reader was done with it: they "
                "may have seen half of what was written. Look at thaw() first, or take a new one",
                ShmcastWarning,
                stacklevel=2,
            )
        return True


class OrdinaryMemory:
    """The same interface for an end that shares memory with nobody."""

    label: str

    def empty(self, shape: Shape, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array in ordinary memory."""
        import numpy as np

        return np.empty(shape, dtype)

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None) -> torch.Tensor:
        """Return a tensor in ordinary memory."""
        with needing_torch(f"{self.label}: empty_tensor()"):
            import torch

        return torch.empty(shape, dtype=dtype, device="cpu")  # type: ignore[arg-type]

    def thaw(self, array: LoanedArray) -> bool:
        """Return True: nothing is frozen.

        Raises:
            InvalidArgument: `array` is neither a numpy array nor a tensor.
        """
        _checked_address(array, self.label)
        return True

    def record_stream(self, _array: LoanedArray, _stream: torch.Stream) -> None:
        """Do nothing: this memory is the allocator's."""


def address_of(array: Any) -> int:
    """Return where a numpy array or a tensor begins; raise AttributeError if it is neither."""
    if hasattr(array, "data_ptr"):
        return int(array.data_ptr())
    return int(array.__array_interface__["data"][0])


def _checked_address(array: Any, label: str) -> int:
    try:
        return address_of(array)
    except AttributeError:
        raise InvalidArgument(
            f"{label}: a {type(array).__qualname__} is no array or tensor"
        ) from None


# (By name: torch is not imported here.)
_QUANTIZED = {f"torch.{name}" for name in ("qint8", "qint32", "quint8", "quint4x2", "quint2x4")}


def _version(tensor: Any) -> int | None:
    """Return how often autograd has seen a write to the tensor; None: it does not count."""
    return None if tensor.is_inference() else int(tensor._version)  # noqa: SLF001

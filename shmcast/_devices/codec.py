"""Codec: find the device tensors in an object, list them in a manifest, put them back in place.

Their elements take the lane and don't pass through here. Imported once torch is in use.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import pickle
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol, cast

import torch

from shmcast._codecs.base import Frame, Received
from shmcast._codecs.fallback import PickleLike
from shmcast._codecs.object_codec import ObjectCodec
from shmcast._codecs.pickle_codec import PickleCodec, Reducers
from shmcast._codecs.tensors import (
    REDUCERS,
    check_memory,
    contiguous_elements,
    let_core_reduce,
    reduce_tensor,
    with_attributes,
    with_memory,
)
from shmcast._devices.buffers import send_buffers
from shmcast._devices.manifest import (
    Manifest,
    OutgoingTensors,
    TensorSpec,
    grouped,
    restore_autograd,
)


class Carrier(enum.Enum):
    """What carries the tensors on a type of device."""

    HOST = enum.auto()
    """The message: they are in host memory."""
    GROUP = enum.auto()
    """The device group's broadcasts."""
    STAGING = enum.auto()
    """The message: they are copied to host memory, and from there to the receiver's device."""


class Lane(Protocol):
    """What the codec asks of the lane that its tensors take."""

    carries_cpu: bool
    """Whether tensors in host memory take the lane, too."""

    def carrier_of(self, device_type: str, /) -> Carrier:
        """Return what carries the tensors on a type of device.

        Raises:
            TypeError: nothing does.
        """

    def next_number(self) -> int:
        """Return the number of the next message with device tensors.

        Raises:
            DeviceError: an earlier one has failed.
        """


class DevicePickleCodec(PickleCodec):
    """`PickleCodec` with a stub in the place of each device tensor.

    The frames of `encode` have a tuple for each of them, to go through `with_tensors`. The first
    frame of a message with stubs is the manifest, which is read without unpickling.
    """

    def __init__(
        self, lane: Lane, allow: Collection[type | Callable[..., Any] | str] | None
    ) -> None:
        super().__init__(allow=allow)
        self._lane = lane

    def decode_with_tensors(
        self, frames: list[Received], tensors: Iterable[torch.Tensor], /
    ) -> Any:
        """Return the object of a message with a manifest.

        Args:
            frames: the message's.
            tensors: what to put in the places of its stubs, in the manifest's order.

        Raises:
            Exception: what unpickling raises; of any class.
        """
        with unpickling(tensors):
            return self.loads(frames[1], buffers=frames[2:])

    def _reducers_for(self, buffers: list[Any]) -> Reducers:
        return _DeviceReducers(self._lane, buffers)


class DeviceCodec(ObjectCodec):
    """`ObjectCodec` that leaves objects with device tensors to a `DevicePickleCodec`."""

    _pickle: DevicePickleCodec

    def __init__(
        self,
        lane: Lane,
        allow: Collection[type | Callable[..., Any] | str] | None,
        fallback: str | PickleLike | None,
    ) -> None:
        self._lane = lane
        super().__init__(allow=allow, fallback=fallback)
        self.find = self._pickle.find
        """See `PickleCodec`."""
        self.decode_with_tensors = self._pickle.decode_with_tensors

    def _make_pickle_codec(self) -> DevicePickleCodec:
        return DevicePickleCodec(self._lane, self.allow)

    def _encode_by_pickle(self) -> tuple[Callable[..., list[Any]], Callable[..., list[Any]]]:
        # Its buffers have a tuple for each device tensor. (No frame of Python's lies between.)
        methods = PickleCodec.dump, PickleCodec.encode_again
        encode, encode_again = (functools.partial(method, self._pickle) for method in methods)
        return encode, encode_again

    def _make_reducers(self) -> Reducers:
        return _HostReducers(self._lane)


def with_tensors(frames: list[Any], lane: Lane) -> tuple[list[Frame], OutgoingTensors | None]:
    """Return the frames to send of an encoded message, and its device tensors; None: it has none.

    Raises:
        ValueError: its tensors are on several devices of one type.
        DeviceError: no more device tensors can be sent.
    """
    pickled = frames[0]
    buffers: list[Any] = frames[1:]
    found = [buffer for buffer in buffers if type(buffer) is tuple]
    if not found:
        return frames, None
    specs = [spec for spec, _ in found]
    manifest = Manifest(lane.next_number(), specs, grouped(specs))
    in_host_memory = [buffer for buffer in buffers if type(buffer) is not tuple]
    return (
        [manifest.to_bytes(), pickled, *in_host_memory],
        # Made before the message is sent: this may fail, and the program may give a tensor
        # other memory while the message waits for room.
        OutgoingTensors(manifest, send_buffers(manifest, [elements for _, elements in found])),
    )


@contextlib.contextmanager
def unpickling(tensors: Iterable[torch.Tensor]) -> Iterator[None]:
    """While a message is unpickled: say what to put in the places of its stubs, in their order."""
    outer = _unpickling.tensors  # unpickling an object may receive others
    _unpickling.tensors = iter(tensors)
    try:
        yield
    finally:
        _unpickling.tensors = outer


class _Unpickling(threading.local):
    tensors: Iterator[torch.Tensor] | None = None


_unpickling = _Unpickling()


def _next_tensor() -> torch.Tensor:
    """Return what takes a stub's place: stubs are unpickled in the order of their pickling."""
    if _unpickling.tensors is None:
        raise pickle.UnpicklingError("a device tensor's stub outside of its message")
    return next(_unpickling.tensors)


class _DeviceReducers(Reducers):
    """Reduces device tensors to stubs, and adds them to the buffers of the pickle."""

    def __init__(self, lane: Lane, buffers: list[Any]) -> None:
        super().__init__()
        self._lane = lane
        # No bound methods: in a cycle with this table, a pickler that is thrown away in mid-object
        # would keep the object's tensors.
        specs: dict[tuple[Any, ...], TensorSpec] = {}
        reduce = functools.partial(_reduce, lane, lane.carries_cpu, specs, buffers)
        self[torch.Tensor] = reduce
        self[torch.nn.Parameter] = reduce

    def __missing__(self, cls: type) -> Callable[[Any], Any]:
        reducer = super().__missing__(cls)
        if issubclass(cls, torch.Tensor):
            reducer = self[cls] = functools.partial(_reduce_subclass, self._lane, reducer)
        return reducer


class _HostReducers(Reducers):
    """Reduces tensors in host memory, and leaves messages with others to pickle."""

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self._lane = lane

    def own_reducer(self, cls: type) -> Callable[[Any], Any] | None:
        """Return how to reduce the instances of a class; None: in pickle's own way."""
        reducer = super().own_reducer(cls)
        if not issubclass(cls, torch.Tensor):
            return reducer
        if reducer is reduce_tensor and not self._lane.carries_cpu:
            return _reduce_on_cpu
        return functools.partial(_reduce_in_host_memory, self._lane, reducer or _reduce_ex)


def _reduce_in_host_memory(
    lane: Lane, reduce: Callable[[Any], Any], tensor: torch.Tensor
) -> tuple[Any, ...]:
    is_in_message = tensor.is_cpu and not lane.carries_cpu
    return cast("tuple[Any, ...]", reduce(tensor)) if is_in_message else _NO_REDUCTION


def _reduce_on_cpu(tensor: torch.Tensor) -> tuple[Any, ...]:
    return reduce_tensor(tensor) if tensor.is_cpu else _NO_REDUCTION


let_core_reduce(_reduce_on_cpu)


def _reduce_ex(obj: Any) -> Any:
    return obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)


_NO_REDUCTION = ()
"""What the core takes for no reduction, so that it leaves the message to pickle."""


def _reduce(
    lane: Lane,
    carries_cpu: bool,
    specs: dict[tuple[Any, ...], TensorSpec],
    buffers: list[Any],
    tensor: torch.Tensor,
) -> tuple[Any, ...]:
    """Reduce a `torch.Tensor` or `Parameter` (exactly) for its carrier.

    This runs for each of perhaps many small tensors: every microsecond counts. A decode loop sends
    tensors that differ in their elements only, so that their specs are made once.
    """
    if tensor.is_cpu and not carries_cpu:
        return cast("tuple[Any, ...]", REDUCERS[type(tensor)](tensor))
    if tensor.layout is not _STRIDED or tensor.is_quantized or tensor.is_nested:
        kind = "nested" if tensor.is_nested else str(tensor.layout)
        name = "quantized" if tensor.is_quantized else kind
        raise TypeError(f"a {name} tensor on {tensor.device}: only dense ones can be broadcast")
    try:
        check_memory(tensor)
    except BufferError:
        lane.carrier_of(tensor.device.type)  # raises if nothing carries it, with memory or without
        tensor = _like(tensor, with_memory(tensor))
    elements, strides = contiguous_elements(tensor)
    key = (
        tensor.device,
        tensor.dtype,
        tensor.shape,
        strides,
        tensor.requires_grad,
        tensor.__class__,
    )
    spec = specs.get(key)
    if spec is None:
        device = tensor.device
        if lane.carrier_of(device.type) is Carrier.STAGING:
            return _reduce_staged(tensor)
        if len(specs) >= _MAX_CACHED_SPECS:
            specs.clear()
        spec = specs[key] = TensorSpec(
            device.type,
            device.index,
            tensor.dtype,
            tuple(tensor.shape),
            strides,
            elements.nbytes,
            tensor.requires_grad,
            type(tensor) is torch.nn.Parameter,
        )
    buffers.append((spec, elements.detach() if elements.requires_grad else elements))
    return with_attributes(_STUB, tensor.__dict__) if tensor.__dict__ else _STUB


def _like(tensor: torch.Tensor, elements: torch.Tensor) -> torch.Tensor:
    """Return these elements as a tensor that differs from another in its elements only."""
    like = restore_autograd(elements, tensor.requires_grad, isinstance(tensor, torch.nn.Parameter))
    like.__dict__.update(tensor.__dict__)
    return like


_STRIDED = torch.strided
_STUB = (_next_tensor, ())
_MAX_CACHED_SPECS = 1024


def _reduce_staged(tensor: torch.Tensor) -> tuple[Any, ...]:
    elements = tensor.detach().resolve_conj().resolve_neg()
    rebuild, parts = reduce_tensor(to_host(elements))
    is_parameter = type(tensor) is torch.nn.Parameter
    args = (tensor.device.type, tensor.requires_grad, is_parameter, rebuild, *parts)
    reduced = (_rebuild_staged, args)
    return with_attributes(reduced, tensor.__dict__) if tensor.__dict__ else reduced


def _reduce_subclass(
    lane: Lane, reduce: Callable[[Any], Any], tensor: torch.Tensor
) -> tuple[Any, ...]:
    if lane.carrier_of(tensor.device.type) is not Carrier.HOST:
        raise TypeError(
            f"a {type(tensor).__module__}.{type(tensor).__qualname__} on {tensor.device}: "
            "subclasses of torch.Tensor can't be broadcast from a device; send the plain "
            "tensors that it is made of"
        )
    return cast("tuple[Any, ...]", reduce(tensor))


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in host memory: from CUDA, in pinned memory."""
    if tensor.device.type != "cuda":
        return tensor.to("cpu")
    # Pinned memory is read at the bus's full rate, and torch keeps it for the next time.
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor)


def _rebuild_staged(
    device_type: str,
    requires_grad: bool,
    is_parameter: bool,
    rebuild: Callable[..., torch.Tensor],
    *parts: Any,
) -> torch.Tensor:
    return restore_autograd(rebuild(*parts).to(device_type), requires_grad, is_parameter)

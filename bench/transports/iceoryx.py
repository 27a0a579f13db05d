"""iceoryx2: byte slices in shared memory, published and subscribed to through its own binding."""

from __future__ import annotations

import ctypes
import os
import pickle
from typing import Any

from bench.transports.base import Peer, Seat, Transport

FIRST_BYTES = 4096  # of a slice; larger ones make the publisher's memory grow
DEPTH = 8  # messages that a reader may be behind before the source waits for it


class Polling(Transport):
    """One publisher; readers ask their subscribers in a loop, as iceoryx2's benchmarks do."""

    kind = "polling"

    def __init__(self, seat: Seat) -> None:
        import iceoryx2

        iceoryx2.set_log_level(iceoryx2.LogLevel.Error)
        self._is_source = seat.is_source
        self._node = iceoryx2.NodeBuilder.new().create(iceoryx2.ServiceType.Ipc)
        self._name = iceoryx2.ServiceName.new(seat.share(f"bench-{self.kind}-{os.getpid()}"))
        service = (
            self._node.service_builder(self._name)
            .publish_subscribe(iceoryx2.Slice[ctypes.c_uint8])
            .enable_safe_overflow(False)
            .subscriber_max_buffer_size(DEPTH)
            .max_subscribers(seat.size - 1)
            .max_nodes(seat.size)
            .open_or_create()
        )
        if seat.is_source:
            self._port = (
                service.publisher_builder()
                .initial_max_slice_len(FIRST_BYTES)
                .allocation_strategy(iceoryx2.AllocationStrategy.PowerOfTwo)
                .backpressure_strategy(iceoryx2.BackpressureStrategy.RetryUntilDelivered)
                .create()
            )
        else:
            self._port = service.subscriber_builder().create()
        self._connect(seat)

    def _connect(self, seat: Seat) -> None:
        """Return when all ends know each other, so that no message is lost."""
        seat.meet()
        if seat.is_source:
            self._port.update_connections()
        seat.meet()
        if not seat.is_source:
            self._port.has_samples()
        seat.meet()

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            data = pickle.dumps(obj, pickle.HIGHEST_PROTOCOL)
            loan = self._port.loan_slice_uninit(len(data))
            ctypes.memmove(loan.payload_ptr, data, len(data))
            loan.assume_init().send()
            return obj
        while (sample := self._port.receive()) is None:
            pass
        return pickle.loads(sample.payload().as_memory_view())  # noqa: S301 (our own bytes)

    def close(self) -> None:
        self._port.delete()


class Blocking(Polling):
    """Readers sleep on a listener, whom a notifier wakes after each message."""

    kind = "blocking"

    def __init__(self, seat: Seat) -> None:
        super().__init__(seat)
        event = (
            self._node.service_builder(self._name)
            .event()
            .max_listeners(seat.size - 1)
            .max_nodes(seat.size)
            .open_or_create()
        )
        builder = event.notifier_builder() if seat.is_source else event.listener_builder()
        self._event = builder.create()
        seat.meet()

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            super().broadcast(obj)
            self._event.notify()
            return obj
        while not self._port.has_samples():
            self._event.blocking_wait()
        return super().broadcast(None)

    def close(self) -> None:
        self._event.delete()
        super().close()


_SETTINGS = (
    "publish/subscribe of byte slices, pickled once into a loan; no overflow, the source retries "
    f"until a message is delivered, buffers of {DEPTH}, memory grows by powers of two; "
)
PEERS = (
    Peer(
        name="iceoryx2 polling",
        make=Polling,
        crew="iceoryx2",
        settings=_SETTINGS + "readers call receive() in a Python loop",
        modules=("iceoryx2",),
    ),
    Peer(
        name="iceoryx2 blocking",
        make=Blocking,
        crew="iceoryx2",
        settings=_SETTINGS + "readers wait on a listener, which the source notifies",
        modules=("iceoryx2",),
    ),
)

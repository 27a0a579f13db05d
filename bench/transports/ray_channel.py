"""Ray's shared-memory channel, over which its compiled graphs send between actors of a node."""

from __future__ import annotations

from typing import Any

from bench.transports.base import Peer, Seat, Transport


class Channel(Transport):
    """`write` on the source, `read` elsewhere. All members are actors: `inherited["actors"]`."""

    def __init__(self, seat: Seat) -> None:
        import ray
        from ray import cloudpickle
        from ray.experimental.channel.shared_memory_channel import Channel

        self._is_source = seat.is_source
        if seat.is_source:
            source, *readers = seat.inherited["actors"]
            node = ray.get_runtime_context().get_node_id()
            self._channel = Channel(source, [(reader, node) for reader in readers])
            seat.share(cloudpickle.dumps(self._channel))
        else:
            self._channel = cloudpickle.loads(seat.share())

    def broadcast(self, obj: Any, /) -> Any:
        if self._is_source:
            self._channel.write(obj)
            return obj
        return self._channel.read()


PEERS = (
    Peer(
        name="Ray channel",
        make=Channel,
        crew="ray",
        settings=(
            "the shared-memory Channel of compiled graphs, between actors of a local cluster: room "
            "for one message, enlarged as needed; readers get views; "
            "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS=1"
        ),
        modules=("ray.experimental.channel.shared_memory_channel",),
        launcher="ray",
        environment={"RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        install="pip install ray==2.60.0",
    ),
)

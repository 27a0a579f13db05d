"""Objects with device tensors, over an end of frames: the message first, then its tensors.

Imported once torch is in use.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from shmcast._devices.codec import with_tensors
from shmcast._devices.lane import DeviceLane
from shmcast._devices.manifest import has_manifest
from shmcast._devices.receive import receive_into
from shmcast._devices.work import Work
from shmcast._endpoints import tracing
from shmcast._endpoints.arguments import check_seconds
from shmcast._endpoints.copying import Copy
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.long_waits import AS_MADE, AsMade, WarnAfter
from shmcast._endpoints.objects import FrameSink, ObjectReceiver, refused, unsendable
from shmcast._endpoints.tracing import Tracer
from shmcast._endpoints.warmup import Warmup
from shmcast._host.signals import pass_on
from shmcast.errors import DeviceError


class DeviceSender:
    """Sends objects to a sink of frames, and their device tensors over a lane.

    Args:
        sink: where the frames go.
        lane: broadcasts the tensors.
        warmup: what `warm` runs; None: nothing but what the sink does.
    """

    def __init__(self, sink: FrameSink, lane: DeviceLane, warmup: Warmup | None) -> None:
        self._sink = sink
        self._lane = lane
        self._codec = lane.codec
        self._warmup = warmup
        # Bound once: in a decode loop every look-up on the way is a cache miss.
        tracer = tracing.chosen()
        self._encode = tracing.call(tracer, tracing.ENCODE, lane.codec.encode)
        self._outbox = tracing.outbox(tracer, sink.outbox)
        self._broadcast = _traced(tracer, lane.send)
        if warmup is not None:
            warmup.send_as(self, DeviceSender.begin, "_encode", "_outbox", _lane=None)

    def begin(self, obj: Any, timeout: float | None) -> Work | None:
        """Send an object and begin to broadcast its device tensors.

        Args:
            obj: anything that pickle takes.
            timeout: seconds for the message and its tensors, which have at least one. None: no end
                for the message, the group's own for its tensors.

        Returns:
            The broadcast, to be waited for; None: the object has no device tensors.

        Raises:
            EncodeError: the object can't be encoded; nothing was sent.
            DeviceError: an earlier broadcast failed and nothing was sent, or this one can't begin.
            ShmcastError: what the sink raises.
        """
        began = 0.0 if timeout is None else monotonic()
        outgoing = None
        try:
            try:
                frames = self._encode(obj)
                if len(frames) > 1:
                    frames, outgoing = with_tensors(frames, self._lane)
            except DeviceError:
                raise
            except Exception as error:
                pass_on(error)
                raise refused(obj, error, self._codec, self._sink.label) from error
            try:
                self._outbox[timeout] = frames  # (no call, see `FrameWriter.outbox`)
            except BaseException as error:
                self._sink.not_published(error, timeout)
        except BaseException as error:
            self._sink.forget_views()
            told = unsendable(error, self._codec, self._sink.label)
            if told is None:
                raise
            raise told from error
        if outgoing is None:
            return None
        return self._broadcast(outgoing, obj, _left(timeout, began))

    def warm(self) -> None:
        """Warm up the next `begin`; see `ObjectSender.warm`."""
        self._sink.warm(None if self._warmup is None else self._warmup.send)


class DeviceReceiver(ObjectReceiver):
    """Makes objects of the frames that an end receives, and of tensors that a lane receives.

    Args:
        source: where the frames come from.
        lane: receives the tensors.
        warmup: what practises `recv`; None: nothing.
    """

    def __init__(self, source: FrameReader, lane: DeviceLane, warmup: Warmup | None) -> None:
        super().__init__(source, lane.codec, warmup)
        self._receive = _traced(tracing.chosen(), lane.receive)
        if warmup is not None:
            warmup.receive_as(self, DeviceReceiver.recv, "_messages", "_decode")

    def recv(
        self,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        warn_after: WarnAfter = AS_MADE,
    ) -> Any:
        """Receive the next object; see `ShmBroadcaster.recv`."""
        if not isinstance(warn_after, AsMade):
            with self._source.warning_of_messages_after(warn_after):
                return DeviceReceiver.recv(self, timeout, copy)
        began = 0.0 if timeout is None else monotonic()
        try:
            frames = self._messages[timeout, copy]  # (no call, see `FrameReader.messages`)
        except Exception as error:
            if isinstance(copy, bool):
                self._source.fail(error, timeout)
            frames = self._source.consume_in_part(timeout, copy)
        if len(frames) > 1 and has_manifest(frames):
            return self._receive(frames, None, _left(timeout, began)).wait()
        try:
            return self._decode(frames)
        except BaseException as error:
            self._keep(frames)  # first of all: nothing can come between, not even a signal
            self._source.not_decoded(error)

    def begin(self, timeout: float | None, copy: Copy, out: Any) -> Work:
        """Receive the next message and begin to receive its device tensors.

        Args:
            timeout: seconds for the message and its tensors, which have at least one. None: no end
                for the message, the group's own for its tensors.
            copy: see `Reader.recv`.
            out: an object whose tensors to receive into; None: into new ones.

        Returns:
            The work, whose `wait` returns the object.

        Raises:
            DecodeError: the object can't be decoded, and has no device tensors.
            DeviceError: its device tensors can't be received.
            ShmcastError: what `Reader.recv` raises.
        """
        began = 0.0 if timeout is None else monotonic()
        try:
            frames = self._messages[timeout, copy]
        except Exception as error:
            if isinstance(copy, bool):
                self._source.fail(error, timeout)
            frames = self._source.consume_in_part(timeout, copy)
        if has_manifest(frames):
            return self._receive(frames, out, _left(timeout, began))
        try:
            obj = self._decode(frames)
        except BaseException as error:
            self._keep(frames)
            self._source.not_decoded(error)
        return receive_into(self._source.label, obj, out)


_Begin = TypeVar("_Begin", bound=Callable[..., Work])


def _traced(tracer: Tracer | None, begin: _Begin) -> _Begin:
    """Return what begins a broadcast of tensors, with ranges around that and around its end."""
    if tracer is None:
        return begin
    begun = tracing.call(tracer, "shmcast.device", begin)

    def traced(*args: Any) -> Work:
        return Work(tracing.call(tracer, "shmcast.device_wait", begun(*args).wait))

    return traced  # type: ignore[return-value]


def _left(timeout: float | None, began: float) -> float | None:
    """Return the seconds that are left of a call's time-out."""
    seconds = check_seconds("timeout", timeout, "")
    return None if seconds is None else max(0.0, seconds - (monotonic() - began))

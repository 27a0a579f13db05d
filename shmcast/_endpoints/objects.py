"""One object is one message: what stands between objects and the frames of an end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, NoReturn, Protocol

from shmcast import _core
from shmcast._codecs.base import Codec, Received
from shmcast._codecs.object_codec import ObjectCodec, core_coder
from shmcast._codecs.pickle_codec import PickleCodec
from shmcast._core import MemoryChanged
from shmcast._endpoints import tracing
from shmcast._endpoints.copying import Copy
from shmcast._endpoints.frame_reader import FrameReader
from shmcast._endpoints.frame_writer import Outbox
from shmcast._endpoints.long_waits import AS_MADE, AsMade, WarnAfter
from shmcast._endpoints.warmup import Warmup
from shmcast._host.signals import is_interruption, pass_on
from shmcast.errors import EncodeError, InvalidArgument


def checked_codec(codec: Codec | None, label: str) -> Codec:
    """Return the codec to use; None is `ObjectCodec()`.

    Raises:
        InvalidArgument: it lacks one of a codec's methods, or is a class.
    """
    codec = ObjectCodec() if codec is None else codec
    if isinstance(codec, type):
        raise InvalidArgument(
            f"{label}: codec={codec!r} is a class; pass an object of it, such as "
            f"codec={codec.__qualname__}(...)"
        )
    for method in ("encode", "decode"):
        if not callable(getattr(codec, method, None)):
            raise InvalidArgument(f"{label}: codec={codec!r} has no method {method}()")
    return codec


class FrameSink(Protocol):
    """What takes the frames of a message: a `FrameWriter`, or what stands in for one."""

    label: str

    @property
    def outbox(self) -> Outbox:
        """Where frames are put to be published; its errors are for `not_published`."""

    def not_published(self, error: BaseException, timeout: float | None, /) -> NoReturn:
        """Raise what an error of `outbox` means here; others pass unchanged."""

    def not_encoded(self) -> None:
        """Note that an object has not become frames."""

    def forget_views(self) -> None:
        """Forget the views of loans that were seen in an object which will not be published."""

    def warm(self, warmup: Callable[[], None] | None, /) -> None:
        """Bring what the next `publish` touches into this core's cache, `warmup` included."""


def unsendable(error: BaseException, codec: Codec, label: str) -> EncodeError | None:
    """Say what is wrong with frames of a codec that the sink refused; None: nothing is."""
    if isinstance(error, MemoryChanged):
        return EncodeError(f"{label}: {error}; nobody receives the message")
    # (numpy has a ValueError for what others call a BufferError.)
    is_strided = type(error) is ValueError and "contiguous" in str(error)
    if is_strided or isinstance(error, TypeError | BufferError):
        return EncodeError(
            f"{label}: {type(codec).__qualname__}.encode must return a sequence of contiguous "
            f"buffers: {error}; nothing was sent"
        )
    return None


def refused(obj: Any, error: Exception, codec: Codec, label: str) -> EncodeError:
    """Return the error that says which part of an object its codec has refused, and why."""
    path = ""
    if isinstance(codec, ObjectCodec | PickleCodec):  # (msgspec's errors have the path in them)
        from shmcast._codecs.unpicklable import path_of

        has_fallback = getattr(codec, "fallback", None) is not None
        path = path_of(obj, pass_on, str(error) if has_fallback else None)
    return EncodeError.of(obj, error, label, path)


def was_caught_in(call: FrameType, error: BaseException) -> bool:
    """Return whether the core has caught an error in a call of a codec.

    To be asked where the core was called, or by a function that is called there.
    """
    here = error.__traceback__
    return here is not None and here.tb_next is not None and here.tb_next.tb_frame is call


class ObjectSink:
    """Puts objects into a sink of frames, in a call that each subclass has under its own name.

    Args:
        sink: where the frames go.
        codec: makes them.
        warmup: what `warm` runs first; None: the codec has no sample.
        send: that call, by its class: a function of this, an object and a time-out.
    """

    def __init__(
        self,
        sink: FrameSink,
        codec: Codec,
        warmup: Warmup | None,
        send: Callable[[Any, Any, Any], object],
    ) -> None:
        self._sink = sink
        self._codec = codec
        self._warmup = warmup
        # In the core: in a decode loop every step on the way is a cache miss.
        tracer = tracing.chosen()
        self._outbox = _core.ObjectOutbox(
            tracing.call(tracer, tracing.ENCODE, codec.encode),
            tracing.outbox(tracer, sink.outbox),
            core_coder(codec) if tracer is None else None,
        )
        if warmup is not None:
            warmup.send_as(self, send, "_outbox")

    def _not_sent(self, error: BaseException, obj: Any, timeout: float | None) -> NoReturn:
        """Raise what an error of `_outbox` means. To be called where that was caught."""
        try:
            if not was_caught_in(_core.ENCODING, error):
                self._sink.not_published(error, timeout)
            self._sink.not_encoded()
            if not isinstance(error, Exception) or is_interruption(error):
                raise error
            raise refused(obj, error, self._codec, self._sink.label) from error
        except BaseException as known:
            self._sink.forget_views()
            told = unsendable(known, self._codec, self._sink.label)
            if told is None:
                raise
            raise told from known
        finally:
            del error  # in a cycle, it would hold what was to be sent until it is collected

    def warm(self) -> None:
        """Warm up the next `send`, on a message that nobody receives.

        To be called shortly before it, when there is time: while the driver waits for its GPU, say.
        After some milliseconds of other work a small `send` costs several times as much as right
        after another, because the caches have forgotten it; so has the branch predictor. A few µs
        when warm. Readers notice nothing. Without the codec's `sample()` it does much less. With
        the default codec the message is the last one: from the first `warm()` on the codec refers
        to an object that was sent, if it is plain and small, until the next is.

        Raises:
            Closed: this writer is closed.
            ConcurrentUse: another thread is inside this writer.
            Forked: this process was forked from the writer's.
            Exception: what the codec raises on its own `sample()`.
        """
        self._sink.warm(None if self._warmup is None else self._warmup.send)


class ObjectSender(ObjectSink):
    """Sends objects to a sink of frames.

    Args:
        sink: where the frames go.
        codec: makes them.
        warmup: what `warm` runs first; None: the codec has no sample.
        warning_after: returns the context of calls for which `warn_after` is chosen; None: none is.
    """

    def __init__(
        self,
        sink: FrameSink,
        codec: Codec,
        warmup: Warmup | None,
        warning_after: Callable[[float | None], AbstractContextManager[None]] | None = None,
    ) -> None:
        ObjectSink.__init__(self, sink, codec, warmup, ObjectSender.send)
        self._warning_after = warning_after

    def send(
        self, obj: Any, timeout: float | None = None, *, warn_after: WarnAfter = AS_MADE
    ) -> None:
        """Send `obj` to every reader. Returns when it is in the ring, not when it was read.

        Either all readers can receive the whole message, or (when this raises) none will. A signal
        whose handler raises ends it in the same way, but may come too late, in the last microsecond
        before this returns; `was_sent` tells, as does a note of the handler's error.

        Args:
            obj: anything that the codec can encode.
            timeout: seconds to wait for room in the ring, None for ever. Copying is not counted.
            warn_after: for this call, in place of what the endpoint was made with.

        Raises:
            EncodeError: the codec can't encode `obj`; nothing was sent.
            Timeout: the ring stayed full: a reader is slow, stopped or never attached.
            Interrupted: `interrupt` was called; nothing was sent.
            Closed: this writer is closed, or every reader is.
            PeerDied: there is no room, and a reader has died; dropping them, the last one.
            ConcurrentUse: another thread is inside this writer.
            Forked: this process was forked from the writer's.
            MessageTooLarge: more than 1 TiB, or more than 8 388 607 frames.
        """
        if not isinstance(warn_after, AsMade) and self._warning_after is not None:
            with self._warning_after(warn_after):
                return ObjectSender.send(self, obj, timeout)  # (a subclass may have its own)
        try:
            self._outbox[timeout] = obj  # (no call, see `FrameWriter.outbox`)
        except BaseException as error:
            self._not_sent(error, obj, timeout)
        return None


class ObjectReceiver:
    """Makes objects of the frames that an end receives.

    Args:
        source: where the frames come from.
        codec: makes the objects.
        warmup: what practises `recv`; None: the codec has no sample.
    """

    def __init__(self, source: FrameReader, codec: Codec, warmup: Warmup | None) -> None:
        self._source = source
        # Bound once, for who needs the frames.
        tracer = tracing.chosen()
        self._messages = tracing.messages(tracer, source.messages, source.keep)
        self._decode = tracing.call(tracer, tracing.DECODE, codec.decode)
        # In the core: in a decode loop every step on the way is a cache miss.
        coder = core_coder(codec) if tracer is None else None
        self._inbox = _core.ObjectInbox(self._messages, source.keep, self._decode, coder)
        self._keep = source.keep
        if warmup is not None:
            warmup.receive_as(self, ObjectReceiver.recv, "_inbox")

    def recv(
        self,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        warn_after: WarnAfter = AS_MADE,
    ) -> Any:
        """Receive the next object.

        Nothing is lost either if a signal's handler raises, Ctrl-C for instance: the next call
        receives what this one could not return, and decodes it again if need be.

        Args:
            timeout: seconds to wait for all of it, None for ever, 0 to look only.
            copy: False: numpy arrays and CPU tensors that lie in the writer's arena are views of
                it, not copies. Their memory is used again when the last view of it is gone, in
                every reader; until then it is not there for later messages. They outlive `close`.
                Such arrays are read-only. Such tensors may be written to: a page that is written
                to becomes this process's own, and nobody else sees the change. "arrays": copies of
                arrays and views for tensors; "tensors": the other way round. (A codec of your own
                may make views of both.)
            warn_after: for this call, in place of what the endpoint was made with.

        Raises:
            Timeout: no whole message came in time; nothing is lost, call again.
            Interrupted: `interrupt` was called; nothing is lost, call again.
            Closed: this reader is closed, or the writer is and all was received.
            PeerDied: the writer has died and all that it had sent was received; or another reader
                has, and the writer does not drop it.
            DecodeError: the codec can't decode this message; the next call gets the next one.
            ConcurrentUse: another thread is inside this reader.
            Forked: this process was forked from the reader's.
        """
        if not isinstance(warn_after, AsMade):
            with self._source.warning_of_messages_after(warn_after):
                return ObjectReceiver.recv(self, timeout, copy)  # (a subclass may have its own)
        try:
            return self._inbox[timeout, copy]  # (no call, see `FrameReader.messages`)
        except BaseException as error:
            if was_caught_in(_core.DECODING, error):
                self._source.not_decoded(error)
            if isinstance(error, Exception) and isinstance(copy, bool):
                self._source.fail(error, timeout)
            if not isinstance(error, TypeError):
                raise
        return self._recv_in_part(timeout, copy)

    def _recv_in_part(self, timeout: float | None, copy: object) -> Any:
        """Do what `recv` does where `copy` is no bool, for which the core has no room."""
        frames = self._source.consume_in_part(timeout, copy)
        try:
            return self._object_of(frames)
        except BaseException as error:
            self._keep(frames)  # first of all: nothing can come between, not even a signal
            self._source.not_decoded(error)

    def _object_of(self, frames: list[Received] | _core.Decoded) -> Any:
        """Decode, unless that was done before a signal's handler has raised."""
        return frames.object if isinstance(frames, _core.Decoded) else self._decode(frames)

"""An engine's `MessageQueue` whose readers on this host read from a ring of shmcast's."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import threading
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, ClassVar

from shmcast._endpoints.reader import Reader
from shmcast._endpoints.writer import Writer
from shmcast._host.words import counted
from shmcast.compat._queues.blocks import Block, Blocks
from shmcast.compat._queues.deaths import Watch
from shmcast.compat._queues.diagnosis import Process, describe
from shmcast.compat._queues.interface import Engine
from shmcast.compat._queues.patience import wait_in_parts
from shmcast.errors import Closed, Forked, Interrupted, PeerDied, ShmcastError, Timeout

_WORTH_A_LOOK = 0.9
"""Seconds of a wait from which on it is told what the others were doing: not of a mere look.

Of a second, an engine gives `dequeue` what is left after the call.
"""

_LEFT_ALONE_S = 5.0  # a worker whose core has closed the queue, until whoever started it ends it

_watch = Watch()
_open: weakref.WeakSet[RingQueue] = weakref.WeakSet()
_lock = threading.Lock()  # of `_open`, which is looked at from the watch's thread, too
_sent_at = -math.inf  # when this process has sent last, by any queue


def _forget() -> None:
    global _open, _lock, _sent_at
    for queue in list(_open):
        queue._turn = threading.RLock()  # noqa: SLF001 (another thread of the parent may have it)
    _open, _lock = weakref.WeakSet(), threading.Lock()
    _sent_at = -math.inf


os.register_at_fork(after_in_child=_forget)  # the parent's queues are its business


def _queues() -> list[RingQueue]:
    with _lock:
        return [queue for queue in _open if not queue.shutting_down]


def _tell_all(death: PeerDied) -> None:
    """End the waits of readers here: what they wait for may depend on who has died.

    But for those of another engine: whose writer is sent other messages from here than who has died
    was.
    """
    queues = _queues()
    sent_to = [queue.reader_pids() for queue in queues]
    mates = {pid for pids in sent_to if death.pid in pids for pid in pids}
    others = {pid for pids in sent_to for pid in pids} - mates if mates else set()
    for queue in queues:
        if queue.handle.writer.pid not in others:
            queue.note_death(death)


class RingQueue(Blocks):
    """A message queue of one writer, whose readers on this host share a ring.

    It stands before an engine's own class among the bases, from which come its other methods and
    its constructors by process group. What it can't do, it leaves to that class: readers on other
    hosts read from a queue of the engine's own; and where there is no shared memory, or no reader
    on this host, the object becomes one.

    It takes the arguments of the engine's own class.
    """

    engine: ClassVar[Engine]
    handle_class: ClassVar[type[Any]]

    _writer: Writer | None = None
    _reader: Reader | None = None
    _remote: Any = None  # the engine's own queue, to the readers on other hosts
    _receive: Callable[[float | None], Any] | None = None
    _death: PeerDied | None = None  # of a process from which this one reads
    _looked_after = -math.inf  # `_sent_at` at this reader's last time-out

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = self.engine.arguments(*args, **kwargs)
        local = given["n_local_reader"]
        remote = given["n_reader"] - local
        ranks = given["local_reader_ranks"]
        ranks = [*range(local)] if ranks is None else ranks
        if len(ranks) != local:
            raise ValueError(f"local_reader_ranks={ranks} are not {local}, n_local_reader")
        writer = _writer_for(ranks, given, self.engine) if local else None
        if writer is None:
            _become(self, self.engine.queue).__init__(*args, **kwargs)
            return
        self._take_roles(writer=writer)
        self.n_local_reader, self.n_remote_reader = local, remote
        if remote:
            beyond = {"n_reader": remote, "n_local_reader": 0, "local_reader_ranks": []}
            self._remote = self.engine.queue(**given | beyond)
        self._block_bytes = given["max_chunk_bytes"]
        self.handle = self._new_handle(ranks, writer)

    def _new_handle(self, ranks: list[int], writer: Writer) -> Any:
        """Return what leads readers here: with the fields of the engine's own handle."""
        theirs = None if self._remote is None else self._remote.export_handle()
        kind: Any = self.handle_class
        handle = kind.__new__(kind)
        for field in dataclasses.fields(self.engine.handle):
            default = None if field.default is dataclasses.MISSING else field.default
            setattr(handle, field.name, getattr(theirs, field.name, default))
        handle.local_reader_ranks = ranks
        handle.ring = writer.handle
        handle.writer = Process.this()
        return handle

    def _take_roles(self, writer: Writer | None = None, reader: Reader | None = None) -> None:
        self._writer, self._reader = writer, reader
        self._is_writer, self._is_local_reader = writer is not None, reader is not None
        self._is_remote_reader = False
        self.local_reader_rank = -1
        self.shutting_down = False
        self._is_over = threading.Event()  # by `shutdown`, or by a death
        self._turn = threading.RLock()  # of threads of this process that use this end
        self._interval = self.engine.warning_interval()
        end = writer or reader
        assert end is not None  # noqa: S101
        # In order, when nobody has the queue any more. At the end of the interpreter, the end of
        # the process tells: it may not be in order.
        weakref.finalize(self, end.close).atexit = False
        with _lock:
            _open.add(self)
        self.engine.begin()

    def export_handle(self) -> Any:
        """Return what readers make their ends of. Small and picklable."""
        return self.handle

    @classmethod
    def create_from_handle(cls, handle: Any, rank: int) -> Any:
        """Return a reader's end.

        Args:
            handle: of a writer of this class, or of the engine's own.
            rank: the reader's; not one of those on the writer's host: it is on another.

        Raises:
            ShmcastError: what `Reader` raises.
        """
        ring = getattr(handle, "ring", None)
        if ring is None or rank not in handle.local_reader_ranks:
            # (Which looks for its own class under a name that may lead here by now.)
            return _become(cls.engine.queue.create_from_handle(handle, rank), cls.engine.queue)
        self = cls.__new__(cls)
        self.handle = handle
        index = handle.local_reader_ranks.index(rank)
        names = [*(f"reader rank {each}" for each in handle.local_reader_ranks), handle.writer.name]
        label = f"{Process.this().name}, reader rank {rank}"
        reader = Reader(ring, index, warn_after=None, label=label, peer_label=names.__getitem__)
        self._take_roles(reader=reader)
        _watch.add(handle.writer, _tell_all)
        self.local_reader_rank = index
        self._receive = reader.recv
        if ring.arena is not None:  # the engine has asked for views: of tensors, as its own gives
            self._receive = functools.partial(reader.recv, copy="arrays")
        return self

    def wait_until_ready(self) -> None:
        """Wait until every reader has its end; to be called by the writer and by every reader.

        Raises:
            ShmcastError: what `Writer.wait_ready` raises.
        """
        try:
            tell = self._tell_long_wait
            wait_in_parts(self._turn, self._end.wait_ready, None, self._interval, tell)
        except Forked:
            raise self._forked() from None
        except Interrupted:
            if self._death is None:
                raise
            try:
                self._end.wait_ready(0)  # the writer has died; perhaps all had come before
            except Timeout:
                raise self._death from None
        if self._remote is not None:
            self._remote.wait_until_ready()

    @property
    def _end(self) -> Writer | Reader:
        end = self._writer or self._reader
        assert end is not None  # noqa: S101
        return end

    def shutdown(self) -> None:
        """End the wait of a reader, which then raises RuntimeError; from any thread."""
        self.shutting_down = True
        self._is_over.set()
        if self._reader is not None:
            self._reader.interrupt()

    def reader_pids(self) -> list[int]:
        """Return whom this end writes to, of this host; nobody, if it is a reader's."""
        return [] if self._writer is None else self._writer._end.reader_pids()  # noqa: SLF001

    def note_death(self, death: PeerDied) -> None:
        """End the wait of a reader with what was heard of a writer, this queue's or another's.

        What has arrived is received first.
        """
        if self._reader is not None:
            self._death = PeerDied(str(death), death.peer, death.pid, death.how)
            self._is_over.set()
            self._reader.interrupt()

    def enqueue(self, obj: Any, timeout: float | None = None) -> None:
        """Send an object to all readers.

        Args:
            obj: anything that can be pickled.
            timeout: seconds to wait for readers that are far behind, None for ever.

        Raises:
            TimeoutError: there was no room in time; nothing was sent.
            RuntimeError: this is a reader's end.
            ShmcastError: what else `Writer.send` raises.
        """
        if self._writer is None:
            raise RuntimeError("Only writers can enqueue")
        global _sent_at
        _sent_at = monotonic()
        is_for_all = self._remote is not None and type(obj) is not Block
        send = functools.partial(self._send_to_all if is_for_all else self._writer.send, obj)
        try:
            wait_in_parts(self._turn, send, timeout, self._interval, self._tell_long_wait)
        except Timeout as error:
            raise self._explained(error, "enqueue", timeout) from None
        except Forked:
            raise self._forked() from None

    def _send_to_all(self, obj: Any, timeout: float | None) -> None:
        assert self._writer is not None  # noqa: S101
        self._writer.send(obj, timeout)
        self._remote.enqueue(obj)

    def dequeue(self, timeout: float | None = None, indefinite: bool = False) -> Any:
        """Receive the next object.

        Args:
            timeout: seconds, None for ever.
            indefinite: a long wait is nothing to be told of: a worker waits for work. If its core
                has closed the queue, it is left alone for 5 s, in which it should be ended.

        Raises:
            TimeoutError: there was none in time; nothing is lost.
            RuntimeError: `shutdown` was called and nothing is left; or this is a writer's end.
            Closed: the writer's end was closed and nothing is left.
            PeerDied: the writer has died, or another reader has, or anybody else from whom this
                process reads.
            ShmcastError: what else `Reader.recv` raises.
        """
        if self._receive is None:
            raise RuntimeError("Only readers can dequeue")
        part = math.inf if indefinite else self._interval
        while True:
            try:
                return wait_in_parts(
                    self._turn, self._receive, timeout, part, self._tell_long_wait, self._is_over
                )
            except Interrupted:
                continue  # by `shutdown`, or by a death
            except Forked:
                raise self._forked() from None
            except Closed:
                # The engine's own reader would wait for ever, and be ended in silence.
                if indefinite and timeout is None:
                    self._is_over.wait(_LEFT_ALONE_S)
                self._raise_if_over()
                raise
            except Timeout as error:
                self._raise_if_over()
                raise self._explained(error, "dequeue", timeout) from None

    def _forked(self) -> Forked:
        make = "MessageQueue(...), and give its handle to the readers"
        if self._reader is not None:
            rank = self.handle.local_reader_ranks[self.local_reader_rank]
            make = f"MessageQueue.create_from_handle(handle, {rank})"
        return Forked(
            "this end of the queue belongs to the process from which this one was forked; make one "
            f"here: {make}"
        )

    def _raise_if_over(self) -> None:
        if self._death is not None:
            raise self._death from None
        if self.shutting_down:
            raise RuntimeError("cancelled") from None

    def _tell_long_wait(self) -> None:
        engine = self.engine
        words = f"{engine.long_wait % self._interval}\n{self._who_is_waited_for()}"
        engine.logger.log(engine.long_wait_level, "%s", words.rstrip("\n"))

    def _explained(self, error: Timeout, action: str, timeout: float | None) -> Timeout:
        """Return the error of a time-out, with what the others are doing; and log it."""
        waited = 0.0 if timeout is None else max(timeout, self._since_call())
        if timeout is None or waited < _WORTH_A_LOOK:
            return error
        what = f"{Process.this().name}: {action} timed out after {max(timeout, 0):.3g} s"
        if waited > 1.1 * timeout:
            what += f", {waited:.3g} s after this process has sent a message"
        told = Timeout(f"{what}\n{self._who_is_waited_for()}".rstrip("\n"))
        self.engine.logger.error("%s", told)
        return told

    def _since_call(self) -> float:
        """Return seconds since this process has sent a message; 0: this reader has looked since.

        An engine's core sends a call and then reads its workers' replies one after another, each
        for as long as is left. So a reader's first time-out after a call may be the end of a longer
        wait, however short it was; one more is a look, in a loop.
        """
        if self._reader is None or self._looked_after == _sent_at:
            return 0.0
        self._looked_after = _sent_at
        return monotonic() - _sent_at

    def _who_is_waited_for(self) -> str:
        """Tell of this queue's writer, then of all others from which this process reads.

        For any of them may be why this one does not answer. And what of this process's own messages
        was not taken yet.
        """
        queues = sorted(_queues(), key=lambda queue: queue is not self)
        lags = [line for queue in queues for line in queue._lags()]  # noqa: SLF001
        writers = [queue.handle.writer for queue in queues if queue._reader is not None]  # noqa: SLF001
        return "\n".join([*lags, describe(writers)]).strip("\n")

    def _lags(self) -> list[str]:
        if self._writer is None or self._writer.closed:
            return []
        lags = zip(self.handle.local_reader_ranks, self._writer.statistics().lag, strict=True)
        return [
            f"  reader rank {rank} is {counted(lag, 'fragment')} behind"
            for rank, lag in lags
            if lag
        ]


def _writer_for(ranks: list[int], given: dict[str, Any], engine: Engine) -> Writer | None:
    """Return the writer of a new ring; None: there can't be one, and the log says why."""
    is_for_tensors = given.get("enable_shm_tensor_arena") and given["n_reader"] == len(ranks)
    try:
        return Writer(
            len(ranks),
            arena_bytes=engine.arena_bytes if is_for_tensors else 0,
            warn_after=None,
            label=f"{Process.this().name}, writer",
            reader_label=[f"reader rank {rank}" for rank in ranks].__getitem__,
        )
    except ShmcastError as error:
        engine.logger.warning("%s's own queue is used, not shmcast's: %s", engine.name, error)
        return None


def _become(queue: Any, kind: type[Any]) -> Any:
    """Make an object one of another class."""
    queue.__class__ = kind
    return queue


class _Kind(type):
    """Of a class that makes the engine's own objects, too: those are instances of it."""

    def __instancecheck__(cls, instance: object) -> bool:
        engine = vars(cls).get("engine")  # (which somebody's class over this one lacks)
        return isinstance(instance, engine.queue) if engine else super().__instancecheck__(instance)


def queue_class(engine: Engine, module: str) -> tuple[type[Any], type[Any]]:
    """Return a `MessageQueue` for an engine, and its `Handle`.

    Args:
        engine: whose they are.
        module: the name of the module where they are found by pickle.
    """
    ring = ("ring", Any, dataclasses.field(default=None))
    writer = ("writer", Any, dataclasses.field(default=None))
    handle = dataclasses.make_dataclass("Handle", [ring, writer], bases=(engine.handle,))
    names = {"engine": engine, "handle_class": handle, "__doc__": RingQueue.__doc__}
    queue = _Kind("MessageQueue", (RingQueue, engine.queue), names)
    for made in (queue, handle):
        made.__module__ = module
    return queue, handle

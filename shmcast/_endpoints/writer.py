"""`Writer`: sends objects to the readers of one host."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from shmcast._codecs.base import Codec
from shmcast._endpoints import settings
from shmcast._endpoints.base import Endpoint
from shmcast._endpoints.frame_end import DEFAULT_WARN_AFTER
from shmcast._endpoints.frame_writer import (
    DEFAULT_SLOT_BYTES,
    DEFAULT_SLOTS,
    DEFAULT_SPILL_BYTES,
    FrameWriter,
)
from shmcast._endpoints.loans import Shape
from shmcast._endpoints.objects import ObjectSender, checked_codec
from shmcast._endpoints.waiting import WaitPolicy
from shmcast._endpoints.warmup import Warmup
from shmcast.errors import PeerDied

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from shmcast._endpoints.statistics import Statistics


class Writer(ObjectSender, Endpoint):
    """Sends objects to a fixed number of readers on this host, to each all of them and in order.

    Making one creates the shared-memory segment. Its name is gone from /dev/shm as soon as all
    readers have attached, or when the writer is closed, collected or its interpreter exits.

    Args:
        readers: how many readers will attach (1 to 4096).
        slots: slots of the ring, a power of two: as many small messages can be on their way.
        slot_bytes: payload bytes of one slot, a multiple of 128. Larger messages are streamed
            through several slots.
        arena_bytes: most bytes of shared memory for the arena, at least 256 KiB; 0: there is none.
            It takes the buffers of 256 KiB and more beside a message's first frame (the pickle), as
            long as there is room, and readers can use them where they lie:
            `Reader.recv(copy=False)`. Memory is taken when it is first needed, and kept.
        spill_bytes: most bytes of shared memory for what does not fit the ring while readers are
            busy; 0: `send` waits for them. There, behind the ring, goes the rest of a message of
            more than 256 KiB when a quarter of the ring is taken and a reader does not move.
            Memory is taken when it is needed, no more than half of what there is, and given back
            once 10 s have passed without need of it. Where the system refuses the room for it, or
            a reader the address space, there is none.
        pin: register the arena with CUDA, so that copies from loans to a GPU are asynchronous
            (`non_blocking=True`). All of its memory is then taken at once.
        wait: what to do while the ring is full; `WaitPolicy.adaptive()` by default.
        codec: turns objects into frames; `ObjectCodec()` by default. Readers need its like.
        on_reader_death: "raise": a reader that dies ends the waits of all others, in `PeerDied`.
            "drop": the others go on without it, and another process may take its place with
            `Reader(handle, index, rejoin=True)`.
        on_death: with "drop": called with the `PeerDied` of each reader that is dropped, in the
            call that drops it (`send`, `wait_ready` or another that waits) and before anything of
            its message is sent, or while it waits for room. It must not use this writer. What it
            raises ends the call, and nothing was sent.
        warn_after: seconds; when a wait lasts longer, the log tells who is slow. None: never.
        linger: seconds for which `close` waits for readers that are still to attach, if something
            was sent: closed before that, it is lost to them, and so it is by default. Then it warns
            of what was lost.
        switch_interval: seconds (1e-6 to 1), or less where that is set already, after which a
            thread of this process that wants the GIL asks for it (`sys.setswitchinterval`). It
            counts for all threads, and stays when this endpoint is closed. None: nothing is set.
        label: how errors and `shmcast list` name this endpoint.
        reader_label: how errors name the reader of an index; "reader `index`" by default.

    Attributes:
        handle: where readers find the writer's segment.

    Raises:
        InvalidArgument: an argument out of range or of the wrong kind.
        SharedMemoryFull: no room for the segment, about `slots * slot_bytes`: in /dev/shm, or under
            a limit.
        HostError: the operating system refuses; the message says why, and the way out.
    """

    _end: FrameWriter

    def __init__(
        self,
        readers: int,
        *,
        slots: int = DEFAULT_SLOTS,
        slot_bytes: int = DEFAULT_SLOT_BYTES,
        arena_bytes: int = 0,
        spill_bytes: int = DEFAULT_SPILL_BYTES,
        pin: bool = False,
        wait: WaitPolicy | None = None,
        codec: Codec | None = None,
        on_reader_death: Literal["raise", "drop"] = "raise",
        on_death: Callable[[PeerDied], object] | None = None,
        warn_after: float | None = DEFAULT_WARN_AFTER,
        linger: float = 0.0,
        switch_interval: float | None = None,
        label: str = "writer",
        reader_label: Callable[[int], str] = "reader {}".format,
    ) -> None:
        codec = checked_codec(settings.codec(codec), label)
        warmup = Warmup.with_sample_of(codec, label)
        frames = FrameWriter(
            readers,
            slots=settings.count(settings.SLOTS, slots),
            slot_bytes=settings.count(settings.SLOT_BYTES, slot_bytes),
            arena_bytes=settings.count(settings.ARENA_BYTES, arena_bytes),
            spill_bytes=settings.count(settings.SPILL_BYTES, spill_bytes),
            pin=pin,
            wait=wait,
            on_reader_death=on_reader_death,
            on_death=on_death,
            linger=linger,
            warn_after=settings.seconds(settings.WARN_AFTER, warn_after),
            switch_interval=settings.switch_interval(switch_interval),
            label=label,
            reader_label=reader_label,
        )
        Endpoint.__init__(self, frames)
        ObjectSender.__init__(self, frames, codec, warmup, frames.warning_of_messages_after)

    @property
    def was_sent(self) -> bool:
        """Whether the last `send` sent its object: for one that a signal's handler has ended.

        Any other error of `send` says that nothing was sent. A signal that comes before `send` has
        begun leaves what is said of the one before; `statistics().messages` counts.
        """
        return self._end.was_sent

    def empty(self, shape: Shape, dtype: npt.DTypeLike = float) -> npt.NDArray[Any]:
        """Lend an uninitialised array in the arena, to be filled and sent without any copy.

        It travels so in whatever object it is sent, as do views of it that take 4 KiB or more.
        From `send` on it is frozen, that is read-only, until every reader is done with it: its
        memory is theirs, too. `thaw` asks for that; each `send` looks, too. A view that was made
        before and was not itself in the message stays writable: don't. A frozen loan can be sent
        again. It may be dropped at any time, sent or not. Another writer copies it, as it would
        any array, and does not freeze it.

        Args:
            shape: of the array; an integer or a sequence of such.
            dtype: any without Python objects.

        Returns:
            An array that owns a part of the arena, aligned to 4 KiB; or one in ordinary memory,
            if the arena has no room (counted in `statistics().arena_full`) or there are no bytes.

        Raises:
            InvalidArgument: this writer has no arena, or there is no such shape or dtype.
            Closed: this writer is closed.
            ConcurrentUse: another thread is inside this writer.
            Forked: this process was forked from the writer's.
        """
        return self._end.empty(shape, dtype)

    def empty_tensor(self, shape: Shape, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Lend a tensor on the CPU; otherwise like `empty`.

        torch has no read-only tensors: that a frozen one is not written to is the program's
        business. If it is, that is noticed later (where autograd counts what is written, so not in
        inference mode), in a `ShmcastWarning`.

        Args:
            shape: of the tensor; an integer or a sequence of such.
            dtype: any; torch's default dtype if None.

        Raises:
            MissingDependency: there is no torch.
            ShmcastError: what `empty` raises.
        """
        return self._end.empty_tensor(shape, dtype)

    def thaw(self, array: npt.NDArray[Any] | torch.Tensor) -> bool:
        """Return whether every reader is done with a loan: it is then as if it had not been sent.

        Never waits. Readers that have died are done. True, too, of an array in ordinary memory, as
        `empty` gives when the arena has no room: what was sent of it are copies.

        Args:
            array: an array of `empty` or `empty_tensor`, or a view of one.

        Raises:
            InvalidArgument: it is no array or tensor.
            ShmcastError: what `empty` raises.
        """
        return self._end.thaw(array)

    @property
    def dropped(self) -> dict[int, PeerDied]:
        """How the readers have died that are dropped and not replaced, by index. From any thread.

        A death is known from the first call on that waits or sends after it.
        """
        return self._end.dropped()

    def statistics(self) -> Statistics:
        """Return what this writer and each of its readers have done so far. From any thread."""
        return self._end.statistics()

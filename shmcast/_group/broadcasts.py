"""The broadcasts of a `ShmBroadcaster`: the source sends, all others receive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

from shmcast._devices.work import Work, finished
from shmcast._endpoints.copying import Copy
from shmcast._group.communicator import Communicator
from shmcast.errors import InvalidArgument, WrongRole


class Broadcasts(Communicator):
    """The part of a `ShmBroadcaster` that is for broadcasts, once it is set up."""

    # Bound once: in a decode loop every look-up on the way is a cache miss.
    _send: Callable[[Any, float | None], Work | None]  # on the source
    _recv: Callable[[float | None, Copy], Any]  # elsewhere
    _begin_recv: Callable[[float | None, Copy, Any], Work]
    _warm: Callable[[], None]  # on the source

    def broadcast_object(
        self,
        obj: Any = None,
        timeout: float | None = None,
        copy: Copy = True,
        *,
        src: int | None = None,
    ) -> Any:
        """Send `obj` on the source and receive it on every other rank; return it on all.

        On the source it returns when the object is in shared memory, and returns `obj` itself.

        Device tensors are ready in stream order when it returns, as after a collective of
        `torch.distributed`: with NCCL the host does not wait for them, unless a `timeout` is given;
        then it waits until every rank has enqueued its part.

        Args:
            obj: on the source, anything that the codec can encode; ignored elsewhere.
            timeout: seconds, None for ever: for room in the ring on the source, for the object
                elsewhere. What is left of it is for device tensors, at least one second; None:
                what the process group grants.
            copy: see `Reader.recv`; ignored on the source.
            src: the source's global rank, for programs that say it in each call; None: do not.

        Raises:
            WrongRole: `src` is not the source of this broadcaster, for which its rings were made.
            DeviceTimeout: a rank has not taken part in the broadcast of the device tensors.
            DeviceError: they could not be broadcast, or an earlier broadcast of some had failed.
            NodeLost: another node can't be reached any more; on its side, the source's node.
            ShmcastError: what `Writer.send` raises on the source, and `Reader.recv` elsewhere.
        """
        if src is not None:
            self._check_source(src)
        if self.is_src:
            work = self._send(obj, timeout)
            if work is not None:
                work.wait()
            return obj
        return self._recv(timeout, copy)

    @overload
    def broadcast_tensor_dict(
        self,
        d: dict[Any, Any] | None = None,
        timeout: float | None = None,
        out: Any = None,
        async_op: Literal[False] = False,
        copy: Copy = True,
        *,
        src: int | None = None,
    ) -> dict[Any, Any]: ...

    @overload
    def broadcast_tensor_dict(
        self,
        d: dict[Any, Any] | None = None,
        timeout: float | None = None,
        out: Any = None,
        *,
        async_op: Literal[True],
        copy: Copy = True,
        src: int | None = None,
    ) -> Work: ...

    @overload
    def broadcast_tensor_dict(
        self,
        d: dict[Any, Any] | None = None,
        timeout: float | None = None,
        out: Any = None,
        async_op: bool = False,
        copy: Copy = True,
        *,
        src: int | None = None,
    ) -> Any: ...

    def broadcast_tensor_dict(
        self,
        d: dict[Any, Any] | None = None,
        timeout: float | None = None,
        out: Any = None,
        async_op: bool = False,
        copy: Copy = True,
        *,
        src: int | None = None,
    ) -> Any:
        """Broadcast a dict: `broadcast_object` that can receive into tensors and need not wait.

        Args:
            d: on the source, a dict of anything; ignored elsewhere.
            out: on the other ranks, an object with tensors in the same places, of the same shapes
                and dtypes, in dicts, lists, tuples, NamedTuples and dataclasses at any depth.
                They are received into, device or not, and keep their addresses, as CUDA graphs
                need it. Anything else need not match. Device tensors of 256 KiB and more whose
                strides match arrive in place, others are copied there.
            timeout: as for `broadcast_object`.
            async_op: return as soon as the work on device tensors is enqueued.
            copy: see `Reader.recv`; ignored on the source.
            src: as for `broadcast_object`.

        Returns:
            The dict, on every rank; it has the tensors of `out` where that was given. With
            `async_op` a `Work`, whose `wait()` returns it.

        Raises:
            InvalidArgument: `d` is no dict (on the source, before anything is sent); or the message
                does not match `out`: the error names the path, such as `d["a"][0]`. This rank has
                then taken part for the others' sake, and `out` is unchanged.
            ShmcastError: what `broadcast_object` raises.
        """
        if src is not None:
            self._check_source(src)
        if self.is_src:
            if d.__class__ is not dict and not isinstance(d, dict):  # (without a call, mostly)
                raise InvalidArgument(
                    f"{self._label}: broadcast_tensor_dict() is for a dict, not for a "
                    f"{type(d).__qualname__}; use broadcast_object()"
                )
            work = self._send(d, timeout)
            if work is not None:
                return work if async_op else work.wait()
            return finished(d) if async_op else d
        if out is None and not async_op:
            return self._recv(timeout, copy)
        work = self._begin_recv(timeout, copy, out)
        return work if async_op else work.wait()

    def send(self, obj: Any, timeout: float | None = None) -> None:
        """Send `obj`: `broadcast_object` for code that runs on the source only.

        Raises:
            WrongRole: this is another rank.
            ShmcastError: what `broadcast_object` raises.
        """
        if not self.is_src:
            raise WrongRole(
                f"{self._label}: send() is for the source, rank {self.src}; call recv() here"
            )
        work = self._send(obj, timeout)
        if work is not None:
            work.wait()

    def recv(self, timeout: float | None = None, copy: Copy = True) -> Any:
        """Receive an object: `broadcast_object` for code that runs on the other ranks only.

        Raises:
            WrongRole: this is the source.
            ShmcastError: what `broadcast_object` raises.
        """
        if self.is_src:
            raise WrongRole(
                f"{self._label}: recv() is for the other ranks, this is the source; call send()"
            )
        return self._recv(timeout, copy)

    def warm(self) -> None:
        """Make the next `send` faster; see `Writer.warm`. Does nothing on the other ranks.

        Raises:
            ShmcastError: what `Writer.warm` raises.
        """
        if self.is_src:
            self._warm()

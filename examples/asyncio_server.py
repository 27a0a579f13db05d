"""An asyncio server in front of an executor: clients send calls, and get the workers' results.

    python examples/asyncio_server.py

A request is a line of JSON, a method and its arguments; so is its answer. Calls of many clients are
in flight at the same time: a worker answers them in the order in which they were sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import shmcast
from rpc_executor import Call, Executor, Failure, show

MOST_CALLS = 16
"""In flight: as many replies of a worker find room in its ring, and as many calls in the hub's."""

CLIENTS = 8
REQUESTS = 50
"""Of each."""


class AsyncExecutor(Executor):
    """Calls methods on all workers, for tasks that await the results."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._room = asyncio.Semaphore(MOST_CALLS)
        self._calls: deque[asyncio.Future[list[Any]]] = deque()

    async def call(self, method: str, *args: Any) -> list[Any]:
        """Call a method on every worker; return the results.

        Raises:
            shmcast.PeerDied: a worker has died.
        """
        async with self._room:
            results: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
            self.hub.send(Call(method, args))
            self._calls.append(results)
            return await results

    async def receive(self) -> None:
        """Hand results to whoever waits for them, until the hub closes."""
        try:
            while True:
                results = await self.hub.recv_all_async()
                call = self._calls.popleft()
                if not call.done():  # (its client may have gone)
                    call.set_result(results)
        except shmcast.Closed:
            pass
        except shmcast.PeerDied as error:
            for call in self._calls:
                if not call.done():
                    call.set_exception(error)


@contextlib.asynccontextmanager
async def running_executor(workers: int) -> AsyncIterator[AsyncExecutor]:
    """Start workers, and end them."""
    executor = AsyncExecutor(workers)
    receiving = asyncio.create_task(executor.receive())
    try:
        yield executor
    finally:
        executor.shutdown()
        await receiving


async def serve(
    executor: AsyncExecutor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer one client's requests."""
    with contextlib.closing(writer):
        while line := await reader.readline():
            method, *args = json.loads(line)
            answers = [
                result.text if isinstance(result, Failure) else result
                for result in await executor.call(method, *args)
            ]
            writer.write(json.dumps(answers).encode() + b"\n")
            await writer.drain()


async def be_client(port: int, number: int) -> list[Any]:
    """Send requests; return the last answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        answer: list[Any] = []
        for k in range(REQUESTS):
            writer.write(json.dumps(["execute_model", [number, k]]).encode() + b"\n")
            answer = json.loads(await reader.readline())
            assert [each["sum"] for each in answer] == [number + k] * len(answer)  # noqa: S101
        return answer


async def main() -> None:
    """Serve some clients, and tell how long it takes."""
    async with running_executor(workers=2) as executor:
        server = await asyncio.start_server(
            lambda reader, writer: serve(executor, reader, writer), "127.0.0.1", 0
        )
        async with server:
            port = server.sockets[0].getsockname()[1]
            begin = time.perf_counter()
            await asyncio.gather(*(be_client(port, number) for number in range(CLIENTS)))
            seconds = time.perf_counter() - begin
            show(f"{CLIENTS * REQUESTS} requests of {CLIENTS} clients were answered")
            show(f"{seconds / (CLIENTS * REQUESTS) * 1e6:.0f} µs for each")
            show(f"an error travels back: {(await executor.call('execute_model', None))[0].text}")


if __name__ == "__main__":
    asyncio.run(main())

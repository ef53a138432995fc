"""A TCP proxy before a gRPC server that reads HTTP/2 frames (RFC 9113) just far enough to cut where it hurts most."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = 9
_DATA, _HEADERS = 0, 1


class Cut(StrEnum):
    """What happens to the next call."""

    REQUEST_LOST = "request lost"
    """The server never hears of it."""
    IN_FLIGHT = "cut in flight"
    """The server has the whole request when the connection goes."""
    REPLY_LOST = "reply lost"
    """The server has answered, and nobody hears it."""


class Proxy:
    """host:port in `address`; passes everything on unless told otherwise."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.num_cuts = 0
        self._target = target
        self._next: Cut | None = None
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.Task[None]] = set()

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        thread.start()
        server = self._do(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.cut_all()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def cut_next(self, how: Cut) -> None:
        """The next call on a new connection is cut so; once."""
        self._next = how

    def cut_all(self) -> None:
        """Every connection that is open now ends in the middle of whatever it carries."""
        self._do(self._cut_all())

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _cut_all(self) -> None:
        tasks = list(self._open)
        self.num_cuts += len(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        how, self._next = self._next, None
        writers = [back]
        try:
            host, port = self._target.rsplit(":", 1)
            server, forth = await asyncio.open_connection(host, int(port))
            writers.append(forth)
            ways = [_requests(client, forth, how), _replies(server, back, how)]
            running = [asyncio.ensure_future(way) for way in ways]
            try:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in running:
                    each.cancel()
                await asyncio.gather(*running, return_exceptions=True)
        except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            pass  # nobody listens there now, or `cut_all`: the caller sees a connection that ends
        finally:
            self._open.discard(task)
            for writer in writers:
                writer.transport.abort()


async def _requests(source: asyncio.StreamReader, sink: asyncio.StreamWriter, how: Cut | None) -> None:
    sink.write(await source.readexactly(len(_PREFACE)))
    async for kind, is_last, frame in _frames(source):
        if kind == _HEADERS and how is Cut.REQUEST_LOST:
            return
        sink.write(frame)
        await sink.drain()
        if kind == _DATA and is_last and how is Cut.IN_FLIGHT:
            return


async def _replies(source: asyncio.StreamReader, sink: asyncio.StreamWriter, how: Cut | None) -> None:
    async for kind, _, frame in _frames(source):
        if kind == _HEADERS and how is Cut.REPLY_LOST:
            return
        sink.write(frame)
        await sink.drain()


async def _frames(source: asyncio.StreamReader) -> Any:
    """(kind, whether it ends its stream, the frame whole), until the connection ends."""
    while True:
        try:
            head = await source.readexactly(_HEAD)
            body = await source.readexactly(int.from_bytes(head[:3], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        yield head[3], bool(head[4] & 0x1), head + body

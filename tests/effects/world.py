"""The world that machines reach: a real HTTP server that answers in every way, well and badly."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name.lower()), None)


@dataclass
class World:
    port: int = 0
    scheme: str = "http"
    seen: list[Seen] = field(default_factory=list)
    charges: Counter[str] = field(default_factory=Counter)
    """How often each idempotency key came to `/charge`."""
    let_go: asyncio.Event = field(default_factory=asyncio.Event)
    """`/wait` answers when this is set."""
    connections: int = 0
    under_way: int = 0
    most_under_way: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def paths(self) -> list[str]:
        return [each.path for each in self.seen]

    async def answer(self, seen: Seen, writer: asyncio.StreamWriter) -> None:
        """By the path. `/status/N[/times]` answers N so often, then 200."""
        name, _, rest = seen.path.strip("/").partition("/")
        behave = getattr(self, f"_{name.partition('?')[0]}", None)
        if behave is None:
            await _say(writer, 404, b"nothing here")
        else:
            await behave(seen, writer, rest)

    async def _echo(self, seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        told = {
            "method": seen.method,
            "path": seen.path,
            "headers": dict(seen.headers),
            "body": seen.body.decode("latin-1"),
        }
        await _say(writer, 200, json.dumps(told).encode(), [("Content-Type", "application/json")])

    async def _charge(self, seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        key = seen.header("idempotency-key") or ""
        self.charges[key] += 1
        await _say(writer, 201, json.dumps({"id": f"ch_{key}"}).encode())

    async def _status(self, seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        status, _, times = rest.partition("/")
        before = sum(each.path == seen.path for each in self.seen)
        if times and before > int(times):
            await _say(writer, 200, b"well")
        else:
            await _say(writer, int(status), b"as asked", [("Retry-After", "0")])

    async def _redirect(self, seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        status, _, where = rest.partition("/")
        await _say(writer, int(status), b"", [("Location", where.replace("~", "/"))])

    async def _loop(self, _seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        await _say(writer, 302, b"", [("Location", "/loop")])

    async def _wait(self, _seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.let_go.wait()
        finally:
            self.under_way -= 1
        await _say(writer, 200, b"waited")

    async def _slowhead(self, _seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(10_000):
            writer.write(b"X-%d: slow\r\n" % number)
            await writer.drain()
            await asyncio.sleep(0.05)

    async def _bighead(self, _seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        await _say(writer, 200, b"", [("X-Big", "x" * int(rest))])

    async def _endless(self, _seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()

    async def _bytes(self, _seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        await _say(writer, 200, b"\xff" * int(rest))

    async def _bomb(self, _seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        body = gzip.compress(bytes(int(rest)))
        await _say(writer, 200, body, [("Content-Encoding", "gzip")])

    async def _packed(self, _seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        whole = gzip.compress(b"one")
        raw = zlib.compress(b"one")[2:-4]
        how, body = {
            "two": ("gzip", whole + gzip.compress(b"two")),
            "more": ("gzip", whole + b"and more"),
            "half": ("gzip", whole[:-9]),
            "deflate": ("deflate", zlib.compress(b"one")),
            "raw": ("deflate", raw),
            "not": ("", b"one"),
        }[rest]
        await _say(writer, 200, body, [("Content-Encoding", how)])

    async def _tail(self, _seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        """A packed answer that has an end, or members with nothing in them, and then no end."""
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n")
        writer.write(b"Content-Encoding: gzip\r\n\r\n")
        part = gzip.compress(b"") * 1000 if rest == "empty" else b"x" * 65536
        for each in itertools.chain([gzip.compress(b"one")], itertools.repeat(part)):
            writer.write(b"%x\r\n%b\r\n" % (len(each), each))
            await writer.drain()

    async def _brotli(self, _seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        await _say(writer, 200, b"xxx", [("Content-Encoding", "br")])

    async def _notgzip(self, _seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        await _say(writer, 200, b"no gzip", [("Content-Encoding", "gzip")])

    async def _reset(self, _seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        if rest == "body":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            await writer.drain()
        writer.transport.abort()

    async def _nonsense(self, _seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        await writer.drain()
        writer.close()

    async def _length(self, _seen: Seen, writer: asyncio.StreamWriter, _rest: str) -> None:
        """More than it announced."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nmore")
        await writer.drain()
        writer.close()

    async def _twice(self, _seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        """Two answers, of which nobody asked for one: the first has `rest` bytes, all told. Over
        TLS each is a record of its own, and both are in one segment.
        """
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
        first = head % int(rest)
        size = int(rest) - len(first)
        first = head % size + b"x" * size
        second = head % 3 + b"two"
        tls = writer.get_extra_info("ssl_object")
        if tls is None:
            writer.write(first + second)
        else:
            tls.write(first)
            tls.write(second)
            inside: Any = writer.transport
            inside._ssl_protocol._transport.write(inside._ssl_protocol._outgoing.read())
        await writer.drain()

    async def _later(self, _seen: Seen, writer: asyncio.StreamWriter, rest: str) -> None:
        await _say(writer, 429, b"too fast", [("Retry-After", rest)])


async def _say(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    headers: list[tuple[str, str]] | None = None,
) -> None:
    head = [("Content-Length", str(len(body))), *(headers or [])]
    lines = "".join(f"{name}: {value}\r\n" for name, value in head)
    writer.write(f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + body)
    await writer.drain()


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    line = await reader.readline()
    if not line:
        return None
    method, path, _ = line.decode("latin-1").split(" ", 2)
    headers = []
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers.append((name.strip().lower(), value.strip()))
    length = int(dict(headers).get("content-length", "0"))
    body = await reader.readexactly(length) if length else b""
    return Seen(method, path, headers, body)


@contextlib.asynccontextmanager
async def world(tls: ssl.SSLContext | None = None, **options: Any) -> AsyncIterator[World]:
    """A server on loopback."""
    there = World(scheme="https" if tls else "http", **options)
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        there.connections += 1
        try:
            while (seen := await _read(reader)) is not None:
                there.seen.append(seen)
                await there.answer(seen, writer)
        except (OSError, asyncio.IncompleteReadError, ValueError, asyncio.CancelledError):
            pass  # what it was told last is what whoever asked has of it
        finally:
            talks.discard(task)
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=tls)
    there.port = server.sockets[0].getsockname()[1]
    try:
        yield there
    finally:
        server.close()
        for task in list(talks):
            task.cancel()

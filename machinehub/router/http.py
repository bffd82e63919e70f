"""Per-machine URLs over HTTP: pages, definitions, snapshots, events, waiting."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from machinehub.api.problem import on_unexpected, problem
from machinehub.api.requests import decode, read_body, seq_of, while_connected
from machinehub.clock import timestamp
from machinehub.errors import (
    BadRequest,
    Conflict,
    HubError,
    MachineError,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    WaitTimeout,
    error_of,
)
from machinehub.router.paths import Address, read_address
from machinehub.router.sessions import check_own_bounds, client_key, open_session, wants_cost
from machinehub.router.sse import SseConnection
from machinehub.session import frames
from machinehub.session.conditions import read_condition
from machinehub.session.event import EVENT_ID_CHARS_MAX, check_event, check_input, check_metadata
from machinehub.session.members import Members
from machinehub.session.publish import snapshot_frame
from machinehub.web.page import page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from machinehub.catalog import Catalog
    from machinehub.clock import Clock
    from machinehub.limits import Limits
    from machinehub.metrics import Metrics
    from machinehub.router.door import Door
    from machinehub.session.core import Receipt
    from machinehub.session.host import SessionHost
    from machinehub.session.intake import Answered
    from machinehub.session.live import LiveSession
    from machinehub.session.members import Identity
    from machinehub.store.sessions import SessionStore

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "OPTIONS")
_ETAG: Final = re.compile(r'(?:W/)?"(\d{1,18})"')
# Machines are for front ends on any site: their URLs are as open as their ids are secret. The
# deploy API is not.
_CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "ETag",
    "Vary": "Accept",
}
_PREFLIGHT: Final = _CORS | {
    "Access-Control-Allow-Methods": "GET, POST, PUT",
    "Access-Control-Max-Age": "86400",
    "Access-Control-Allow-Headers": "Content-Type, If-Match, If-None-Match, Idempotency-Key, Last-Event-ID, Authorization",
}


class WaitBody(msgspec.Struct):
    """The body of `POST /{machine}/{session}/wait`."""

    condition: Any
    timeout_ms: int = 30_000
    event: msgspec.Raw = msgspec.Raw(b"")


class CreateBody(msgspec.Struct):
    """The body of `PUT /{machine}/{session}`."""

    input: msgspec.Raw = msgspec.Raw(b"")


class DescribeBody(msgspec.Struct):
    """The body of `PUT /{machine}/{session}/presence`."""

    metadata: msgspec.Raw


class MachineRouter:
    def __init__(
        self,
        catalog: Catalog,
        sessions: SessionStore,
        host: SessionHost,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        door: Door,
        *,
        base_url: str,
    ) -> None:
        self._catalog = catalog
        self._sessions = sessions
        self._host = host
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._door = door
        self._base_url = base_url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI callable. Errors become problems here, as they do for the deploy API."""
        request = Request(scope, receive)
        try:
            if request.method == "OPTIONS":
                response = Response(status_code=204, headers=_PREFLIGHT)
            elif request.method in METHODS:
                response = await self._answer(request)
            else:
                raise MethodNotAllowed(
                    "method_not_allowed", f"a machine's URL takes {', '.join(METHODS)}"
                )
        except HubError as error:
            if not isinstance(error, MachineError):  # that was counted when it was undone
                self._metrics.refused.labels(code=error.code).inc()
            response = _shown(request, error)
        except Exception as error:
            response = await on_unexpected(request, error)
        response.headers.update(_CORS)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        address = read_address(
            request.scope["raw_path"], session_chars_max=self._limits.session_id_chars
        )
        read = request.method in ("GET", "HEAD")
        if address.session is None:
            if not read:
                raise BadRequest("no_session", "events go to /{machine}/{session}")
            return await self._machine(request, address)
        match request.method, address.action:
            case (("GET" | "HEAD"), None):
                return await self._session(request, address)
            case "POST", None:
                return await self._event(request, address)
            case "PUT", None:
                return await self._create(request, address)
            case "POST", "wait":
                return await self._wait(request, address)
            case (("GET" | "HEAD"), "presence"):
                return await self._presence(address)
            case "PUT", "presence":
                return await self._describe(request, address)
        raise NotFound("not_found", "there is nothing at this URL")

    # --- reading ----------------------------------------------------------------------------------

    async def _machine(self, request: Request, address: Address) -> Response:
        target = await self._catalog.target(address.machine, address.version)
        if wants(request, "text/html"):
            return page(request)
        version = target.version
        return _json(
            {
                "id": target.machine.id,
                "name": target.machine.name,
                "version": target.number,
                "definition": version.definition,
                "events": version.definition.get("events", []),
                "url": f"{self._base_url}/{target.machine.id}",
            }
        )

    async def _session(self, request: Request, address: Address) -> Response:
        if wants(request, "text/event-stream") and request.method == "GET":
            session = await self._open(address)
            connection = SseConnection(
                self._limits, self._who(request, address), joined_at=timestamp(self._clock.now_ms())
            )
            self._host.people.attach(session, connection)
            last_id = request.headers.get("last-event-id", "")
            if re.fullmatch("[0-9]{1,18}", last_id):
                for frame in session.emitted.since(int(last_id)):
                    connection.send(frame)
            return StreamingResponse(
                self._count(connection.stream(self._host, session)),
                media_type="text/event-stream",
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            )
        if wants(request, "text/html"):
            await self._catalog.target(address.machine, address.version)
            return page(request)
        at = seq_of(request, "at")
        if at is not None:
            return await self._session_at(request, address, at)
        session = await self._open(address)
        etag = f'"{session.seq}"'
        if _matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers={"ETag": etag})
        return _json(snapshot_frame(session).json, etag=etag)

    async def _session_at(self, request: Request, address: Address, seq: int) -> Response:
        """The session as it was; one that does not exist is not created."""
        assert address.session is not None
        record = await self._sessions.record(address.machine, address.session)
        snapshot = await while_connected(request, self._host.past.snapshot_at(record, seq))
        return _json(
            frames.snapshot_frame(
                seq=seq, version=record.version, snapshot=snapshot, connection_id=None, count=0
            ).json,
            etag=f'"{seq}"',
        )

    async def _count(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._metrics.connections.inc()
        try:
            async with contextlib.aclosing(stream) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk
        finally:
            self._metrics.connections.dec()

    # --- changing ---------------------------------------------------------------------------------

    async def _event(self, request: Request, address: Address) -> Response:
        event = await read_body(request, bytes_max=self._limits.event_bytes, code="event_too_large")
        check_event(event, bytes_max=self._limits.event_bytes, depth_max=self._limits.event_depth)
        who = self._who(request, address)
        session = await self._open(address)
        answered = await self._send(request, session, who, event)
        receipt = answered.receipt
        cost = b',"cost":%b' % frames.quote(found) if (found := _cost(request, receipt)) else b""
        return _json(
            b'{"seq":%d,"outcome":"accepted","changed":%b%b,"snapshot":%b}'
            % (receipt.seq, b"true" if receipt.changed else b"false", cost, answered.snapshot),
            etag=f'"{answered.seq}"',
        )

    async def _send(
        self, request: Request, session: LiveSession, who: Identity, event: bytes
    ) -> Answered:
        self._door.take_event(session)
        check_own_bounds(session, event)
        event_id = _header_text(request, "idempotency-key")
        if event_id is not None and not 1 <= len(event_id) <= EVENT_ID_CHARS_MAX:
            raise BadRequest(
                "invalid_idempotency_key",
                f"an Idempotency-Key has 1 to {EVENT_ID_CHARS_MAX} characters",
            )
        answered = await self._host.intake.send_and_wait(
            session, event, who.sender, event_id=event_id, if_match=_if_match(request)
        )
        if answered.receipt.error is not None:
            refused = error_of(*answered.receipt.error)
            refused.more["seq"] = answered.receipt.seq
            if (cost := _cost(request, answered.receipt)) is not None:
                refused.more["cost"] = cost
            raise refused
        return answered

    async def _create(self, request: Request, address: Address) -> Response:
        body = await read_body(
            request, bytes_max=self._limits.input_bytes + 1024, code="input_too_large"
        )
        given = decode(body, CreateBody) if body else CreateBody()
        input_json = bytes(given.input) or None
        if input_json is not None:
            check_input(
                input_json, bytes_max=self._limits.input_bytes, depth_max=self._limits.event_depth
            )
        target = await self._catalog.target(address.machine, address.version)
        if input_json is not None and len(input_json) > target.limits.input_bytes:
            raise TooLarge(
                "input_too_large",
                f"a session's input has at most {target.limits.input_bytes} bytes here",
            )
        assert address.session is not None
        session = await self._host.create(
            address.machine, address.session, target, input_json=input_json
        )
        return _json(snapshot_frame(session).json, etag=f'"{session.seq}"', status=201)

    async def _wait(self, request: Request, address: Address) -> Response:
        body = await read_body(request, bytes_max=self._limits.event_bytes + 4096)
        wanted = decode(body, WaitBody)
        condition = read_condition(wanted.condition)
        if not 0 <= wanted.timeout_ms <= self._limits.wait_timeout_ms:
            raise BadRequest(
                "invalid_timeout",
                f"timeout_ms is a number from 0 to {self._limits.wait_timeout_ms}",
            )
        event = bytes(wanted.event)
        who = self._who(request, address)
        if event:
            check_event(
                event, bytes_max=self._limits.event_bytes, depth_max=self._limits.event_depth
            )

        async def wait() -> Response:
            session = await self._open(address)
            if event:
                answered = await self._send(request, session, who, event)
                if condition.holds(answered.snapshot):
                    return _json(
                        frames.snapshot_frame(
                            seq=answered.seq,
                            version=session.record.version,
                            snapshot=answered.snapshot,
                            connection_id=None,
                            count=0,
                        ).json
                    )
            return _json((await self._host.waits.until(session, condition.holds)).json)

        try:
            async with asyncio.timeout(wanted.timeout_ms / 1000):
                return await while_connected(request, wait())
        except TimeoutError:
            raise WaitTimeout(
                "wait_timeout", f"the condition did not hold within {wanted.timeout_ms} ms"
            ) from None

    # --- presence ---------------------------------------------------------------------------------

    async def _presence(self, address: Address) -> Response:
        """Who is there. A session that does not exist is not created."""
        session = await self._session_there(address)
        return _json(session.members.listing() if session is not None else Members().listing())

    async def _describe(self, request: Request, address: Address) -> Response:
        """What a member that listens over SSE says of itself."""
        body = await read_body(
            request,
            bytes_max=self._limits.presence_metadata_bytes + 1024,
            code="metadata_too_large",
        )
        metadata = check_metadata(
            bytes(decode(body, DescribeBody).metadata),
            bytes_max=self._limits.presence_metadata_bytes,
            depth_max=self._limits.event_depth,
        )
        session = await self._session_there(address)
        if session is None:
            raise Conflict("not_present", "nobody is connected to the session")
        if len(metadata) > session.allowed.presence_metadata_bytes:
            raise TooLarge(
                "metadata_too_large",
                f"a member's metadata has at most {session.allowed.presence_metadata_bytes} bytes here",
            )
        self._host.people.describe(session, self._who(request, address), metadata)
        return _json(session.members.listing())

    async def _session_there(self, address: Address) -> LiveSession | None:
        """A session if it is in memory. Raises `NotFound` when there is none."""
        assert address.session is not None
        session = self._host.find(address.machine, address.session)
        if session is None or not session.started:
            await self._sessions.record(address.machine, address.session)
        return session

    # --- words ------------------------------------------------------------------------------------

    async def _open(self, address: Address) -> LiveSession:
        return await open_session(self._catalog, self._host, address)

    def _who(self, request: Request, address: Address) -> Identity:
        assert address.session is not None
        return self._host.people.identify(
            address.machine, address.session, client_key(request.scope["query_string"])
        )


def wants(request: Request, media_type: str) -> bool:
    """Whether `media_type` is named in Accept, and not less wanted than JSON is."""
    weights: dict[str, float] = {}
    for part in request.headers.get("accept", "").lower().split(","):
        name, *parameters = (text.strip() for text in part.split(";"))
        weight = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        with contextlib.suppress(ValueError):
            weights[name] = float(weight)
    wanted = weights.get(media_type, 0)
    return wanted > 0 and wanted >= weights.get("application/json", 0)


def _matches(if_none_match: str | None, etag: str) -> bool:
    given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in given or "*" in given


def _header_text(request: Request, name: str) -> str | None:
    """A header's value as the text that was meant: UTF-8, else Latin-1, as HTTP had it once."""
    value = request.headers.get(name)
    if value is None or value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def _shown(request: Request, error: HubError) -> Response:
    """A problem; for a person in a browser the page, which asks again and says it in words."""
    with contextlib.suppress(NotFound):
        if isinstance(error, NotFound) and request.method == "GET" and wants(request, "text/html"):
            return page(request, status=error.status)
    return problem(error)


def _cost(request: Request, receipt: Receipt) -> dict[str, int] | None:
    """What the turn took, for who asked."""
    return (
        frames.cost_of(receipt.cost)
        if receipt.cost is not None and wants_cost(request.scope["query_string"])
        else None
    )


def _if_match(request: Request) -> int | None:
    text = request.headers.get("if-match")
    if text is None or text == "*":
        return None
    found = _ETAG.fullmatch(text)
    if found is None:
        raise BadRequest("invalid_if_match", 'If-Match is a seq in quotes, as in "41"')
    return int(found[1])


def _json(
    content: bytes | dict[str, Any], *, etag: str | None = None, status: int = 200
) -> Response:
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, {"ETag": etag} if etag else None, "application/json")

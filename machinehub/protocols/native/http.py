"""Per-machine URLs over HTTP: pages, definitions, snapshots, events, waiting, presence, streams of
events.

One function a call; what they decide is behind the session port. `CALLS` says which call answers
what.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from machinehub.edge.addresses import MachineUrl, read_url
from machinehub.edge.admission import PRINCIPAL, principal_of
from machinehub.edge.problem import on_unexpected, problem
from machinehub.edge.requests import decode, read_body, seq_of, while_connected
from machinehub.edge.revoked import REVOKED, Watch
from machinehub.errors import (
    BadRequest,
    Forbidden,
    HubError,
    MachineError,
    MethodNotAllowed,
    NotFound,
    Unauthorised,
    WaitTimeout,
    error_of,
)
from machinehub.ids import EventId, Seq
from machinehub.principal import wrong_token
from machinehub.protocols.native.frames import members_json, quote, to_json
from machinehub.protocols.native.queries import client_key, wants_cost
from machinehub.protocols.native.sse import SseListener
from machinehub.session.decide.conditions import read_condition
from machinehub.session.decide.events import EVENT_ID_CHARS_MAX, check_event
from machinehub.session.port import Visitor
from machinehub.web.page import page

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from starlette.types import Receive, Scope, Send

    from machinehub.edge.gate import Gate
    from machinehub.ids import MachineId
    from machinehub.limits import Limits
    from machinehub.metrics import Metrics
    from machinehub.model import Machine, Version
    from machinehub.principal import Scope as Right
    from machinehub.session.messages import Settled, Snapshot
    from machinehub.session.port import Address, Answered, Sessions

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "OPTIONS")
BODY_SLACK_BYTES: Final = 4096
"""What a body may have around the event or value that it carries."""
_SEQ: Final = re.compile("[0-9]{1,18}")
_ETAG: Final = re.compile(r'(?:W/)?"(\d{1,18})"')
# Machines are for front ends on any site: their URLs are as open as their ids are secret. The
# deploy API is not.
_CORS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "ETag",
    "Vary": "Accept, Authorization, Machinehub-Client, Machinehub-Key",
}
_PREFLIGHT: Final = _CORS | {
    "Access-Control-Allow-Methods": "GET, POST, PUT",
    "Access-Control-Max-Age": "86400",
    "Access-Control-Allow-Headers": (
        "Content-Type, If-Match, If-None-Match, Idempotency-Key, Last-Event-ID, Authorization,"
        " Machinehub-Client, Machinehub-Key"
    ),
}
_STREAM: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class WaitBody(msgspec.Struct):
    """The body of `POST /{machine}/{session}/wait`."""

    condition: Any
    timeout_ms: int = 30_000
    event: msgspec.Raw = msgspec.Raw(b"")


class CreateBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PUT /{machine}/{session}`."""

    input: msgspec.Raw = msgspec.Raw(b"")


class DescribeBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PUT /{machine}/{session}/presence`."""

    metadata: msgspec.Raw


class MachineInfo(Protocol):
    """A machine and one of its versions, as they are shown."""

    @property
    def machine(self) -> Machine: ...
    @property
    def version(self) -> Version: ...


class Machines(Protocol):
    """The catalog, as it is needed here."""

    async def target(self, machine_id: MachineId, number: int | None) -> MachineInfo:
        """The version of that number, or the active one. Raises `NotFound`."""
        ...


class _Stream(StreamingResponse):
    """A stream of events. `leaving` is closed when it ends, also if nothing of it was ever sent."""

    def __init__(self, stream: AsyncIterator[bytes], leaving: contextlib.ExitStack) -> None:
        super().__init__(stream, media_type="text/event-stream", headers=_STREAM)
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._leaving:
            await super().__call__(scope, receive, send)


class HttpProtocol:
    """The ASGI callable for everything that is no other protocol's."""

    def __init__(
        self,
        sessions: Sessions,
        machines: Machines,
        gate: Gate,
        limits: Limits,
        metrics: Metrics,
        *,
        base_url: str,
        watch: Watch,
    ) -> None:
        """`watch` tells when what a principal showed is not valid any more."""
        self._gate = gate
        self._watch = watch
        self._sessions = sessions
        self._machines = machines
        self._limits = limits
        self._metrics = metrics
        self._base_url = base_url
        self._calls = {
            ("GET", None): self._read,
            ("POST", None): self._send,
            ("PUT", None): self._create,
            ("POST", "wait"): self._wait,
            ("GET", "presence"): self._members,
            ("PUT", "presence"): self._describe,
        }

    def takes(self, scope: Scope) -> bool:
        """Whether a request is this protocol's."""
        return bool(scope["type"] == "http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Errors become problems here, as they do for the deploy API."""
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
        except Exception as error:  # noqa: BLE001 - a client gets an answer, whatever happened
            response = await on_unexpected(request, error)
        response.headers.update(_CORS)
        await response(scope, receive, send)

    async def refuse(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        """Turns away somebody whom admission did not let in."""
        await problem(error)(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        url = read_url(request.scope["raw_path"], session_chars_max=self._limits.session_id_chars)
        method = "GET" if request.method == "HEAD" else request.method
        if url.session is None and method == "GET":
            return await self._machine(request, url)
        address = url.address
        call = self._calls.get((method, url.action))
        if call is None:
            raise NotFound("not_found", "there is nothing at this URL")
        reads = method == "GET" or url.action == "wait"
        needed: Right = "read" if reads else "operate"
        principal = principal_of(request.scope)
        entered = await self._gate.enter(principal, address, needed)
        if entered.only_looks:
            await self._sessions.members(address)  # or there is none, and looking begins none
        request.scope[PRINCIPAL] = entered
        return await call(request, address)

    # --- reading ----------------------------------------------------------------------------------

    async def _machine(self, request: Request, url: MachineUrl) -> Response:
        await self._gate.look(principal_of(request.scope), url.machine)
        target = await self._machines.target(url.machine, url.version)
        if wants(request, "text/html"):
            return page(request)
        definition = target.version.shown
        body = msgspec.json.encode(
            {
                "id": target.machine.id,
                "name": target.machine.name,
                "version": target.version.number,
                "definition": definition,
                "events": definition.get("events", []),
                "url": f"{self._base_url}/{target.machine.id}",
                "private": target.machine.private,
            }
        )
        # Pages ask every few seconds which version is live, and a definition may be large.
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    async def _read(self, request: Request, address: Address) -> Response:
        if wants(request, "text/event-stream") and request.method == "GET":
            return await self._stream(request, address)
        if wants(request, "text/html"):
            await self._machines.target(address.machine_id, address.version)
            return page(request)
        at = seq_of(request, "at")
        if at is not None:
            looking = self._sessions.read(address, _visitor(request), at)
            return _snapshot(await while_connected(request, looking))
        snapshot = await self._sessions.read(address, _visitor(request))
        etag = _etag(snapshot.seq)
        known = request.headers.get("if-none-match")
        if not snapshot.is_personal and _matches(known, etag):
            return Response(status_code=304, headers={"ETag": etag})
        return _snapshot(snapshot)

    async def _stream(self, request: Request, address: Address) -> Response:
        last_id = request.headers.get("last-event-id", "")
        listener = SseListener(self._limits)
        principal = principal_of(request.scope)
        with contextlib.ExitStack() as leaving:
            assert principal.allowance is not None
            leaving.callback(principal.allowance.connect())
            subscription = await self._sessions.subscribe(
                address,
                listener,
                _visitor(request),
                emitted_after=Seq(int(last_id)) if _SEQ.fullmatch(last_id) else None,
            )
            leave = self._watch(
                principal,
                lambda: listener.receive(REVOKED),
                address.machine_id,
                address.session_id,
            )
            leaving.callback(leave)
            leaving.callback(subscription.close)
            stream = self._count(listener.stream(subscription))
            return _Stream(stream, leaving.pop_all())

    async def _count(self, stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        self._metrics.connections.inc()
        try:
            async with contextlib.aclosing(stream) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    yield chunk
        finally:
            self._metrics.connections.dec()

    # --- changing ---------------------------------------------------------------------------------

    async def _send(self, request: Request, address: Address) -> Response:
        event = await read_body(request, bytes_max=self._limits.event_bytes, code="event_too_large")
        settled, snapshot = await self._sent(request, address, event)
        cost = _cost(request, settled)
        return _json(
            b'{"seq":%d,"outcome":"accepted",%b%b,"snapshot":%b}'
            % (
                settled.seq,
                settled.what_changed,
                b',"cost":%b' % quote(cost) if cost is not None else b"",
                snapshot.state,
            ),
            etag=_etag(snapshot.seq),
        )

    async def _sent(self, request: Request, address: Address, event: bytes) -> Answered:
        """What became of an event that was accepted. Raises what it was refused with."""
        self._gate.recheck(principal_of(request.scope), address)  # its body may have taken long
        answered = await self._sessions.send(
            address,
            event,
            _visitor(request),
            event_id=_event_id(request),
            if_match=_if_match(request),
        )
        settled = answered.settled
        if settled.error is not None:
            refused = error_of(settled.error)
            refused.more["seq"] = settled.seq
            if (cost := _cost(request, settled)) is not None:
                refused.more["cost"] = cost
            raise refused
        return answered

    async def _create(self, request: Request, address: Address) -> Response:
        body = await read_body(
            request,
            bytes_max=self._limits.input_bytes + BODY_SLACK_BYTES,
            code="input_too_large",
        )
        given = decode(body, CreateBody) if body else CreateBody()
        snapshot = await self._sessions.create(
            address, _visitor(request), bytes(given.input) or None
        )
        return _snapshot(snapshot, status=201)

    async def _wait(self, request: Request, address: Address) -> Response:
        body = await read_body(request, bytes_max=self._limits.event_bytes + BODY_SLACK_BYTES)
        wanted = decode(body, WaitBody)
        condition = read_condition(wanted.condition)
        limits = self._limits
        if not 0 <= wanted.timeout_ms <= limits.wait_timeout_ms:
            raise BadRequest(
                "invalid_timeout", f"timeout_ms is a number from 0 to {limits.wait_timeout_ms}"
            )
        event = bytes(wanted.event)
        if event:
            check_event(event, bytes_max=limits.event_bytes, depth_max=limits.event_depth)
            await self._gate.enter(principal_of(request.scope), address, "operate")

        async def wait() -> Response:
            if event:
                answered = await self._sent(request, address, event)
                if condition.holds(answered.snapshot.state):
                    return _snapshot(answered.snapshot, etag=False)
            waiting = self._sessions.wait(address, _visitor(request), condition)
            return _snapshot(await waiting, etag=False)

        try:
            async with asyncio.timeout(wanted.timeout_ms / 1000):
                return await while_connected(request, self._while_valid(request, address, wait()))
        except TimeoutError:
            raise WaitTimeout(
                "wait_timeout", f"the condition did not hold within {wanted.timeout_ms} ms"
            ) from None

    async def _while_valid(
        self, request: Request, address: Address, work: Coroutine[Any, Any, Response]
    ) -> Response:
        """Work that takes long, for as long as what was shown counts. Raises `Unauthorised`."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(None)

        principal = principal_of(request.scope)
        leave = self._watch(principal, end, address.machine_id, address.session_id)
        working = asyncio.ensure_future(work)
        try:
            either: list[asyncio.Future[Any]] = [working, ended]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise wrong_token()
            return working.result()
        finally:
            leave()
            working.cancel()

    # --- presence ---------------------------------------------------------------------------------

    async def _members(self, _request: Request, address: Address) -> Response:
        return _json(members_json(await self._sessions.members(address)))

    async def _describe(self, request: Request, address: Address) -> Response:
        """What a member that listens over SSE says of itself."""
        body = await read_body(
            request,
            bytes_max=self._limits.presence_metadata_bytes + BODY_SLACK_BYTES,
            code="metadata_too_large",
        )
        metadata = bytes(decode(body, DescribeBody).metadata)
        described = await self._sessions.describe(address, _visitor(request), metadata)
        return _json(members_json(described))


def _visitor(request: Request) -> Visitor:
    return Visitor(principal_of(request.scope), client_key(request.scope))


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


def _etag(seq: Seq) -> str:
    return f'"{seq}"'


def _matches(if_none_match: str | None, etag: str) -> bool:
    given = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in given or "*" in given


def _event_id(request: Request) -> EventId | None:
    """The event's id. Raises `BadRequest`."""
    text = _header_text(request, "idempotency-key")
    if text is not None and not 1 <= len(text) <= EVENT_ID_CHARS_MAX:
        raise BadRequest(
            "invalid_idempotency_key",
            f"an Idempotency-Key has 1 to {EVENT_ID_CHARS_MAX} characters",
        )
    return None if text is None else EventId(text)


def _header_text(request: Request, name: str) -> str | None:
    """A header's value as the text that was meant: UTF-8, else Latin-1, as HTTP had it once."""
    value = request.headers.get(name)
    if value is None or value.isascii():
        return value
    try:
        return value.encode("latin-1").decode()
    except UnicodeDecodeError:
        return value


def _if_match(request: Request) -> Seq | None:
    text = request.headers.get("if-match")
    if text is None or text == "*":
        return None
    found = _ETAG.fullmatch(text)
    if found is None:
        raise BadRequest("invalid_if_match", 'If-Match is a seq in quotes, as in "41"')
    return Seq(int(found[1]))


def _cost(request: Request, settled: Settled) -> dict[str, int] | None:
    """What the turn took, for who asked."""
    if settled.cost is None or not wants_cost(request.scope["query_string"]):
        return None
    return settled.cost.as_json()


def _shown(request: Request, error: HubError) -> Response:
    """A problem; for a person in a browser the page, which asks again and says it in words, or asks
    for a token.
    """
    with contextlib.suppress(NotFound):
        is_told = isinstance(error, NotFound | Unauthorised | Forbidden)
        if is_told and request.method == "GET" and wants(request, "text/html"):
            return page(request, status=error.status)
    return problem(error)


def _snapshot(snapshot: Snapshot, *, status: int = 200, etag: bool = True) -> Response:
    json = snapshot.encoded(to_json)
    answer = _json(json, etag=_etag(snapshot.seq) if etag else None, status=status)
    if snapshot.is_personal:  # of two with the same seq each may see something else
        answer.headers["Cache-Control"] = "private, no-store"
    return answer


def _json(body: bytes, *, etag: str | None = None, status: int = 200) -> Response:
    return Response(body, status, {"ETag": etag} if etag else None, "application/json")

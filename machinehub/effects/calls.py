"""Machines call machines: `hub:/machine/session`, within a project.

Decides: that each call's event is applied once (the request's key is its id), and that calls do not
go round in circles for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from machinehub.edge.problem import problem
from machinehub.effects.asked import Again
from machinehub.errors import (
    BadRequest,
    HubError,
    MethodNotAllowed,
    NotFound,
    RateLimited,
    Unavailable,
    error_of,
)
from machinehub.ids import EventId, SessionId
from machinehub.principal import Principal, Standing
from machinehub.session.decide.identity import Identity
from machinehub.session.port import Address, Visitor
from sandbox.protocol.effects import Answer, spelled

if TYPE_CHECKING:
    from machinehub.effects.asked import Asked
    from machinehub.ids import MachineId, ProjectId
    from machinehub.limits import Limits
    from machinehub.session.port import Sessions
    from machinehub.store.store import Store

SCHEME: Final = "hub:"
DEPTH_MAX: Final = 16
"""So many machines call each other, one because of the other; further ones are told 508."""
_JSON: Final = [("content-type", "application/json")]


class CallTooDeep(HubError):
    """RFC 5842, section 7.2."""

    status, title = 508, "Loop detected"


class Calls:
    """A `Carrier`."""

    def __init__(self, sessions: Sessions, store: Store, limits: Limits) -> None:
        self._sessions = sessions
        self._store = store
        self._limits = limits

    async def __call__(self, asked: Asked) -> Answer:
        try:
            status, body = 200, await self._call(asked)
        except (Unavailable, RateLimited) as error:
            raise Again(_problem(asked, error), error.detail) from None
        except HubError as error:
            return _problem(asked, error)
        return Answer(status, "OK", asked.request.url, headers=_JSON, **spelled(body))  # type: ignore[arg-type]

    async def _call(self, asked: Asked) -> bytes:
        """The body of the answer. Raises `HubError`."""
        request = asked.request
        address = await self._address(asked)
        depth = asked.effect.depth + 1
        if depth > DEPTH_MAX:
            raise CallTooDeep(
                "calls_too_deep", f"{DEPTH_MAX} machines call each other, one because of the other"
            )
        caller = f"{asked.leave.machine}/{asked.address.session_id}"
        visitor = Visitor(
            Principal(Standing.LOCAL), identity=Identity(caller, is_hub=True, depth=depth)
        )
        match request.method:
            case "GET" | "HEAD":
                snapshot = await self._sessions.read(address, visitor)
                return b'{"seq":%d,"snapshot":%b}' % (snapshot.seq, snapshot.state)
            case "POST":
                return await self._send(asked, address, visitor)
        raise MethodNotAllowed("method_not_allowed", "a session takes GET and POST")

    async def _send(self, asked: Asked, address: Address, visitor: Visitor) -> bytes:
        try:
            event = asked.request.body
        except ValueError:
            raise BadRequest("invalid_request", "the body is no base64") from None
        settled, snapshot = await self._sessions.send(
            address, event, visitor, event_id=EventId(asked.idempotency_key)
        )
        if settled.error is not None:
            raise error_of(settled.error)
        return b'{"seq":%d,"outcome":"accepted",%b,"snapshot":%b}' % (
            settled.seq,
            settled.what_changed,
            snapshot.state,
        )

    async def _address(self, asked: Asked) -> Address:
        """Raises `BadRequest`, `NotFound`."""
        try:
            parts = urlsplit(asked.request.url)
        except ValueError:
            parts = urlsplit("hub:?")
        machine, slash, session = parts.path.removeprefix("/").partition("/")
        # A call that names another host would be somebody else's.
        more = parts.netloc + parts.query + parts.fragment
        is_plain = asked.request.url.isprintable() and not more
        if not is_plain or not slash or not machine or "/" in session:
            raise BadRequest(
                "invalid_request", "another session is hub:/machine/session, percent-encoded"
            )
        try:
            name, session = unquote(machine, errors="strict"), unquote(session, errors="strict")
        except UnicodeDecodeError:
            raise BadRequest("invalid_request", "the URL is not UTF-8") from None
        if not 1 <= len(session) <= self._limits.session_id_chars or session.startswith("-"):
            raise NotFound("no_such_session", "a session cannot be called so")
        return Address(await self._machine(asked.leave.project, name), SessionId(session))

    async def _machine(self, project: ProjectId, name: str) -> MachineId:
        """By its id or its name. Raises `NotFound`."""
        return (await self._store.machine(name, project=project)).id


def _problem(asked: Asked, error: HubError) -> Answer:
    told = problem(error)
    return Answer(
        error.status,
        error.title,
        asked.request.url,
        headers=[("content-type", "application/problem+json")],
        **spelled(bytes(told.body)),  # type: ignore[arg-type]
    )

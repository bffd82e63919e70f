"""The deploy API's part for sessions: list, read, delete, and their past.

A session's id may hold slashes, percent-encoded: what comes behind it is told apart in the raw
path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import Response

from machinehub.api.problem import Json
from machinehub.api.requests import decode, page, page_of, read_body, seq_of, while_connected
from machinehub.clock import timestamp
from machinehub.errors import BadRequest, NotFound
from machinehub.router.paths import check_session_id, decode_part

if TYPE_CHECKING:
    from starlette.requests import Request

    from machinehub.clock import Entropy
    from machinehub.limits import Limits
    from machinehub.model import Entry, SessionRecord
    from machinehub.session.host import SessionHost
    from machinehub.session.live import LiveSession
    from machinehub.session.past import Recomputed
    from machinehub.store.sessions import SessionStore
    from machinehub.store.store import Store

ATTEMPT_MAX: Final = 2**31 - 1
_CURSOR: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,10})")


class ForkBody(msgspec.Struct):
    """The body of `POST .../sessions/{s}/fork`. Without `at` the fork begins where the session is."""

    at: int | None = None
    session: str | None = None


class SessionApi:
    def __init__(
        self,
        store: Store,
        sessions: SessionStore,
        host: SessionHost,
        entropy: Entropy,
        limits: Limits,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._host = host
        self._entropy = entropy
        self._limits = limits

    async def list(self, request: Request) -> Response:
        machine = await self._store.machine(request.path_params["machine"])
        limit, after = page_of(request, limit_max=self._limits.page_items)
        found = await self._sessions.page(machine.id, after=after, limit=limit + 1)
        return Json(
            page([self._summary(record, seq) for record, seq in found], limit=limit, key="id")
        )

    async def any(self, request: Request) -> Response:
        """Everything below `.../sessions/`: finds out which session, and what of it."""
        machine = await self._store.machine(request.path_params["machine"])
        session_id, action = self._address(request)
        match request.method, action:
            case "GET", None:
                return await self._read(request, machine.id, session_id)
            case "DELETE", None:
                await self._host.delete(machine.id, session_id)
                return Response(status_code=204)
            case "GET", "journal":
                return await self._journal(
                    request, await self._sessions.record(machine.id, session_id)
                )
            case "POST", "fork":
                return await self._fork(
                    request, await self._sessions.record(machine.id, session_id)
                )
            case "POST", "replay":
                return await self._replay(request, machine.id, session_id)
        raise NotFound("not_found", "there is nothing at this URL")

    def _address(self, request: Request) -> tuple[str, str | None]:
        # /api/v1/machines/{machine}/sessions/{session}[/{action}]: the machine may be called
        # anything, and any letter may be encoded.
        below = request.scope["raw_path"].split(b"/", 6)[6].split(b"/")
        if len(below) > 2:
            raise NotFound("not_found", "a slash in a session's id is written %2F")
        session_id = decode_part(below[0])
        if not 1 <= len(session_id) <= self._limits.session_id_chars:
            raise NotFound("no_such_session", "the machine has no session of this name")
        return session_id, decode_part(below[1]) if len(below) == 2 else None

    # --- reading ----------------------------------------------------------------------------------

    async def _read(self, request: Request, machine_id: str, session_id: str) -> Response:
        at = seq_of(request, "at")
        if at is not None:
            record = await self._sessions.record(machine_id, session_id)
            snapshot = await while_connected(request, self._host.past.snapshot_at(record, at))
            return Json(self._summary(record, at) | {"snapshot": msgspec.Raw(snapshot)})
        session = await self._host.open(machine_id, session_id, None)
        return Json(
            self._summary(session.record, session.seq) | {"snapshot": msgspec.Raw(session.snapshot)}
        )

    async def _journal(self, request: Request, record: SessionRecord) -> Response:
        limit, cursor = page_of(request, limit_max=self._limits.page_items)
        first = seq_of(request, "from")
        behind = (
            request.query_params.get("after", f"{first - 1}.{ATTEMPT_MAX}" if first else "0.0")
            if cursor is None
            else cursor
        )
        after = _CURSOR.fullmatch(behind)
        if after is None:
            raise BadRequest("invalid_cursor", "that is no cursor of a list, and no seq.attempt")
        entries = await self._sessions.entries(
            record.key, after=(int(after[1]), int(after[2])), limit=limit + 1
        )
        return Json(
            page([show_entry(entry) for entry in entries], limit=limit, key="seq", then="attempt")
        )

    def _summary(self, record: SessionRecord, seq: int) -> dict[str, Any]:
        session: LiveSession | None = self._host.find(record.machine_id, record.session_id)
        return {
            "id": record.session_id,
            "version": record.version,
            "seq": seq,
            "finished": record.finished_at_ms is not None or bool(session and session.finished),
            "created_at": timestamp(record.created_at_ms),
            "connections": len(session.connections) if session else 0,
            "live": session is not None and session.worker is not None,
            "parent": None
            if record.parent is None
            else {"id": record.parent, "at": record.forked_at},
        }

    # --- the past ---------------------------------------------------------------------------------

    async def _fork(self, request: Request, record: SessionRecord) -> Response:
        body = await read_body(request, bytes_max=65536)
        wanted = decode(body, ForkBody) if body else ForkBody()
        session_id = self._entropy.connection_id() if wanted.session is None else wanted.session
        check_session_id(session_id, chars_max=self._limits.session_id_chars)
        child = await self._host.fork(record, wanted.at, session_id)
        return Json(self._summary(child, child.forked_at or 0), 201)

    async def _replay(self, request: Request, machine_id: str, session_id: str) -> Response:
        await self._host.freeze(
            machine_id, session_id
        )  # there is nothing better to compare with than the memory of now
        record = await self._sessions.record(machine_id, session_id)
        found = await while_connected(
            request, self._host.past.recompute(record, seq_of(request, "at"))
        )
        return Json(_show_recomputed(found, self._host.find(machine_id, session_id)))


def show_entry(entry: Entry) -> dict[str, Any]:
    """An entry as the API shows it: the guest's own spelling of the input taken apart."""
    _, seed, *rest = msgspec.json.decode(entry.input, type=list[msgspec.Raw])
    shown: dict[str, Any] = {
        "seq": entry.seq,
        "attempt": entry.attempt,
        "kind": entry.kind,
        "at": timestamp(entry.now_ms),
        "seed": seed,
    }
    match entry.kind:
        case "start":
            shown["input"] = rest[0] if rest else None
        case "timer":
            shown["timer"] = rest[0]
        case _:
            shown |= {"id": entry.event_id, "event": rest[0], "sender": rest[1]}
    shown |= {
        "outcome": "accepted" if entry.error is None else "rejected",
        "changed": entry.changed,
    }
    if entry.error is not None:
        shown["error"] = {"code": entry.error[0], "detail": entry.error[1]}
    return shown


def _show_recomputed(found: Recomputed, session: LiveSession | None) -> dict[str, Any]:
    checkpoints = [
        {"seq": seq, "stored": stored, "recomputed": recomputed}
        for seq, stored, recomputed in found.checkpoints
    ]
    # A session that is in memory has said what it is; what was said must be what the journal says.
    told = session is None or session.seq != found.seq or session.snapshot == found.snapshot
    return {
        "seq": found.seq,
        "inputs": found.inputs,
        "ms": found.ms,
        "digest": found.digest,
        "snapshot": msgspec.Raw(found.snapshot),
        "checkpoints": checkpoints,
        "verified": found.agrees and told,
    }

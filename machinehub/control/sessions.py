"""The deploy API's part for sessions: list, read, delete, and their history.

A session's id may hold slashes, percent-encoded: what comes behind it is told apart in the raw
path.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response

from machinehub.clock import timestamp
from machinehub.control.effects import EffectsApi, show_answer
from machinehub.control.routes import MACHINE, SESSION
from machinehub.edge.addresses import check_session_id, decode_part
from machinehub.edge.admission import principal_of
from machinehub.edge.problem import Json
from machinehub.edge.requests import decode, page, page_of, read_body, seq_of, while_connected
from machinehub.errors import BadRequest, NotFound
from machinehub.ids import Seq, SessionId
from machinehub.model import Kind
from machinehub.session.decide.identity import shown_id
from machinehub.session.port import Address
from sandbox.protocol.inputs import read_input

if TYPE_CHECKING:
    import builtins
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from machinehub.clock import Entropy
    from machinehub.control.audit import Audit
    from machinehub.control.reach import Reach
    from machinehub.control.routes import Guarded
    from machinehub.ids import MachineId
    from machinehub.limits import Limits
    from machinehub.model import Entry, Machine
    from machinehub.session.port import Recomputed, Sessions, Summary
    from machinehub.store.store import Store

BUSIEST_LOOKED_AT: Final = 1000
"""Of all projects together."""
ATTEMPT_MAX: Final = 2**31 - 1
FORK_BYTES_MAX: Final = 65536
_CURSOR: Final = re.compile(r"([0-9]{1,18})\.([0-9]{1,10})")
_PATH_PARTS: Final = 6
"""Slashes before a session's id in /api/v1/machines/{machine}/sessions/{session}."""


class ForkBody(msgspec.Struct):
    """The body of `POST .../sessions/{s}/fork`. Without `at` the fork begins where the session
    is.
    """

    at: int | None = None
    session: str | None = None
    effects: Literal["drop", "keep"] = "drop"
    """Whether what was waited for then is asked for once more."""


class RestartBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST .../sessions/{s}/restart`. Without `version` it is the active one."""

    version: Annotated[int, msgspec.Meta(ge=1, le=10**9)] | None = None


class SessionApi:
    def __init__(
        self,
        store: Store,
        reach: Reach,
        sessions: Sessions,
        audit: Audit,
        entropy: Entropy,
        limits: Limits,
    ) -> None:
        self._audit = audit
        self._store = store
        self._reach = reach
        self._sessions = sessions
        self._entropy = entropy
        self._limits = limits
        self._effects = EffectsApi(sessions, limits)
        self._calls = {
            ("GET", None): self._read,
            ("DELETE", None): self._delete,
            ("GET", "journal"): self._journal,
            ("POST", "fork"): self._fork,
            ("POST", "replay"): self._replay,
            ("POST", "restart"): self._restart,
            ("GET", "effects"): self._effects.list,
        }

    def calls(self) -> builtins.list[Guarded]:
        return [
            ("read", "GET", "/busiest", self.busiest),
            ("read", "GET", MACHINE + "/sessions", self.list),
            # One call for all of these: what is the session's id, which may hold slashes, is seen
            # in the raw path only.
            ("read", "GET", SESSION + "/journal", self.any),
            ("operate", "POST", SESSION + "/fork", self.any),
            ("read", "POST", SESSION + "/replay", self.any),
            ("operate", "POST", SESSION + "/restart", self.any),
            ("read", "GET", SESSION + "/effects", self.any),
            ("operate", "POST", SESSION + "/effects/{effect}/cancel", self.cancel),
            ("operate", "POST", SESSION + "/effects/{effect}/answer", self.answer),
            ("read", "GET", SESSION, self.any),
            ("operate", "DELETE", SESSION, self.any),
        ]

    async def list(self, request: Request) -> Response:
        machine = await self._reach.machine(request)
        limit, after = page_of(request, limit_max=self._limits.page_items)
        found = await self._sessions.summaries(
            machine.id, after=SessionId(after) if after is not None else None, limit=limit + 1
        )
        return Json(page([_show(summary) for summary in found], limit=limit, key="id"))

    async def busiest(self, request: Request) -> Response:
        """The hub's sessions with the most turns in the last minute."""
        limit, _ = page_of(request, limit_max=self._limits.page_items)
        shown: list[dict[str, Any]] = []
        for each in await self._sessions.busiest(BUSIEST_LOOKED_AT):
            machine = await self._of_the_askers(request, each.machine_id)
            if machine is None:
                continue
            named = {"id": machine.id, "name": machine.name}
            shown.append({"machine": named, "session": each.session_id, "turns": each.turns})
            if len(shown) == limit:
                break
        return Json({"data": shown, "next": None})

    async def _of_the_askers(self, request: Request, machine_id: MachineId) -> Machine | None:
        """None for one that was deleted meanwhile, or is another project's."""
        project = principal_of(request.scope).project
        try:
            machine = await self._store.machine(machine_id, everywhere=True)
        except NotFound:
            return None
        return machine if project in (None, machine.project) else None

    async def any(self, request: Request) -> Response:
        """Everything below `.../sessions/`: finds out which session, and what of it."""
        machine = await self._reach.machine(request)
        session_id, action = self._below(request)
        call = self._calls.get((request.method, action))
        if call is None:
            raise NotFound("not_found", "there is nothing at this URL")
        if call in (self._read, self._journal, self._replay, self._effects.list):
            await self._audit.note_look(request, machine, session_id)
        request.state.machine = machine
        return await call(request, Address(machine.id, session_id))

    async def cancel(self, request: Request) -> Response:
        return await self._settle(request, "cancelled", self._effects.cancel)

    async def answer(self, request: Request) -> Response:
        return await self._settle(request, "answered", self._effects.answer)

    async def _settle(
        self,
        request: Request,
        done: str,
        settle: Callable[[Request, Address, str], Awaitable[Response]],
    ) -> Response:
        """What waits is settled by hand."""
        machine = await self._reach.machine(request)
        name, *below = _parts_of(request)
        if len(below) != 3:
            raise NotFound("not_found", "a slash in a session's id is written %2F")
        session_id, number = self._session_id(name), decode_part(below[1])
        response = await settle(request, Address(machine.id, session_id), number)
        await self._audit.note(
            request, f"{done} request %s of session %s of %s", number, session_id, machine
        )
        return response

    def _below(self, request: Request) -> tuple[SessionId, str | None]:
        parts = _parts_of(request)
        if len(parts) > 2:
            raise NotFound("not_found", "a slash in a session's id is written %2F")
        action = decode_part(parts[1]) if len(parts) == 2 else None
        return self._session_id(parts[0]), action

    def _session_id(self, part: bytes) -> SessionId:
        session_id = decode_part(part)
        # Not `check_session_id`: there may be sessions from before some ids were reserved.
        if not 1 <= len(session_id) <= self._limits.session_id_chars:
            raise NotFound("no_such_session", "the machine has no session of this name")
        return SessionId(session_id)

    # --- reading ----------------------------------------------------------------------------------

    async def _read(self, request: Request, address: Address) -> Response:
        looking = self._sessions.inspect(address, seq_of(request, "at"))
        summary, snapshot = await while_connected(request, looking)
        waits = await self._sessions.timers(address) if "at" not in request.query_params else []
        timers = [{"id": timer, "due_at": timestamp(due_at_ms)} for timer, due_at_ms in waits]
        shown = {"timers": timers, "snapshot": msgspec.Raw(snapshot.state)}
        return Json(_show(summary) | shown)

    async def _delete(self, request: Request, address: Address) -> Response:
        await self._sessions.delete(address)
        await self._audit.note(
            request, "deleted session %s of %s", address.session_id, request.state.machine
        )
        return Response(status_code=204)

    async def _journal(self, request: Request, address: Address) -> Response:
        limit, cursor = page_of(request, limit_max=self._limits.page_items)
        first = seq_of(request, "from")
        start = f"{first - 1}.{ATTEMPT_MAX}" if first else "0.0"
        behind = request.query_params.get("after", start) if cursor is None else cursor
        after = _CURSOR.fullmatch(behind)
        if after is None:
            raise BadRequest("invalid_cursor", "that is no cursor of a list, and no seq.attempt")
        entries = await self._sessions.journal_of(
            address, after=(Seq(int(after[1])), int(after[2])), limit=limit + 1
        )
        shown = [show_entry(entry) for entry in entries]
        return Json(page(shown, limit=limit, key="seq", then="attempt"))

    # --- history ----------------------------------------------------------------------------------

    async def _fork(self, request: Request, address: Address) -> Response:
        body = await read_body(request, bytes_max=FORK_BYTES_MAX)
        wanted = decode(body, ForkBody) if body else ForkBody()
        name = self._entropy.connection_id() if wanted.session is None else wanted.session
        session_id = check_session_id(name, chars_max=self._limits.session_id_chars)
        at = None if wanted.at is None else Seq(wanted.at)
        sends = wanted.effects == "keep"
        forked = await self._sessions.fork(address, at, session_id, sends=sends)
        about = session_id, address.session_id, request.state.machine
        await self._audit.note(request, "forked session %s from session %s of %s", *about)
        return Json(_show(forked), 201)

    async def _restart(self, request: Request, address: Address) -> Response:
        body = await read_body(request, bytes_max=FORK_BYTES_MAX)
        wanted = decode(body, RestartBody) if body else RestartBody()
        snapshot = await self._sessions.restart(address._replace(version=wanted.version))
        summary, _ = await self._sessions.inspect(address)
        await self._audit.note(
            request, "started session %s of %s anew", address.session_id, request.state.machine
        )
        return Json(_show(summary) | {"snapshot": msgspec.Raw(snapshot.state)})

    async def _replay(self, request: Request, address: Address) -> Response:
        replaying = self._sessions.replay(address, seq_of(request, "at"))
        return Json(_show_recomputed(await while_connected(request, replaying)))


def _parts_of(request: Request) -> list[bytes]:
    """Of the path, from the session's id on: the machine may be called anything, and any letter may
    be encoded.
    """
    return request.scope["raw_path"].split(b"/", _PATH_PARTS)[_PATH_PARTS].split(b"/")  # type: ignore[no-any-return]


def _show(summary: Summary) -> dict[str, Any]:
    parent = None
    if summary.parent is not None:
        parent = {"id": summary.parent, "at": summary.forked_at}
    shown: dict[str, Any] = {
        "id": summary.session_id,
        "version": summary.version,
        "seq": summary.seq,
        "finished": summary.finished,
        "created_at": timestamp(summary.created_at_ms),
        "connections": summary.connections,
        "live": summary.live,
        "parent": parent,
    }
    if summary.compacted_to is not None:
        shown["compacted_to"] = summary.compacted_to
    return shown


def show_entry(entry: Entry) -> dict[str, Any]:
    """An entry as the API shows it: the guest's own spelling of the input taken apart."""
    given = read_input(entry.input)
    shown: dict[str, Any] = {
        "seq": entry.seq,
        "attempt": entry.attempt,
        "kind": entry.kind.value,
        "at": timestamp(entry.now_ms),
        "seed": given.seed,
    }
    match entry.kind:
        case Kind.START:
            shown["input"] = given.subject
        case Kind.TIMER:
            shown["timer"] = given.timer
        case Kind.ANSWER:
            shown |= {"effect": given.effect, "answer": show_answer(given.sender)}
        case Kind.EVENT | Kind.PRESENCE:
            shown |= {
                "id": shown_id(entry.event_id),
                "event": given.subject,
                "sender": given.sender,
            }
    if entry.cause:
        shown["cause"] = entry.cause
    outcome = "accepted" if entry.error is None else "rejected"
    shown |= {"outcome": outcome, "changed": entry.changed}
    if entry.taken is not None:
        shown["taken"] = entry.taken
    if entry.error is not None:
        shown["error"] = {"code": entry.error.code, "detail": entry.error.detail}
    return shown


def _show_recomputed(found: Recomputed) -> dict[str, Any]:
    return {
        "seq": found.seq,
        "inputs": found.inputs,
        "ms": found.ms,
        "digest": found.digest,
        "snapshot": msgspec.Raw(found.state),
        "checkpoints": [
            {"seq": seq, "stored": stored, "recomputed": recomputed}
            for seq, stored, recomputed in found.checkpoints
        ],
        "verified": found.verified,
    }

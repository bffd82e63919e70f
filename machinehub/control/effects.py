"""The deploy API's part for what a session asked of the world: looked at, cancelled, or answered by
hand.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from starlette.responses import Response

from machinehub.clock import timestamp, timestamp_or_none
from machinehub.edge.problem import Json
from machinehub.edge.requests import decode, page, page_of, read_body
from machinehub.effect import Conclusion
from machinehub.effects.outside import shown_headers
from machinehub.egress.client import check_headers
from machinehub.errors import BadRequest, NotFound, error_of
from sandbox.protocol.effects import (
    HEADERS_MAX,
    Answer,
    encode_answer,
    read_answer,
    read_request,
    refusal,
    spelled,
)
from sandbox.protocol.ids import EffectId

if TYPE_CHECKING:
    from starlette.requests import Request

    from machinehub.effect import EffectRecord
    from machinehub.limits import Limits
    from machinehub.session.port import Address, Sessions

ANSWER_BYTES_MAX: Final = 512 * 1024
_NUMBER: Final = re.compile("[0-9]{1,15}")


class AnswerBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST .../effects/{id}/answer`: what `fetch` settles with."""

    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 200
    headers: Annotated[dict[str, str], msgspec.Meta(max_length=HEADERS_MAX)] = {}
    json: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    text: str | None = None
    base64: str | None = None
    error: str | None = None
    """What it is rejected with, in place of a response."""

    def __post_init__(self) -> None:
        check_headers(self.headers.items())


class EffectsApi:
    """What `SessionApi` does with `.../sessions/{s}/effects`, and what stands below it."""

    def __init__(self, sessions: Sessions, limits: Limits) -> None:
        self._sessions = sessions
        self._limits = limits

    async def list(self, request: Request, address: Address) -> Response:
        """The newest first."""
        limit, cursor = page_of(request, limit_max=self._limits.page_items)
        if cursor is not None and not _NUMBER.fullmatch(cursor):
            raise BadRequest("invalid_cursor", "the cursor is not one that a list gave")
        before = None if cursor is None else EffectId(int(cursor))
        found = await self._sessions.effects(address, before=before, limit=limit + 1)
        return Json(page([show_effect(each) for each in found], limit=limit, key="id"))

    async def cancel(self, _request: Request, address: Address, number: str) -> Response:
        """The machine's `fetch` is rejected, as if it had been aborted."""
        answer = refusal("request_cancelled", "the request was cancelled by hand")
        await self._settle(address, _number(number), answer, "request_cancelled")
        return Response(status_code=204)

    async def answer(self, request: Request, address: Address, number: str) -> Response:
        body = decode(await read_body(request, bytes_max=ANSWER_BYTES_MAX), AnswerBody)
        await self._settle(address, _number(number), _answer(body), "answered_by_hand")
        return Response(status_code=204)

    async def _settle(
        self, address: Address, effect: EffectId, answer: Answer, outcome: str
    ) -> None:
        """Raises what the machine refuses it with."""
        how = Conclusion(outcome, answer.status or None)
        fault = await self._sessions.answer(address, effect, encode_answer(answer), how)
        if fault is not None:
            raise error_of(fault)


def _number(text: str) -> EffectId:
    if not _NUMBER.fullmatch(text):
        raise NotFound("no_such_request", "the session has no request of this number")
    return EffectId(int(text))


def _answer(body: AnswerBody) -> Answer:
    if (
        sum(each is not None for each in (body.text, body.base64, body.error))
        + (body.json is not msgspec.UNSET)
        > 1
    ):
        raise BadRequest("invalid_body", "an answer has one of json, text, base64 and error")
    if body.error is not None:
        return refusal("request_refused", body.error[:500])
    headers = [(name.lower(), value) for name, value in body.headers.items()]
    content = (body.text or "").encode()
    if isinstance(body.json, msgspec.Raw):
        content = bytes(body.json)
        if "content-type" not in dict(headers):
            headers.append(("content-type", "application/json"))
    elif body.base64 is not None:
        try:
            content = base64.b64decode(body.base64, validate=True)
        except binascii.Error:
            raise BadRequest("invalid_body", "base64 is no base64") from None
    return Answer(body.status, "", headers=headers, **spelled(content))  # type: ignore[arg-type]


def show_effect(record: EffectRecord) -> dict[str, Any]:
    """A request as the API shows it."""
    effect, how = record.effect, record.conclusion
    state = "held" if record.is_held else "pending" if record.ended_at_ms is None else "ended"
    return {
        "id": effect.id,
        "seq": effect.seq,
        "ordinal": effect.ordinal,
        "state": state,
        "at": timestamp(effect.at_ms),
        "request": _show_request(effect.request),
        "tries": how.tries if how else record.tries,
        "next_try_at": timestamp_or_none(record.due_at_ms if record.tries else None),
        "trouble": record.trouble or None,
        "outcome": how.outcome if how else None,
        "status": how.status if how else None,
        "ms": how.ms if how else None,
        "ended_at": timestamp_or_none(record.ended_at_ms),
        "ended_seq": record.ended_seq,
    }


def _show_request(raw: bytes) -> dict[str, Any]:
    try:
        request = read_request(raw)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return {"method": "?", "url": "?", "headers": []}
    shown = msgspec.structs.replace(request, headers=shown_headers(request.headers))
    told: dict[str, Any] = msgspec.to_builtins(shown)
    return {"headers": []} | told


def show_answer(raw: msgspec.Raw) -> dict[str, Any]:
    """An answer as the journal shows it."""
    answer = read_answer(bytes(raw))
    told = msgspec.structs.replace(answer, headers=shown_headers(answer.headers))
    shown: dict[str, Any] = msgspec.to_builtins(told)
    return shown

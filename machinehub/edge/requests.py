"""Reading requests: bodies of bounded size, typed JSON, pages of lists."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect

from machinehub.errors import BadRequest, TooLarge, Unavailable, WaitTimeout
from machinehub.ids import Seq

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request

T = TypeVar("T")
BODY_S: Final = 30.0


async def read_body(request: Request, *, bytes_max: int, code: str = "body_too_large") -> bytes:
    """The body, refused as soon as it is known to be too large. Raises `TooLarge`."""
    too_large = TooLarge(code, f"the body has more than {bytes_max} bytes")
    announced = request.headers.get("content-length", "")
    if re.fullmatch("[0-9]{1,18}", announced) and int(announced) > bytes_max:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > bytes_max:
                    raise too_large
    except TimeoutError:
        raise WaitTimeout(
            "request_timeout", f"the body did not arrive within {BODY_S:g} s"
        ) from None
    except ClientDisconnect:
        raise BadRequest("body_incomplete", "the connection ended before the body did") from None
    return bytes(body)


def decode(body: bytes, kind: type[T]) -> T:
    """Raises `BadRequest`, saying where the body is not what it should be."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise BadRequest("invalid_body", str(error)) from None
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadRequest("invalid_json", f"the body is not JSON: {error}"[:300]) from None


def page_of(request: Request, *, limit_max: int) -> tuple[int, str | None]:
    """`?limit=&cursor=` of a list: how many, and from behind what."""
    text = request.query_params.get("limit", "100")
    if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= limit_max:
        raise BadRequest("invalid_limit", f"limit is a number from 1 to {limit_max}")
    cursor = request.query_params.get("cursor")
    if cursor is None:
        return int(text), None
    try:
        return int(text), base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise BadRequest("invalid_cursor", "the cursor is not one that a list gave") from None


def page(
    items: list[dict[str, Any]], *, limit: int, key: str, then: str | None = None
) -> dict[str, Any]:
    """A list as the API answers it: `{"data": [...], "next": cursor or null}`.

    `items` has one more than `limit` when there is a next page, which begins behind `key` (and
    `then`).
    """
    shown = items[:limit]
    if len(items) <= limit:
        return {"data": shown, "next": None}
    behind = str(shown[-1][key]) if then is None else f"{shown[-1][key]}.{shown[-1][then]}"
    return {"data": shown, "next": base64.urlsafe_b64encode(behind.encode()).decode()}


def seq_of(request: Request, name: str) -> Seq | None:
    """A seq in the query. Raises `BadRequest`."""
    text = request.query_params.get(name)
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,18}", text):
        raise BadRequest("invalid_seq", f"{name} is the number of an input, from 1")
    return Seq(int(text))


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Does work that takes long for as long as somebody waits for it."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Unavailable("unavailable", "nobody waits for this any more")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        if working.done() and not working.cancelled():
            working.exception()  # its time may have been over at the same moment


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

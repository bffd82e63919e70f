"""Answers from a file, for development: `machinehub dev --mock answers.json`."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from machinehub.egress.client import check_headers
from sandbox.protocol.effects import Answer, refusal

if TYPE_CHECKING:
    from pathlib import Path

    from machinehub.effects.asked import Asked, Carrier


class Mock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What requests are answered, the first that fits."""

    url: str
    """`*` stands for anything."""
    method: str = "*"
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] = 200
    headers: dict[str, str] = {}
    json: Any = msgspec.UNSET
    text: str = ""
    error: str | None = None
    """What `fetch` is rejected with, in place of an answer."""
    delay_ms: Annotated[int, msgspec.Meta(ge=0, le=600_000)] = 0

    def __post_init__(self) -> None:
        check_headers(self.headers.items())


def read_mocks(path: Path) -> list[Mock]:
    """Raises `OSError`, `ValueError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Mock])
    except RecursionError:
        raise ValueError("it nests too deeply") from None


class Mocked:
    """A `Carrier`. The file is read for each request, so it may be changed meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def __call__(self, asked: Asked) -> Answer:
        try:
            mocks = read_mocks(self._path)
        except (OSError, ValueError) as error:
            return refusal("egress_failed", f"{self._path}: {error}"[:300])
        request = asked.request
        for mock in mocks:
            if _fits(mock.method, request.method) and _fits(mock.url, request.url):
                await asyncio.sleep(mock.delay_ms / 1000)
                return _answer(mock, request.url)
        return refusal(
            "egress_failed", f"{self._path.name} has no answer to {request.method} {request.url}"
        )


def _fits(pattern: str, text: str) -> bool:
    wanted = ".*".join(re.escape(part) for part in pattern.split("*"))
    return re.fullmatch(wanted, text, re.DOTALL) is not None


def _answer(mock: Mock, url: str) -> Answer:
    if mock.error is not None:
        return refusal("egress_failed", mock.error)
    headers = [(name.lower(), value) for name, value in mock.headers.items()]
    text = mock.text
    if mock.json is not msgspec.UNSET:
        text = msgspec.json.encode(mock.json).decode()
        headers.append(("content-type", "application/json"))
    return Answer(mock.status, "", url, headers=headers, text=text)


class ByScheme:
    """A `Carrier`: what stays in the hub is carried out by one, what leaves it by another."""

    def __init__(self, inside: Carrier, outside: Carrier, scheme: str) -> None:
        self._inside = inside
        self._outside = outside
        self._scheme = scheme

    async def __call__(self, asked: Asked) -> Answer:
        is_inside = asked.request.url.lower().startswith(self._scheme)
        return await (self._inside if is_inside else self._outside)(asked)

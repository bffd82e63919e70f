"""What a request or a socket says of itself: in query, headers or subprotocols."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, unquote

from machinehub.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

KEY_HEADER: Final = b"machinehub-client"
"""Percent-encoded, as a header has few characters."""
KEY_PROTOCOL: Final = "machinehub.key."
"""Behind it stands the client key as base64url, with or without padding."""


def client_key(scope: MutableMapping[str, Any]) -> str | None:
    """The client key: `?client=`, the header `Machinehub-Client`, or a subprotocol. What stands in
    a URL is written into the logs of proxies. Raises `BadRequest` for what is no text, and for two
    that differ.
    """
    found = set(_keys(scope))
    if len(found) > 1:
        raise BadRequest("invalid_client_key", "there are two client keys")
    return found.pop() if found else None


def _keys(scope: MutableMapping[str, Any]) -> Iterator[str]:
    query = scope["query_string"]
    if b"client" in query or b"%" in query:
        yield from _of_query(query)
    for name, value in scope["headers"]:
        if name == KEY_HEADER:
            try:
                yield unquote(value.decode(), errors="strict")
            except UnicodeDecodeError:
                raise BadRequest("invalid_client_key", "the client key is not UTF-8") from None
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(KEY_PROTOCOL):
            yield _decoded(protocol.removeprefix(KEY_PROTOCOL))


def _of_query(query: bytes) -> list[str]:
    try:
        found = parse_qs(query.decode("latin-1"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("invalid_client_key", "the query is not percent-encoded UTF-8") from None
    keys = found.get("client", [])
    if len(keys) > 1:
        raise BadRequest("invalid_client_key", "there are two client keys")
    return keys


def _decoded(text: str) -> str:
    try:
        padded = text + "=" * (-len(text) % 4)
        return base64.b64decode(padded.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError, ValueError):
        raise BadRequest(
            "invalid_client_key", f"behind {KEY_PROTOCOL} stands the key as base64url"
        ) from None


def given_input(query: bytes) -> bytes | None:
    """`?input=`: XState's input as JSON, for a session that begins."""
    found = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("input")
    return found[0].encode() if found else None


def wants_cost(query: bytes) -> bool:
    """`?cost=1`: answers say what their turn took."""
    return b"cost=1" in query.split(b"&")

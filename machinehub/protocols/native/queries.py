"""What the query of a per-machine URL says, whichever way it came."""

from __future__ import annotations

from urllib.parse import parse_qs

from machinehub.errors import BadRequest


def client_key(query: bytes) -> str | None:
    """`?client=`. Raises `BadRequest` for what is no text, and for two."""
    try:
        found = parse_qs(query.decode("latin-1"), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("invalid_client_key", "the query is not percent-encoded UTF-8") from None
    keys = found.get("client", [])
    if len(keys) > 1:
        raise BadRequest("invalid_client_key", "there are two client keys")
    return keys[0] if keys else None


def given_input(query: bytes) -> bytes | None:
    """`?input=`: XState's input as JSON, for a session that begins."""
    found = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("input")
    return found[0].encode() if found else None


def wants_cost(query: bytes) -> bool:
    """`?cost=1`: answers say what their turn took."""
    return b"cost=1" in query.split(b"&")

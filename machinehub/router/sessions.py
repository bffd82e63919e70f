"""From an address to its session, whichever way the client came."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from machinehub.errors import BadRequest

if TYPE_CHECKING:
    from machinehub.catalog import Catalog
    from machinehub.router.paths import Address
    from machinehub.session.host import SessionHost
    from machinehub.session.live import LiveSession


async def open_session(catalog: Catalog, host: SessionHost, address: Address, *, input_json: bytes | None = None) -> LiveSession:
    """The session at `address`; created, with `input_json`, when it is new.

    A version that is named must exist, whether or not the session does. Raises `NotFound` and what `SessionHost.open` raises.
    """
    assert address.session is not None
    session = host.find(address.machine, address.session)
    if session is not None and session.started and address.version is None:
        return await host.open(address.machine, address.session, None)
    target = await catalog.target(address.machine, address.version)
    return await host.open(address.machine, address.session, target, input_json=input_json)


def client_key(query_string: bytes) -> str | None:
    """`?client=` of a URL, whichever way it came. Raises `BadRequest` for what is no text, and for two."""
    try:
        keys = parse_qs(query_string.decode("latin-1"), keep_blank_values=True, errors="strict").get("client", [])
    except UnicodeDecodeError:
        raise BadRequest("invalid_client_key", "the query is not percent-encoded UTF-8") from None
    if len(keys) > 1:
        raise BadRequest("invalid_client_key", "there are two client keys")
    return keys[0] if keys else None

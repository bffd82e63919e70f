"""From an address to its session, whichever way the client came."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from machinehub.errors import BadRequest, TooLarge
from sandbox.protocol import is_deeper_than

if TYPE_CHECKING:
    import msgspec

    from machinehub.catalog import Catalog
    from machinehub.router.paths import Address
    from machinehub.session.host import SessionHost
    from machinehub.session.live import LiveSession


async def open_session(
    catalog: Catalog, host: SessionHost, address: Address, *, input_json: bytes | None = None
) -> LiveSession:
    """The session at `address`; created, with `input_json`, when it is new.

    A version that is named must exist, whether or not the session does. Raises `NotFound` and what
    `SessionHost.open` raises.
    """
    assert address.session is not None
    session = host.find(address.machine, address.session)
    if session is not None and session.started and address.version is None:
        session = await host.open(address.machine, address.session, None)
    else:
        target = await catalog.target(address.machine, address.version)
        if input_json is not None and len(input_json) > target.limits.input_bytes:
            raise TooLarge(
                "input_too_large",
                f"a session's input has at most {target.limits.input_bytes} bytes here",
            )
        session = await host.open(address.machine, address.session, target, input_json=input_json)
    if session.limits is None:
        session.limits = await catalog.limits_of(address.machine, session.record.version)
        session.joins.slow_down(
            session.limits.joins_per_s, burst=session.limits.connections_per_session
        )
    return session


def check_own_bounds(session: LiveSession, event: bytes | msgspec.Raw) -> None:
    """What `check_event` checks by the hub's limits, by those of the session's version.

    Raises `TooLarge`, `BadRequest`.
    """
    data, allowed = bytes(event), session.allowed
    if len(data) > allowed.event_bytes:
        raise TooLarge("event_too_large", f"an event has at most {allowed.event_bytes} bytes here")
    if is_deeper_than(data, allowed.event_depth):
        raise BadRequest(
            "event_too_deep", f"an event nests at most {allowed.event_depth} levels here"
        )


def client_key(query_string: bytes) -> str | None:
    """`?client=` of a URL, whichever way it came.

    Raises `BadRequest` for what is no text, and for two.
    """
    try:
        keys = parse_qs(
            query_string.decode("latin-1"), keep_blank_values=True, errors="strict"
        ).get("client", [])
    except UnicodeDecodeError:
        raise BadRequest("invalid_client_key", "the query is not percent-encoded UTF-8") from None
    if len(keys) > 1:
        raise BadRequest("invalid_client_key", "there are two client keys")
    return keys[0] if keys else None


def wants_cost(query_string: bytes) -> bool:
    """`?cost=1`: answers say what their turn took."""
    return b"cost=1" in query_string.split(b"&")

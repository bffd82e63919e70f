"""From an address to its session, whichever way the client came."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

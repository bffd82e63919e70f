"""Who may use the deploy API."""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING, Final

from machinehub.errors import Forbidden, Unauthorised
from machinehub.router.door import site_of
from machinehub.store.store import hash_token

if TYPE_CHECKING:
    from starlette.requests import Request

    from machinehub.settings import Settings
    from machinehub.store.store import Store

REMEMBERED_S: Final = 2.0
"""How long the list of valid tokens is remembered: a revoked one is refused this soon."""


class Tokens:
    """Holders of the hub's own token or of one in the database; on an *open* hub everybody on this
    computer.

    A hub is open when it listens on loopback and never had a token. That is decided once, at the
    start: revoking the last token closes a hub, it does not open it.
    """

    def __init__(self, settings: Settings, store: Store) -> None:
        self._own = hash_token(settings.token) if settings.token else None
        self._is_loopback = settings.is_loopback
        self._store = store
        self._open = False
        """Whether everybody on this computer may deploy; see the class."""
        self._valid: set[str] = set()
        self._read_at = -REMEMBERED_S

    @property
    def is_open(self) -> bool:
        return self._open

    async def start(self) -> None:
        self._open = self._is_loopback and self._own is None and not await self._store.token_list()

    async def check(self, request: Request) -> None:
        """Raises `Unauthorised` or `Forbidden`."""
        if self._open:
            self._check_is_from_here(request)
            return
        if time.monotonic() - self._read_at >= REMEMBERED_S:
            self._valid = await self._store.valid_token_hashes()
            self._read_at = time.monotonic()
        accepted = self._valid | ({self._own} if self._own else set())
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorised(
                "unauthorised", "this hub wants a token: Authorization: Bearer <token>"
            )
        given = hash_token(token[:1024])
        # All are compared, always: the time it takes says nothing.
        if not any([hmac.compare_digest(given, known) for known in accepted]):  # noqa: C419
            raise Unauthorised("unauthorised", "the token is not valid here")

    def _check_is_from_here(self, request: Request) -> None:
        """A web page from elsewhere must not deploy to an open hub: neither by a form, nor under a
        name that it points here.
        """
        origin = request.headers.get("origin")  # its names are the door's affair (router/door.py)
        if origin is not None and site_of(origin) != request.headers.get("host"):
            raise Forbidden(
                "foreign_origin",
                "an open hub's API is not for other sites' pages; configure a token",
            )

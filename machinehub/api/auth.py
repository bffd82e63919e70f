"""Bearer tokens of the deploy API."""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING, Final

from machinehub.errors import Unauthorised
from machinehub.store.store import hash_token

if TYPE_CHECKING:
    from machinehub.settings import Settings
    from machinehub.store.store import Store

REMEMBERED_S: Final = 2.0
"""How long the list of valid tokens is remembered: a revoked one is refused this soon."""


class Tokens:
    """Who may use the deploy API: holders of the hub's own token or of one in the database; everybody, on a hub that
    has neither (which only starts on loopback)."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._own = hash_token(settings.token) if settings.token else None
        self._store = store
        self._valid: set[str] = set()
        self._read_at = -REMEMBERED_S

    async def check(self, authorization: str | None) -> None:
        """Raises `Unauthorised`. Comparing hashes takes the same time whatever is wrong."""
        if time.monotonic() - self._read_at >= REMEMBERED_S:
            self._valid = await self._store.valid_token_hashes()
            self._read_at = time.monotonic()
        accepted = self._valid | ({self._own} if self._own else set())
        if not accepted:
            return
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorised("unauthorised", "this hub wants a token: Authorization: Bearer <token>")
        given = hash_token(token[:1024])
        if not any([hmac.compare_digest(given, known) for known in accepted]):  # noqa: C419  (all are compared, always)
            raise Unauthorised("unauthorised", "the token is not valid here")

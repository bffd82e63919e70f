"""The hub's tokens: which are valid, and whether the hub is open.

A hub is *open* when it listens on loopback and never had a token: everybody on this computer may do
everything. The first token that is created closes it, also while it runs; revoking the last one
does not open it.
"""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING, Final

from machinehub.errors import Unavailable
from machinehub.store.store import hash_token

if TYPE_CHECKING:
    from machinehub.clock import Clock
    from machinehub.settings import Settings
    from machinehub.store.store import Store

log = logging.getLogger("machinehub.edge")
audit = logging.getLogger("machinehub.audit")

LOOK_S: Final = 0.5
"""How often an open hub looks whether there is a token now."""
REMEMBERED_S: Final = 2.0
"""How long the list of valid tokens is remembered: a revoked one is refused this soon."""
TOKEN_CHARS_MAX: Final = 1024


class Tokens:
    """The hub's own token, and those in the database."""

    def __init__(self, settings: Settings, store: Store, clock: Clock) -> None:
        self._own = hash_token(settings.token) if settings.token else None
        self._is_loopback = settings.is_loopback
        self._store = store
        self._clock = clock
        self._open = False
        self._looked_at_s = -LOOK_S
        self._valid: dict[str, str] = {}
        """Hashes of tokens, and their names."""
        self._has_read = False
        self._read_at_s = -REMEMBERED_S

    @property
    def is_open(self) -> bool:
        return self._open

    async def start(self) -> None:
        """Decides whether the hub is open. Raises `Unavailable`."""
        has_token = self._own is not None or bool(await self._store.token_list())
        self._open = self._is_loopback and not has_token
        self._read_at_s = self._clock.monotonic_s() - REMEMBERED_S

    async def look(self) -> None:
        """Closes an open hub that has a token by now."""
        now_s = self._clock.monotonic_s()
        if not self._open or now_s - self._looked_at_s < LOOK_S:
            return
        self._looked_at_s = now_s
        try:
            created = await self._store.token_list()
        except Unavailable:
            return
        if created:
            self._open = False
            log.warning("there is a token now: the hub is not open any more")

    async def name_of(self, token: str) -> str | None:
        """The name of a valid token, for the log; None for one that is not valid. Raises
        `Unavailable`.
        """
        now_s = self._clock.monotonic_s()
        if now_s - self._read_at_s >= REMEMBERED_S:
            self._take(await self._store.valid_tokens())
            self._read_at_s = now_s
        given = hash_token(token[:TOKEN_CHARS_MAX])
        own = {self._own: "MACHINEHUB_TOKEN"} if self._own else {}
        # All are compared, always: the time it takes says nothing.
        fitting = [
            name for known, name in (self._valid | own).items() if hmac.compare_digest(given, known)
        ]
        return fitting[0] if fitting else None

    def _take(self, valid: dict[str, str]) -> None:
        for _, name in valid.items() - self._valid.items() if self._has_read else ():
            audit.info("token %r is valid from now on", name)
        for _, name in self._valid.items() - valid.items():
            audit.info("token %r was revoked", name)
        self._valid, self._has_read = valid, True

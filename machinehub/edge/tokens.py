"""The hub's tokens: which are valid, and whether the hub is open.

A hub is *open* when it listens on loopback and never had a token: everybody on this computer may do
everything. The first token that is created closes it, also while it runs; revoking the last one
does not open it.
"""

from __future__ import annotations

import asyncio
import logging
from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from machinehub.errors import Unavailable
from machinehub.model import SCOPES, Token
from machinehub.store.keys import hash_token
from machinehub.tasks import Tasks, look_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.clock import Clock
    from machinehub.edge.connect_tokens import ConnectTokens
    from machinehub.settings import Settings
    from machinehub.store.keys import KeyStore

log = logging.getLogger("machinehub.edge")
audit = logging.getLogger("machinehub.audit")

LOOK_S: Final = 0.5
"""How often an open hub looks whether there is a token now."""
REMEMBERED_S: Final = 2.0
"""How long the list of valid tokens is remembered: a revoked one is refused this soon."""
TOKEN_CHARS_MAX: Final = 1024
OWN: Final = Token(
    id=0, name="MACHINEHUB_TOKEN", created_at_ms=0, revoked_at_ms=None, scopes=frozenset(SCOPES)
)
"""What the setting gives: for the whole hub, for everything, as long as the hub runs."""


UNKNOWN_S: Final = 0.2
"""For who shows a token that is not known it is asked again, so often at most, however many do."""


class Tokens:
    """The hub's own token, and those in the database."""

    def __init__(
        self, settings: Settings, store: KeyStore, clock: Clock, members: ConnectTokens
    ) -> None:
        """`members`, which know the keys of connect tokens, are kept fresh together with these."""
        self._members = members
        self._own = hash_token(settings.token) if settings.token else None
        self._is_loopback = settings.is_loopback
        self._store = store
        self._clock = clock
        self._open = False
        self._looked_at_s = -LOOK_S
        self._valid: dict[str, Token] = {}
        """By their hashes."""
        self._has_read = False
        self._read_at_s = -REMEMBERED_S
        self._used: set[int] = set()
        """Tokens that were shown since that was noted last."""
        self._watched: dict[int, set[Callable[[], None]]] = {}
        self._tasks = Tasks()

    @property
    def is_open(self) -> bool:
        return self._open

    async def start(self) -> None:
        """Decides whether the hub is open. Raises `Unavailable`."""
        has_token = self._own is not None or bool(await self._store.token_list())
        self._open = self._is_loopback and not has_token
        self._read_at_s = self._clock.monotonic_s() - REMEMBERED_S
        await self._members.refresh()
        if self._clock.ticks:
            self._tasks.spawn(look_on("tokens", REMEMBERED_S, self.refresh, log, logging.DEBUG))

    def stop(self) -> None:
        self._tasks.stop()
        self._members.stop()

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

    async def find(self, text: str) -> Token | None:
        """The token that this is, if it is valid now. Raises `Unavailable`."""
        now_s = self._clock.monotonic_s()
        if now_s - self._read_at_s >= REMEMBERED_S:
            await self._read()
        found = self._fitting(text)
        if found is None:  # it may have been made just now, by another hub on this database
            read_at_s = self._read_at_s
            if (wait_s := read_at_s + UNKNOWN_S - now_s) > 0:
                await asyncio.sleep(wait_s)
            if self._read_at_s == read_at_s:  # nobody else did meanwhile
                await self._read()
            found = self._fitting(text)
        if found is not None:
            self._used.add(found.id)
        return found

    async def _read(self) -> None:
        """Asks the database. Raises `Unavailable`."""
        self._read_at_s = self._clock.monotonic_s()
        self._take(await self._store.valid_tokens())
        await self._members.refresh()

    def _fitting(self, text: str) -> Token | None:
        given = hash_token(text[:TOKEN_CHARS_MAX])
        own = {self._own: OWN} if self._own else {}
        # All are compared, always: the time it takes says nothing.
        fitting = [
            token for known, token in (self._valid | own).items() if compare_digest(given, known)
        ]
        if not fitting or self._is_over(fitting[0]):
            return None
        return fitting[0]

    def watch(self, token_id: int, close: Callable[[], None]) -> Callable[[], None]:
        """`close` is called when the token is not valid any more. Returns what ends that."""
        watching = self._watched.setdefault(token_id, set())
        watching.add(close)

        def leave() -> None:
            watching.discard(close)
            if not watching and self._watched.get(token_id) is watching:
                del self._watched[token_id]

        return leave

    async def refresh(self) -> None:
        """Asks the database which tokens are valid, and closes what others opened. Raises
        `Unavailable`.
        """
        self._read_at_s = self._clock.monotonic_s()
        self._take(await self._store.valid_tokens())
        valid = {token.id for token in self._valid.values() if not self._is_over(token)}
        for token_id in self._watched.keys() - valid:
            for close in list(self._watched.get(token_id, ())):
                close()
        await self._members.refresh()
        used, self._used = self._used - {OWN.id}, set()
        if used:
            await self._store.note_used(used, now_ms=self._clock.now_ms())

    def _is_over(self, token: Token) -> bool:
        return token.expires_at_ms is not None and self._clock.now_ms() >= token.expires_at_ms

    def _take(self, valid: dict[str, Token]) -> None:
        for known in valid.keys() - self._valid.keys():
            since = "from now on" if self._has_read else "when the hub starts"
            audit.info("token %r is valid %s", valid[known].name, since)
        for known in self._valid.keys() - valid.keys():
            audit.info("token %r was revoked", self._valid[known].name)
        self._valid, self._has_read = valid, True

"""Keys that issuers of tokens publish (JWKS, RFC 7517): fetched when they are needed, and kept."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jwt
import msgspec

from machinehub.egress.addresses import EgressError

if TYPE_CHECKING:
    from machinehub.clock import Clock
    from machinehub.egress.client import Egress

log = logging.getLogger("machinehub.edge")

KEPT_S: Final = 600.0
"""After which keys are fetched again, by whoever needs them then."""
AGAIN_S: Final = 30.0
"""How soon, at most, they are fetched again for a key that is not there, or after a failure."""
FETCH_S: Final = 5.0
BYTES_MAX: Final = 256 * 1024
KEYS_MAX: Final = 100
_ALGORITHMS: Final = {"RSA": "RS256", "OKP": "EdDSA", "EC": "ES256"}
"""By the kind of key: what a token says of its algorithm decides nothing."""


class PublicKey(NamedTuple):
    key: Any
    algorithm: str


class _Published:
    def __init__(self) -> None:
        self.keys: dict[str | None, PublicKey] = {}
        self.at_s = self.tried_at_s = float("-inf")
        self.fetching: asyncio.Task[None] | None = None


class PublicKeys:
    def __init__(self, egress: Egress, clock: Clock) -> None:
        self._egress = egress
        self._clock = clock
        self._published: dict[tuple[str, str], _Published] = {}
        """By owner and URL: what one keeps waiting is not another's."""

    def stop(self) -> None:
        for published in self._published.values():
            if published.fetching is not None:
                published.fetching.cancel()

    def at_hand(self, url: str, kid: object, *, owner: str) -> PublicKey | None:
        """The same, where it is known already and not old."""
        published = self._published.get((owner, url))
        if published is None or self._clock.monotonic_s() - published.at_s >= KEPT_S:
            return None
        return published.keys.get(kid if isinstance(kid, str) else None)

    async def find(self, url: str, kid: object, *, owner: str) -> PublicKey | None:
        """The key of that id that is published there, where `owner` says. While it cannot be
        fetched, what was fetched before counts.
        """
        published = self._published.setdefault((owner, url), _Published())
        name = kid if isinstance(kid, str) else None
        now_s = self._clock.monotonic_s()
        is_old = now_s - published.at_s >= KEPT_S
        if (is_old or name not in published.keys) and now_s - published.tried_at_s >= AGAIN_S:
            published.tried_at_s = now_s
            published.fetching = asyncio.ensure_future(self._fetch(url, published, owner))
        # What is old counts on where newer ones cannot be had, and only there.
        if published.fetching is not None and (is_old or name not in published.keys):
            await asyncio.shield(published.fetching)
        return published.keys.get(name)

    async def _fetch(self, url: str, published: _Published, owner: str) -> None:
        try:
            body = await self._egress.get(url, owner=owner, bytes_max=BYTES_MAX, within_s=FETCH_S)
            published.keys = read_keys(body)
            published.at_s = self._clock.monotonic_s()
        except (EgressError, ValueError) as error:
            log.warning("the keys at %s cannot be had: %s", url, error)
        finally:
            published.fetching = None


def read_keys(body: bytes) -> dict[str | None, PublicKey]:
    """The keys of a JWKS by their ids; the only one also by none. Raises `ValueError`."""
    try:
        said = msgspec.json.decode(body)
        listed = said["keys"][:KEYS_MAX]
    except (msgspec.MsgspecError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"no list of keys: {error}") from None
    found: dict[str | None, PublicKey] = {}
    for each in listed:
        algorithm = _ALGORITHMS.get(str(each.get("kty"))) if isinstance(each, dict) else None
        if algorithm is None or each.get("use", "sig") != "sig" or "d" in each:
            continue  # of another use, or no public key
        try:
            key = jwt.PyJWK(each, algorithm=algorithm).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue  # one that nobody here can read
        kid = each.get("kid")
        found[kid if isinstance(kid, str) else None] = PublicKey(key, algorithm)
    if len(found) == 1:
        found[None] = next(iter(found.values()))
    return found

"""Connect tokens: JWTs (RFC 7519) by which an app says who its users are.

An app's own back end signs them with a secret of its project (HS256, found by `kid`), or its
identity provider does with keys that it publishes (JWKS, RFC 7517; found by issuer and audience).
Which algorithms count follows from the key, never from the token (RFC 8725, section 3.1). What is
wrong with a token is not told to who shows it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import jwt
import msgspec

from machinehub.edge.public_keys import KEPT_S, PublicKey, PublicKeys
from machinehub.principal import Member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from machinehub.clock import Clock
    from machinehub.egress.client import Egress
    from machinehub.ids import MachineId, ProjectId, SessionId
    from machinehub.model import JwtKey, Revocation
    from machinehub.store.members import MemberStore

log = logging.getLogger("machinehub.edge")

REMEMBERED: Final = 10_000
"""Tokens that were found valid, and need not be verified again."""
TOKEN_BYTES_MAX: Final = 8 * 1024
CLAIMS_BYTES_MAX: Final = 2 * 1024
"""Of what a token says besides, which goes with each event into the journal."""
SKEW_S: Final = 30
"""How much later than the hub's the clock of who issues tokens may be."""
ITEMS_MAX: Final = 100
TEXT_CHARS_MAX: Final = 256
_OURS: Final = frozenset(
    "iss sub aud exp nbf iat jti roles machine session events".split()  # noqa: SIM905
)
"""Claims that the hub reads itself; the machine is told of the others."""


class NotValid(Exception):
    """The token says nothing. The text is for the log of whoever looks for the reason."""


class _Known(NamedTuple):
    member: Member
    until_s: float
    """When it is verified again: a key may not be published any more."""


class ConnectTokens:
    def __init__(self, store: MemberStore, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._public = PublicKeys(egress, clock)
        self._secrets: dict[str, JwtKey] = {}
        self._issuers: list[JwtKey] = []
        self._valid_kids: set[str] = set()
        self._revoked_users: dict[tuple[ProjectId, str], int] = {}
        self._revoked_sessions: dict[tuple[MachineId, SessionId], int] = {}
        """Tokens that were issued until then do not count."""
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        """By the SHA-256 of the token."""
        self._watched: dict[Callable[[], None], tuple[Member, MachineId | None, SessionId | None]]
        self._watched = {}
        self._refreshing = asyncio.Lock()
        self._mark: tuple[int, int, int] | None = None

    @property
    def has_keys(self) -> bool:
        return bool(self._valid_kids)

    def stop(self) -> None:
        self._public.stop()

    async def refresh(self) -> None:
        """Asks the database which keys count and what was revoked, and closes what others opened.
        Raises `Unavailable`.
        """
        async with self._refreshing:  # or what was read before could replace what was read later
            await self._refresh()

    async def _refresh(self) -> None:
        keys, mark = await self._store.valid_keys(), await self._store.revocations_mark()
        revoked = None
        if mark != self._mark:  # there may be many, and they change seldom
            revoked = await self._store.revocation_list()
        self._secrets = {key.kid: key for key in keys if key.secret is not None}
        self._issuers = [key for key in keys if key.secret is None]
        self._valid_kids = {key.kid for key in keys}
        if revoked is not None:
            self._mark = mark
            self._revoked_users, self._revoked_sessions = {}, {}
            for each in revoked:
                self._take(each)
        for close, watched in list(self._watched.items()):
            if not self.still_counts(*watched):
                close()

    def _take(self, revoked: Revocation) -> None:
        if revoked.sub is not None:
            self._revoked_users[revoked.project, revoked.sub] = revoked.at_ms
        elif revoked.machine_id is not None and revoked.session_id is not None:
            self._revoked_sessions[revoked.machine_id, revoked.session_id] = revoked.at_ms

    def watch(
        self,
        member: Member,
        machine: MachineId | None,
        session: SessionId | None,
        close: Callable[[], None],
    ) -> Callable[[], None]:
        """`close` is called when the token does not count any more, or not for that session."""
        self._watched[close] = member, machine, session

        def leave() -> None:
            self._watched.pop(close, None)

        return leave

    def still_counts(
        self, member: Member, machine: MachineId | None = None, session: SessionId | None = None
    ) -> bool:
        """Whether what a token says counts now, for a session if one is named."""
        if member.expires_at_ms <= self._clock.now_ms():
            return False
        # One that does not say when it was issued was issued before.
        issued_ms = member.issued_at_ms or 0
        if machine is not None and session is not None:
            over_ms = self._revoked_sessions.get((machine, session), -1)
            if issued_ms <= over_ms:
                return False
        return any(
            kid in self._valid_kids
            and issued_ms > self._revoked_users.get((project, member.sub), -1)
            for project, kid in member.kids
        )

    async def find(self, token: str) -> Member | None:
        """What a token says, if it is valid now."""
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        known, now_s = self._known.get(digest), self._clock.monotonic_s()
        if known is not None and now_s < known.until_s:
            member = known.member
        else:
            try:
                member, is_complete, kept_s = await self._verify(token)
            except NotValid as why:
                log.debug("a connect token is not valid: %s", why)
                return None
            if is_complete:
                self._known[digest] = _Known(member, now_s + kept_s)
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return member if self.still_counts(member) else None

    async def _verify(self, token: str) -> tuple[Member, bool, float]:
        """What a token says, whether all projects that may believe it were asked, and for how long
        that counts. Raises `NotValid`.
        """
        if len(token) > TOKEN_BYTES_MAX or not token.isascii():
            raise NotValid("it is too long")
        try:
            head = jwt.get_unverified_header(token)
            said = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, RecursionError, ValueError) as error:
            raise NotValid(str(error)) from None
        kid = head.get("kid")
        key = self._secrets.get(kid) if isinstance(kid, str) else None
        if key is not None:
            assert key.secret is not None
            claims = _decode(token, key.secret, ["HS256"], key)
            return self._member(claims, [(key.project, key.kid)]), True, float("inf")
        candidates = [each for each in self._issuers if each.issuer == said.get("iss")]
        found, is_complete = await self._ask_issuers(token, kid, candidates)
        if not found:
            raise NotValid("nobody here knows its key")
        kids = [(each.project, each.kid) for _, each in found]
        return self._member(found[0][0], kids), is_complete, KEPT_S

    async def _ask_issuers(
        self, token: str, kid: object, candidates: list[JwtKey]
    ) -> tuple[list[tuple[dict[str, Any], JwtKey]], bool]:
        """The claims, by each of the keys that the token fits; and whether all were looked at. Keys
        at hand are enough: nobody waits for those of another project that are slow to come.
        """
        found: list[tuple[dict[str, Any], JwtKey]] = []
        missing: dict[tuple[str, str], list[JwtKey]] = {}
        for each in candidates:
            assert each.jwks_url is not None
            owner = f"keys of {each.project}"
            if (public := self._public.at_hand(each.jwks_url, kid, owner=owner)) is not None:
                found += _fitting(token, public, [each])
            else:
                missing.setdefault((owner, each.jwks_url), []).append(each)
        if found:
            return found, not missing
        asking = [
            asyncio.ensure_future(self._ask_one(owner, url, kid, of))
            for (owner, url), of in missing.items()
        ]
        for next_ in asyncio.as_completed(asking):
            public_, of = await next_
            if public_ is not None:
                found += _fitting(token, public_, of)
            if found:
                break
        return found, all(each.done() for each in asking)

    async def _ask_one(
        self, owner: str, url: str, kid: object, of: list[JwtKey]
    ) -> tuple[PublicKey | None, list[JwtKey]]:
        return await self._public.find(url, kid, owner=owner), of

    def _member(self, claims: dict[str, Any], kids: Iterable[tuple[ProjectId, str]]) -> Member:
        """Raises `NotValid`."""
        now_s = self._clock.now_ms() / 1000
        expires_s, begins_s, issued_s = (_time(claims, name) for name in ("exp", "nbf", "iat"))
        if expires_s is None:
            raise NotValid("it does not say when it expires")
        if (
            expires_s <= now_s
            or (begins_s or 0) > now_s + SKEW_S
            or (issued_s or 0) > now_s + SKEW_S
        ):
            raise NotValid("its time is over, or has not come")
        sub = claims.get("sub")
        if not isinstance(sub, str) or not 1 <= len(sub) <= TEXT_CHARS_MAX:
            raise NotValid("it does not say whose it is")
        others = {name: value for name, value in claims.items() if name not in _OURS}
        try:
            sub.encode()
            more = msgspec.json.encode(others) if others else None
        except (UnicodeEncodeError, msgspec.MsgspecError, RecursionError):
            raise NotValid("its text is no text") from None
        if more is not None and len(more) > CLAIMS_BYTES_MAX:
            raise NotValid(f"its claims have more than {CLAIMS_BYTES_MAX} bytes")
        return Member(
            sub=sub,
            kids=tuple(kids),
            # Nothing is issued later than it is shown, whatever another clock says.
            issued_at_ms=None if issued_s is None else int(min(issued_s, now_s) * 1000),
            expires_at_ms=int(expires_s * 1000),
            roles=_texts(claims, "roles") or (),
            claims=more,
            machines=_texts(claims, "machine"),
            sessions=_texts(claims, "session"),
            events=_texts(claims, "events"),
        )


def _fitting(
    token: str, public: PublicKey, of: list[JwtKey]
) -> list[tuple[dict[str, Any], JwtKey]]:
    """The claims of a token, for those whose issuer and audience it names."""
    found = []
    for each in of:
        try:
            found.append((_decode(token, public.key, [public.algorithm], each), each))
        except NotValid as why:
            log.debug("a connect token is not valid: %s", why)
    return found


def _decode(token: str, key: Any, algorithms: list[str], of: JwtKey) -> dict[str, Any]:
    """The claims of a token whose signature, issuer and audience are right. Times are looked at by
    the hub's own clock. Raises `NotValid`.
    """
    try:
        return jwt.decode(
            token,
            key,
            algorithms=algorithms,
            issuer=of.issuer,
            audience=of.audience,
            options={
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
                "verify_sub": False,
                "verify_aud": of.audience is not None,
            },
        )
    except Exception as error:  # noqa: BLE001 - keys and tokens are strangers', whatever they do
        raise NotValid(str(error)) from None


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Seconds since 1970. Raises `NotValid`."""
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**40:
        raise NotValid(f"{name} is no time")
    return float(value)


def _texts(claims: dict[str, Any], name: str) -> tuple[str, ...] | None:
    """A text, or a list of texts. Raises `NotValid`."""
    value = claims.get(name)
    if value is None:
        return None
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or len(given) > ITEMS_MAX:
        raise NotValid(f"{name} is a text, or a list of texts")
    for each in given:
        if not isinstance(each, str) or len(each) > TEXT_CHARS_MAX or not _is_text(each):
            raise NotValid(f"{name} is a text, or a list of texts")
    return tuple(given)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

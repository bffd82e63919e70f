"""Whose tokens and keys those are that a request or a socket shows."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from machinehub.clock import PUBLISHABLE_PREFIX
from machinehub.errors import Forbidden
from machinehub.principal import Principal, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from machinehub.edge.connect_tokens import ConnectTokens
    from machinehub.edge.tokens import Tokens
    from machinehub.ids import MachineId, SessionId
    from machinehub.model import Token
    from machinehub.principal import Member

SHOWN_MAX: Final = 4
"""Tokens and keys that one request may show."""
JWT_DOTS: Final = 2


TOKEN_PROTOCOL: Final = "machinehub.token."  # noqa: S105 - not one
"""A subprotocol that carries a token or a key: pages cannot give a WebSocket headers, and a URL is
written into logs.
"""
TOKEN_QUERY: Final = "token"  # noqa: S105 - not one
"""The same in a URL, for what can do neither, as a browser's EventSource."""


class Kind(Enum):
    """What may be shown, by its form."""

    SECRET = "secret token"  # noqa: S105 - not one
    PUBLISHABLE = "publishable key"
    CONNECT = "connect token"


def kind_of(text: str) -> Kind:
    """A connect token is a JWT: three parts with dots between them, of which the first is the
    base64url of a JSON object (RFC 7515).
    """
    if text.startswith(PUBLISHABLE_PREFIX):
        return Kind.PUBLISHABLE
    is_jwt = text.startswith("ey") and text.count(".") == JWT_DOTS
    return Kind.CONNECT if is_jwt else Kind.SECRET


def shown_in(headers: Iterable[tuple[bytes, bytes]], query: bytes) -> list[str]:
    """The tokens and keys in a request's head and URL."""
    shown: list[str] = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                shown.append(token)
        elif name == b"machinehub-key":
            shown.append(value.decode("latin-1"))
        elif name == b"sec-websocket-protocol":
            offered = (each.strip() for each in value.decode("latin-1").split(","))
            shown += [
                each.removeprefix(TOKEN_PROTOCOL)
                for each in offered
                if each.startswith(TOKEN_PROTOCOL)
            ]
    if TOKEN_QUERY.encode() in query:
        shown += parse_qs(query.decode("latin-1")).get(TOKEN_QUERY, [])
    return [each for each in shown if each]


class Identities:
    def __init__(self, tokens: Tokens, members: ConnectTokens) -> None:
        self._tokens = tokens
        self._members = members

    async def find(self, shown: Sequence[str], *, origin: str = "") -> Principal | None:
        """Who shows these; None for who shows nothing that could mean something: an open hub knows
        connect tokens alone. `origin` is the page's, where it is not the hub's own. Raises
        `Unavailable`, and `Forbidden` for a page whose site may not show its key.
        """
        kinds: dict[Kind, str] = {}
        for text in shown:
            if kinds.setdefault(kind_of(text), text) != text or len(shown) > SHOWN_MAX:
                return Principal(Standing.WRONG_TOKEN)
        said = kinds.pop(Kind.CONNECT, None)
        if self._tokens.is_open:
            kinds.clear()
            if not self._members.has_keys:
                return None
        if said is None and not kinds:
            return None
        tokens = [await self._tokens.find(text) for text in kinds.values()]
        member = await self._members.find(said) if said is not None else None
        if None in tokens or (said is not None and member is None):
            return Principal(Standing.WRONG_TOKEN)
        return _intersection([each for each in tokens if each is not None], member, origin)

    def watch(
        self,
        principal: Principal,
        then: Callable[[], None],
        machine: MachineId | None = None,
        session: SessionId | None = None,
    ) -> Callable[[], None]:
        """Calls `then` when what somebody showed is not valid any more, or not for that session.
        Returns what ends that.
        """
        leaving = [self._tokens.watch(each, then) for each in principal.token_ids]
        if principal.member is not None:
            leaving.append(self._members.watch(principal.member, machine, session, then))

        def leave() -> None:
            for each in leaving:
                each()

        return leave


def _intersection(tokens: list[Token], member: Member | None, origin: str) -> Principal:
    """What may be done by who shows all of these. Raises `Forbidden`."""
    projects = {token.project for token in tokens if token.project is not None}
    if len(projects) > 1:
        return Principal(Standing.WRONG_TOKEN)
    keys = [token for token in tokens if token.publishable is not None]
    if any(key.origins and origin and origin not in key.origins for key in keys):
        raise Forbidden("foreign_origin", "the publishable key is for other sites' pages")
    standing = Standing.MEMBER if member else Standing.KEY if keys else Standing.TOKEN
    first = tokens[0] if tokens else None
    return Principal(
        standing,
        token=None if first is None else first.name or str(first.id),
        token_ids=tuple(token.id for token in tokens if token.id),
        project=next(iter(projects), None),
        scopes=tokens[0].scopes if standing is Standing.TOKEN else frozenset(),
        # A user beside a token that may only look is somebody who looks.
        only_looks=standing is not Standing.TOKEN
        and any("operate" not in each.scopes for each in tokens if each.publishable is None),
        member=member,
    )

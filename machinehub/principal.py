"""Who asks: what admission finds out about a request or a socket, and everything behind it takes.

Somebody is anonymous, is on this computer while the hub is open, or shows something: a token (for
one project or for the whole hub, and for some of what can be done, its scopes), a publishable key,
a connect token of an app's own, or one of each. What they may do is the intersection of those.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Literal

from machinehub.errors import Forbidden, Unauthorised
from machinehub.model import SCOPES
from sandbox.protocol.access import exactness

if TYPE_CHECKING:
    from machinehub.allowance import Allowance
    from machinehub.ids import ProjectId, SessionId
    from machinehub.model import Machine

Scope = Literal["deploy", "read", "operate", "admin"]


class Standing(Enum):
    ANONYMOUS = "anonymous"
    """Knows a machine's URL, which is enough to use its sessions if it is public."""
    LOCAL = "local"
    """Somebody on this computer, of a hub that is open: they may do everything."""
    FOREIGN_PAGE = "foreign page"
    """A page in a browser on this computer that is not the hub's own: it may use machines."""
    WRONG_TOKEN = "wrong token"  # noqa: S105 - not one
    """Showed something that is not valid here: may do nothing."""
    TOKEN = "token"  # noqa: S105 - not one
    """Showed one of the hub's secret tokens: may do what its scopes say."""
    KEY = "publishable key"
    """Showed a publishable key: may use the sessions of a project's public machines."""
    MEMBER = "connect token"
    """Showed a connect token: a user of an app, who may use sessions as the token says."""


@dataclass(frozen=True, slots=True)
class Member:
    """What a connect token says (docs/access.md)."""

    sub: str
    kids: tuple[tuple[ProjectId, str], ...]
    """The projects that believe it, each by a key of its own: several may know one issuer."""
    issued_at_ms: int | None
    expires_at_ms: int
    roles: tuple[str, ...] = ()
    claims: bytes | None = None
    """What else it says, as JSON: for the machine."""
    machines: tuple[str, ...] | None = None
    """By id or name; None for all of the project."""
    sessions: tuple[str, ...] | None = None
    """Ids, or their beginnings followed by `*`; None for all."""
    events: tuple[str, ...] | None = None
    """Types as XState writes them; None for all."""

    @property
    def projects(self) -> set[ProjectId]:
        return {project for project, _ in self.kids}

    def at(self, project: ProjectId) -> Member:
        """What it says in one project: the keys and revocations of others do not count there."""
        return replace(self, kids=tuple(each for each in self.kids if each[0] == project))

    def may_send(self, type_: str) -> bool:
        """Whether the token allows events of this type."""
        return self.events is None or any(exactness(each, type_) for each in self.events)

    def may_open(self, machine: Machine, session: SessionId | None) -> bool:
        """Whether the token is for this session; None for the machine's own pages."""
        if self.machines is not None and not {machine.id, machine.name} & set(self.machines):
            return False
        if self.sessions is None or session is None:
            return True
        return any(
            session.startswith(each[:-1]) if each.endswith("*") else session == each
            for each in self.sessions
        )


@dataclass(frozen=True, slots=True)
class Principal:
    standing: Standing
    token: str | None = None
    """The name of the token or the publishable key that they showed."""
    token_ids: tuple[int, ...] = ()
    """By which those can be revoked; the hub's own token has none."""
    project: ProjectId | None = None
    """Where they may do something; None for everywhere."""
    scopes: frozenset[str] = frozenset()
    member: Member | None = None
    """Who they are, of those who showed a connect token."""
    allowance: Allowance | None = None
    """What the project of the machine where they are may still do."""
    only_looks: bool = False
    """Whether they may send no events where they are."""

    @property
    def user(self) -> str | None:
        """The subject of their connect token."""
        return self.member.sub if self.member is not None else None

    @property
    def who(self) -> str:
        """For the log."""
        if self.token is not None:
            return f"token {self.token!r}"
        return f"user {self.user!r}" if self.user is not None else "somebody on this computer"

    @property
    def is_counted(self) -> bool:
        """Whether rates apply. A developer's own load test on an open hub is no abuse."""
        return self.standing not in (Standing.LOCAL, Standing.FOREIGN_PAGE)

    def may(self, scope: Scope) -> bool:
        return self.standing is Standing.LOCAL or (
            self.standing is Standing.TOKEN and scope in self.scopes
        )

    @property
    def granted(self) -> list[str]:
        """The scopes that they have, in the usual order."""
        return [scope for scope in SCOPES if self.may(scope)]

    def must(self, scope: Scope) -> None:
        """Raises `Unauthorised` or `Forbidden` unless they may do that."""
        if self.may(scope):
            return
        match self.standing:
            case Standing.ANONYMOUS:
                raise Unauthorised(
                    "unauthorised", "this hub wants a token: Authorization: Bearer <token>"
                )
            case Standing.WRONG_TOKEN:
                raise wrong_token()
            case Standing.FOREIGN_PAGE:
                raise Forbidden(
                    "foreign_origin",
                    "an open hub's API is not for other sites' pages; configure a token",
                )
            case Standing.TOKEN:
                raise Forbidden("forbidden", f"the token lacks the scope {scope!r}")
            case _:
                raise Forbidden("forbidden", f"a {self.standing.value} is for sessions alone")

    def must_rule(self) -> None:
        """Raises as `must` does unless they may do everything, everywhere."""
        self.must("admin")
        if self.project is not None:
            raise Forbidden("forbidden", "the token is for one project, not for the whole hub")

    def reaches(self, project: ProjectId) -> bool:
        """Whether they could see anything of that project: what is outside is not there."""
        if self.project not in (None, project):
            return False
        return self.member is None or project in self.member.projects

    def must_use(self, machine: Machine, session: SessionId | None, scope: Scope) -> None:
        """Whether they may use a session of a machine that they reach, or, of None, see what the
        machine is; `scope` is what a secret token needs for it. Raises `Unauthorised`, `Forbidden`.
        """
        if self.standing is Standing.WRONG_TOKEN:
            raise wrong_token()
        if self.member is not None:
            if not self.member.may_open(machine, session):
                raise Forbidden("forbidden", "the token is for another machine or session")
            return
        if not machine.private or self.standing in (Standing.LOCAL, Standing.FOREIGN_PAGE):
            return
        if self.standing is Standing.TOKEN:
            self.must(scope)
            return
        raise Unauthorised("unauthorised", "this machine is private: it wants a connect token")

    def at(self, machine: Machine, allowance: Allowance) -> Principal:
        """Who they are for the sessions of a machine that they may use: with a secret token that is
        for looking alone, somebody who looks.
        """
        looks = self.standing is Standing.TOKEN and machine.private and not self.may("operate")
        member = self.member.at(machine.project) if self.member is not None else None
        looks = looks or self.only_looks
        return replace(self, only_looks=looks, allowance=allowance, member=member)

    def must_send(self, type_: str) -> None:
        """Raises `Forbidden` where their token does not allow such events."""
        if self.only_looks:
            raise Forbidden("forbidden", "the token lacks the scope 'operate'")
        if self.member is not None and not self.member.may_send(type_):
            raise Forbidden("forbidden", "the token does not allow events of this type")


def wrong_token() -> Unauthorised:
    """What whoever shows a token that means nothing here is told, whatever is wrong with it."""
    return Unauthorised("unauthorised", "the token is not valid here")

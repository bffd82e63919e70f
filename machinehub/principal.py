"""Who asks: what admission finds out about a request or a socket, and everything behind it takes.

Somebody is anonymous, is on this computer while the hub is open, or shows a token, which is for one
project or for the whole hub, and for some of what can be done (its scopes).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal

from machinehub.errors import Forbidden, Unauthorised
from machinehub.model import SCOPES

if TYPE_CHECKING:
    from machinehub.ids import ProjectId

Scope = Literal["deploy", "read", "operate", "admin"]


class Standing(Enum):
    ANONYMOUS = "anonymous"
    """Knows a machine's URL, which is enough to use its sessions."""
    LOCAL = "local"
    """Somebody on this computer, of a hub that is open: they may do everything."""
    FOREIGN_PAGE = "foreign page"
    """A page in a browser on this computer that is not the hub's own: it may use machines."""
    WRONG_TOKEN = "wrong token"  # noqa: S105 - not one
    """As anonymous, but showed a token that is not valid here."""
    TOKEN = "token"  # noqa: S105 - not one
    """Showed one of the hub's tokens: may do what its scopes say."""


@dataclass(frozen=True, slots=True)
class Principal:
    standing: Standing
    user: str | None = None
    """The subject of a token that names one; nothing gives such tokens yet."""
    token: str | None = None
    """The name of the token that they showed."""
    token_id: int | None = None
    """By which it can be revoked; None for the hub's own."""
    project: ProjectId | None = None
    """Where they may do something; None for everywhere."""
    scopes: frozenset[str] = frozenset()

    @property
    def who(self) -> str:
        """For the log."""
        return f"token {self.token!r}" if self.token is not None else "somebody on this computer"

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
                raise Unauthorised("unauthorised", "the token is not valid here")
            case Standing.FOREIGN_PAGE:
                raise Forbidden(
                    "foreign_origin",
                    "an open hub's API is not for other sites' pages; configure a token",
                )
            case _:
                raise Forbidden("forbidden", f"the token lacks the scope {scope!r}")

    def must_rule(self) -> None:
        """Raises as `must` does unless they may do everything, everywhere."""
        self.must("admin")
        if self.project is not None:
            raise Forbidden("forbidden", "the token is for one project, not for the whole hub")

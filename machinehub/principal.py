"""Who asks: what admission finds out about a request or a socket, and everything behind it takes.

Today somebody is anonymous, is on this computer while the hub is open, or shows a token of the hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from machinehub.errors import Forbidden, Unauthorised


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
    """Showed one of the hub's tokens: may do everything."""


@dataclass(frozen=True, slots=True)
class Principal:
    standing: Standing
    user: str | None = None
    """The subject of a token that names one; nothing gives such tokens yet."""
    token: str | None = None
    """The name of the token that they showed."""

    @property
    def who(self) -> str:
        """For the log."""
        return f"token {self.token!r}" if self.token is not None else "somebody on this computer"

    @property
    def is_counted(self) -> bool:
        """Whether rates apply. A developer's own load test on an open hub is no abuse."""
        return self.standing not in (Standing.LOCAL, Standing.FOREIGN_PAGE)

    @property
    def may_operate(self) -> bool:
        return self.standing in (Standing.LOCAL, Standing.TOKEN)

    def must_operate(self) -> None:
        """Raises `Unauthorised` or `Forbidden` unless they may deploy machines and look after
        them.
        """
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

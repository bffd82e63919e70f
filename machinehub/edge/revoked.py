"""What a listener hears whose token is not valid any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from machinehub.session.messages import Closed, Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.ids import MachineId, SessionId
    from machinehub.principal import Principal


class Watch(Protocol):
    def __call__(
        self,
        principal: Principal,
        then: Callable[[], None],
        machine: MachineId | None = None,
        session: SessionId | None = None,
    ) -> Callable[[], None]:
        """Calls `then` when what the principal showed is not valid any more, or not for that
        session. Returns what ends that.
        """
        ...


REVOKED: Final = Closed(Ending.REVOKED, "the token is not valid any more")

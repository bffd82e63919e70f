"""What sessions have to know of the version that they are on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from machinehub.ids import Digest, MachineId
    from machinehub.limits import Limits


class Terms(NamedTuple):
    """What a version allows, and whether it says itself what each member sees."""

    limits: Limits
    has_view: bool
    of_webhooks: frozenset[str] = frozenset()
    """Types of events that come by webhooks, and from no client."""


class VersionTarget(Protocol):
    """A version that sessions may begin on."""

    @property
    def number(self) -> int: ...
    @property
    def digest(self) -> Digest: ...
    @property
    def hears_presence(self) -> bool: ...
    @property
    def terms(self) -> Terms: ...


class Versions(Protocol):
    """Where sessions find out what a machine is."""

    async def target(self, machine_id: MachineId, number: int | None) -> VersionTarget:
        """The version of that number, or the active one. Raises `NotFound`."""
        ...

    async def terms_of(self, machine_id: MachineId, number: int) -> Terms:
        """What a version allows. Raises `NotFound`."""
        ...

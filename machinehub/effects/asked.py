"""The words of those who carry out what machines ask of the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from machinehub.effect import Effect
    from machinehub.egress.rules import EgressRules
    from machinehub.ids import MachineId, ProjectId, SessionKey
    from machinehub.session.port import Address
    from sandbox.protocol.effects import Answer, Request


class Leave(NamedTuple):
    """What a version may ask for."""

    project: ProjectId
    machine: str
    """The machine's name."""
    rules: EgressRules
    bounds: list[list[str]]
    """What its project and the hub let out."""


class Leaves(Protocol):
    async def of(self, machine_id: MachineId, version: int) -> Leave:
        """Raises `NotFound`, `Unavailable`."""
        ...


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and who asks."""

    request: Request
    address: Address
    """Of the session, with its version."""
    key: SessionKey
    effect: Effect
    leave: Leave

    @property
    def idempotency_key(self) -> str:
        """The same however often it is sent."""
        return f"mh-{self.key:x}-{self.effect.seq}-{self.effect.ordinal}"


class Again(Exception):
    """It may be tried again: in `after_s`, if whoever was asked said when. `answer` is what it came
    to, should there be no other try.
    """

    def __init__(self, answer: Answer, trouble: str, after_s: float | None = None) -> None:
        super().__init__(trouble)
        self.answer = answer
        self.trouble = trouble
        self.after_s = after_s


class Carrier(Protocol):
    """Who makes a request, once."""

    async def __call__(self, asked: Asked) -> Answer:
        """What it came to. Raises `Again`."""
        ...

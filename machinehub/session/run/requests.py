"""Who carries out what machines ask of the world: told once, after the parts that ask were made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from machinehub.effect import Effect
    from machinehub.ids import SessionKey
    from machinehub.session.port import Address, Requests
    from sandbox.protocol.ids import EffectId


class Nobody:
    """What is asked stays in the database."""

    def asked(self, address: Address, key: SessionKey, effects: Sequence[Effect]) -> None:
        pass

    def ended(self, key: SessionKey, effects: Collection[EffectId] | None) -> None:
        pass


class RequestsOf:
    """Of the sessions of one host."""

    def __init__(self) -> None:
        self.to: Requests = Nobody()

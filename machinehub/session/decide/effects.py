"""The requests of one session: which wait for their answers, and which answers are on their way.

Decides: that a request is answered once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.effect import WITHDRAWN, Effect
from machinehub.session.decide.answers import check_effects

if TYPE_CHECKING:
    from collections.abc import Iterable

    from machinehub.effect import Conclusion
    from machinehub.ids import Seq
    from machinehub.model import Changes
    from machinehub.session.decide.turn import Pending, Receipt
    from sandbox.protocol.ids import EffectId
    from sandbox.protocol.outbox import Outbox


class Effects:
    def __init__(self) -> None:
        self.pending: dict[EffectId, int] = {}
        """Those that wait, and their depths (`Effect.depth`)."""
        self._answering: set[EffectId] = set()
        """Those whose answers wait for their turn."""

    def due(self, effect: EffectId) -> int | None:
        """An answer has come. The request's depth; None if nobody waits for it, or another answer
        is on its way.
        """
        if effect in self._answering or effect not in self.pending:
            return None
        self._answering.add(effect)
        return self.pending[effect]

    def not_waiting(self, pending: Pending) -> None:
        """The input is on its way no longer."""
        if pending.answering is not None:
            self._answering.discard(pending.answering.effect)

    def of_turn(
        self, outbox: Outbox, pending: Pending, seq: Seq, *, effects_max: int, over: bool
    ) -> dict[EffectId, Effect | Conclusion]:
        """What an applied turn asks of the world, takes back, and is the answer to. What it takes
        back at once was never asked, and what asks when its machine has ended (`over`) neither.

        Raises `BrokenWorker`.
        """
        check_effects(outbox, waiting=self.pending.keys(), effects_max=effects_max)
        effects = {} if over else asked_in(outbox, seq, pending.now_ms, pending.depth)
        if pending.answering is not None:
            effects[pending.answering.effect] = pending.answering.conclusion
        return effects

    def apply(self, changes: Changes) -> None:
        """Folds what a turn changes into what waits."""
        for effect, change in changes.effects.items():
            if isinstance(change, Effect):
                self.pending[effect] = change.depth
            else:
                self.pending.pop(effect, None)
        if changes.finished:
            self.pending.clear()

    def restore(self, stored: dict[EffectId, int], pending: Iterable[Pending]) -> list[Receipt]:
        """Takes up what the database knows. The receipts that this settles: of answers that wait
        here, to requests that had ended after all.
        """
        self.pending = dict(stored)
        settled = []
        for each in pending:
            if each.answering is None:
                continue
            if self.is_waited_for(each):
                self._answering.add(each.answering.effect)
            elif each.receipt is not None:
                each.receipt.settled = True
                settled.append(each.receipt)
        return settled

    def is_waited_for(self, pending: Pending) -> bool:
        """Whether the input is the answer to a request that waits."""
        return pending.answering is not None and pending.answering.effect in self.pending

    def forget(self) -> None:
        """Until `restore`."""
        self.pending = {}
        self._answering = set()


def asked_in(
    outbox: Outbox, seq: Seq, now_ms: int, depth: int = 0
) -> dict[EffectId, Effect | Conclusion]:
    """What a turn asks of the world, and takes back that was asked before."""
    effects: dict[EffectId, Effect | Conclusion] = {
        effect: Effect(effect, seq, ordinal, bytes(request), now_ms, depth)
        for ordinal, (effect, request) in enumerate(outbox.requests)
    }
    for effect in outbox.withdrawn:
        if effects.pop(effect, None) is None:
            effects[effect] = WITHDRAWN
    return effects

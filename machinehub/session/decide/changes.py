"""Computes the durable changes of an applied turn from its outbox: the timers that it sets and
cancels, what it asks of the world.

`Changes.apply_to` (machinehub/model.py) applies the result to a session's pending timers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.model import NO_CHANGES, Armed, Changes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from machinehub.effect import Conclusion, Effect
    from machinehub.model import MemberChange
    from sandbox.protocol.ids import EffectId, TimerId


def changes_of(
    timers_set: Iterable[tuple[TimerId, int]],
    timers_cancelled: Iterable[TimerId],
    *,
    fired: TimerId | None,
    member: MemberChange | None = None,
    effects: dict[EffectId, Effect | Conclusion] | None = None,
    finished: bool = False,
    over: bool = False,
) -> Changes:
    """The changes of a turn that was applied.

    `fired` is the timer that came due with it, which is gone unless the turn sets it again, as an
    interval does. `finished`: the machine ended with this turn. `over`: it has ended, now or
    before, and no timer of it counts. Cancelling comes after setting: ids are never used twice.
    """
    timers: dict[TimerId, Armed | None] = {}
    if not over:
        if fired is not None:
            timers[fired] = None
        for timer, due_at_ms in timers_set:
            timers[timer] = Armed(due_at_ms)
        for timer in timers_cancelled:
            timers[timer] = None
    if not timers and member is None and not effects and not finished:
        return NO_CHANGES
    return Changes(timers=timers, member=member, effects=effects or {}, finished=finished)

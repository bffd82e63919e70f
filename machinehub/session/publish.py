"""What a committed turn changed, told to everybody: connections, waiting requests, logs, metrics.

Decides: who hears of a turn, and in which order. Nothing of a turn is visible before it comes here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from machinehub.session import frames

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.clock import Clock
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.core import Receipt, Turn
    from machinehub.session.frames import Frame
    from machinehub.session.live import LiveSession


log = logging.getLogger("machinehub.session")
Told = TypeVar("Told")


class Publisher:
    def __init__(self, clock: Clock, logs: MachineLogs, metrics: Metrics) -> None:
        self._clock = clock
        self._logs = logs
        self._metrics = metrics

    def speak(self, session: LiveSession, turn: Turn) -> None:
        cost = (
            frames.cost_of(turn.cost)
            if turn.cost is not None and (turn.logs or turn.error is not None)
            else None
        )
        if turn.error is not None:
            self._metrics.rejected.labels(code=turn.error[0]).inc()
            self._logs.add(
                session.machine_id,
                session.session_id,
                "error",
                f"{turn.error[0]}: {turn.error[1]}",
                self._clock.now_ms(),
                cost,
            )
        else:
            self._metrics.count_turn()
        for level, text in turn.logs:
            self._logs.add(
                session.machine_id, session.session_id, level, text, self._clock.now_ms(), cost
            )
        if turn.snapshot is not None and session.connections:
            update = frames.update_frame(turn.seq, turn.snapshot)
            for connection in list(session.connections.values()):
                connection.send_update(update)
        for event in turn.emitted:
            emitted = frames.emitted_frame(turn.seq, event)
            session.emitted.add(turn.seq, emitted)
            for connection in list(session.connections.values()):
                connection.send(emitted)
        if turn.pending.receipt is not None:
            answer(turn.pending.receipt)
        notify(session)


def snapshot_frame(session: LiveSession, connection_id: str | None = None) -> Frame:
    return frames.snapshot_frame(
        seq=session.seq,
        version=session.record.version,
        snapshot=session.snapshot,
        connection_id=connection_id,
        count=len(session.members),
    )


def update_all(session: LiveSession) -> None:
    """Tells everybody how the session stands, when that was not known here before."""
    if session.connections:
        update = frames.update_frame(session.seq, session.snapshot)
        for connection in list(session.connections.values()):
            connection.send_update(update)
    notify(session)


def answer(receipt: Receipt) -> None:
    """Tells whoever waits for what became of an event."""
    waiting, receipt.waiting = receipt.waiting, []
    for then in waiting:
        _call(then, receipt)


def notify(session: LiveSession) -> None:
    for notice in list(session.watchers):
        _call(notice, session)


def _call(somebody: Callable[[Told], None], what: Told) -> None:
    """One who cannot be told must not keep it from the others."""
    try:
        somebody(what)
    except Exception:
        log.exception("somebody could not be told")

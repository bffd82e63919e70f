"""What a committed turn changed, told to everybody: listeners, waiting requests, logs, metrics.

Decides: who hears of a turn, and in which order. Nothing of a turn is visible before it comes here.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from machinehub.clock import measured_s
from machinehub.session.messages import Applied, Emitted, Snapshot, Update
from machinehub.session.run.activity import Activity

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from machinehub.clock import Clock
    from machinehub.errors import HubError
    from machinehub.ids import Seq
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.decide.session import Session
    from machinehub.session.decide.turn import Receipt, Turn
    from machinehub.session.messages import Listener, Message

log = logging.getLogger("machinehub.session")


class RecentEmitted:
    """The last events that a session emitted, for a listener that comes back. Bounded in bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._events: deque[Emitted] = deque()

    def add(self, emitted: Emitted) -> None:
        self._events.append(emitted)
        self._bytes += len(emitted.event) + len(emitted.state)
        while self._bytes > self._bytes_max:
            gone = self._events.popleft()
            self._bytes -= len(gone.event) + len(gone.state)

    def after(self, seq: Seq) -> list[Emitted]:
        """What was emitted behind `seq`, as far as it is remembered."""
        return [emitted for emitted in self._events if emitted.seq > seq]


@dataclass(slots=True, eq=False)
class Audience:
    """Who hears of one session."""

    recent: RecentEmitted
    listeners: dict[Listener, None] = field(default_factory=dict)
    followers: dict[Listener, None] = field(default_factory=dict)
    """Those that hear of each input, too."""
    watchers: set[Callable[[], None]] = field(default_factory=set)
    """Requests that look at the session whenever something of it has settled."""


class Shows(Protocol):
    """Who tells of sessions whose machines say what each member sees (`views.py`)."""

    def tell(self, session: Session, turn: Turn) -> None: ...
    def tell_how_it_stands(self, session: Session) -> None: ...
    def leave(self, session: Session, listener: Listener) -> None: ...
    def is_moved(self, session: Session, listener: Listener) -> bool: ...
    def is_waited_for(self, session: Session) -> bool: ...
    def when_told(self, session: Session, then: Callable[[], None]) -> None: ...
    def drop(self, session: Session, why: HubError | None) -> None: ...


class Publisher:
    """Keeps the listeners and waiting requests of every session, and sends them committed turns."""

    def __init__(
        self, clock: Clock, logs: MachineLogs, metrics: Metrics, *, emitted_kept_bytes: int
    ) -> None:
        self._clock = clock
        self._logs = logs
        self._metrics = metrics
        self._emitted_kept_bytes = emitted_kept_bytes
        self.activity = Activity()
        self._shows: Shows
        self._audiences: dict[Session, Audience] = {}

    def show_by(self, shows: Shows) -> None:
        """Once: who tells of sessions whose machines say what each member sees."""
        self._shows = shows

    # --- who listens ------------------------------------------------------------------------------

    def audience(self, session: Session) -> Audience:
        """The session's audience, made when it is first needed."""
        audience = self._audiences.get(session)
        if audience is None:
            recent = RecentEmitted(self._emitted_kept_bytes)
            audience = self._audiences[session] = Audience(recent)
        return audience

    @property
    def listener_count(self) -> int:
        """Of all sessions."""
        return sum(len(audience.listeners) for audience in self._audiences.values())

    def listeners(self, session: Session) -> Collection[Listener]:
        audience = self._audiences.get(session)
        return audience.listeners if audience is not None else ()

    def leave(self, session: Session, listener: Listener) -> None:
        audience = self._audiences.get(session)
        if audience is not None:
            audience.listeners.pop(listener, None)
            audience.followers.pop(listener, None)
        if session.has_view:
            self._shows.leave(session, listener)

    def when_told(self, session: Session, then: Callable[[], None]) -> None:
        """Calls `then` when everybody was told of what was committed until now."""
        if session.has_view:
            self._shows.when_told(session, then)
        else:
            then()

    def has_changed_for(self, session: Session, listener: Listener) -> bool:
        """Of a turn that changed the snapshot and is being told: whether that changed what a
        listener sees.
        """
        return not session.has_view or self._shows.is_moved(session, listener)

    def is_watched(self, session: Session) -> bool:
        """Whether a connection or a request waits for something of it."""
        audience = self._audiences.get(session)
        if audience is not None and (audience.listeners or audience.watchers):
            return True
        return self.has_untold(session)

    def has_untold(self, session: Session) -> bool:
        """Whether somebody is still to be shown what was committed, or to be let in."""
        return session.has_view and self._shows.is_waited_for(session)

    def drop(self, session: Session, why: HubError | None = None) -> None:
        """The session leaves memory. Those who wait to be let in hear `why`: None for a session
        that is no more.
        """
        self._shows.drop(session, why)
        self._audiences.pop(session, None)

    # --- telling ----------------------------------------------------------------------------------

    def tell(self, session: Session, turn: Turn) -> None:
        """Everybody hears of a turn that was committed, or that there was nothing to commit of."""
        self._note(session, turn)
        if session.has_view:
            self._shows.tell(session, turn)
            return
        audience = self._audiences.get(session)
        if audience is not None and audience.followers and turn.error is None and turn.write:
            self.send(audience.followers, Applied(turn.write.entry))
        if audience is not None and turn.snapshot is not None:
            self.send(audience.listeners, Update(turn.seq, turn.snapshot))
        if turn.emitted:
            audience = self.audience(session)
            for event in turn.emitted:
                emitted = Emitted(turn.seq, bytes(event))
                audience.recent.add(emitted)
                self.send(audience.listeners, emitted)
        if turn.pending.receipt is not None:
            answer(turn.pending.receipt)
        if audience is not None and audience.watchers:
            self.notify(session)

    def send(self, listeners: Iterable[Listener], message: Message) -> None:
        """Sends `message` to every listener. An exception of one listener is logged, so that the
        others still receive the message.
        """
        for listener in list(listeners):
            try:
                listener.receive(message)
            except Exception:
                log.exception("a listener could not be told")

    def tell_how_it_stands(self, session: Session) -> None:
        """For everybody, when that was not known here before."""
        if session.has_view:
            self._shows.tell_how_it_stands(session)
            return
        listeners = self.listeners(session)
        if listeners:
            self.send(listeners, Update(session.seq, session.snapshot))
        self.notify(session)

    def notify(self, session: Session) -> None:
        """Something about the session settled: requests that wait look at it."""
        audience = self._audiences.get(session)
        for watcher in list(audience.watchers) if audience is not None else ():
            try:
                watcher()
            except Exception:
                log.exception("a waiting request could not be told")

    def _note(self, session: Session, turn: Turn) -> None:
        """Logs and metrics."""
        metrics, pending = self._metrics, turn.pending
        now_s = measured_s()
        self.activity.count(session, now_s)
        metrics.turn_total.add(now_s - pending.arrived_s)
        if pending.sent_s:
            metrics.turn_queue.add(pending.sent_s - pending.arrived_s)
        if turn.cost is not None:
            metrics.turn_guest.add(turn.cost.cpu_us / 1e6)
        if turn.error is None:
            metrics.turns.add()
            if not turn.logs:
                return
        lines = turn.logs
        if turn.error is not None:
            self._metrics.rejected.labels(code=turn.error.code).inc()
            lines = [("error", f"{turn.error.code}: {turn.error.detail}"), *lines]
        cost = turn.cost.as_json() if turn.cost is not None else None
        now_ms = self._clock.now_ms()
        for level, text in lines:
            self._logs.add(session.machine_id, session.session_id, level, text, now_ms, cost)


def snapshot_of(session: Session, *, connection_id: str | None = None, count: int = 0) -> Snapshot:
    """The session as everybody may read it now."""
    return Snapshot(session.seq, session.record.version, session.snapshot, connection_id, count)


def answer(receipt: Receipt) -> None:
    """Tells whoever waits for what became of an event."""
    waiting, receipt.waiting = receipt.waiting, []
    for then in waiting:
        try:
            then(receipt)
        except Exception:
            log.exception("the sender of an event could not be told")

"""What each member sees of a session whose machine says so itself (`export const view`).

A worker is asked after each commit: for whoever listens, and for whoever waits for the first
snapshot. The answers of one session are told in the order of its turns. While one question is under
way further turns gather, and the next question is about the last of them: in between members skip
updates, as slow clients do, but no ack and no emitted event.

Where no view can be had nothing is shown: the listener is closed, a request is refused.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from machinehub.errors import HubError, NotFound, Unavailable, ViewFailed
from machinehub.session.decide.discretion import NOT_SHOWN
from machinehub.session.messages import Closed, Emitted, Ending, Snapshot, Update
from machinehub.session.run.publisher import answer, snapshot_of
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from machinehub.ids import Seq
    from machinehub.session.decide.session import Session
    from machinehub.session.decide.turn import Turn
    from machinehub.session.messages import Listener
    from machinehub.session.run.publisher import Publisher
    from machinehub.session.run.view_questions import ViewQuestions


class Told(NamedTuple):
    """A turn that is to be told, and the snapshot right after it."""

    turn: Turn
    after: Snapshot


@dataclass(slots=True, eq=False)
class Joining:
    """Somebody who waits for the first snapshot."""

    member: bytes
    emitted_after: Seq | None
    enter: Callable[[Snapshot], None]
    """Makes them a listener, with that snapshot as the first message. May raise `HubError`."""
    listener: Listener
    entered: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class Gallery:
    """What is to be told of one session."""

    turns: deque[Told] = field(default_factory=deque)
    joining: list[Joining] = field(default_factory=list)
    members: dict[Listener, bytes] = field(default_factory=dict)
    last: dict[Listener, bytes] = field(default_factory=dict)
    """What each was shown last."""
    moved: set[Listener] = field(default_factory=set)
    """Who was shown something new by what is being told."""
    later: list[Callable[[], None]] = field(default_factory=list)
    """To be called when what is being told was told."""
    look_again: bool = False
    """Whether the session stands otherwise than was told, without a turn."""
    is_working: bool = False


class Views:
    def __init__(
        self,
        questions: ViewQuestions,
        publisher: Publisher,
    ) -> None:
        self._questions = questions
        self._publisher = publisher
        self._galleries: dict[Session, Gallery] = {}
        self._tasks = Tasks()

    def stop(self) -> None:
        self._tasks.stop()

    # --- what is to be told -----------------------------------------------------------------------

    async def admit(
        self,
        session: Session,
        listener: Listener,
        member: bytes,
        enter: Callable[[Snapshot], None],
        emitted_after: Seq | None,
    ) -> None:
        """Returns when `enter` was called with the first snapshot that the member sees. Raises what
        `enter` raises, `ViewFailed`, `Unavailable`.
        """
        entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        joining = Joining(member, emitted_after, enter, listener, entered)
        gallery = self._gallery(session)
        gallery.joining.append(joining)
        self._work_on(session, gallery)
        try:
            await entered
        except asyncio.CancelledError:
            if joining in gallery.joining:
                gallery.joining.remove(joining)
            raise

    def tell(self, session: Session, turn: Turn) -> None:
        """A turn was committed."""
        gallery = self._gallery(session)
        gallery.turns.append(Told(turn, snapshot_of(session)))
        self._work_on(session, gallery)

    def tell_how_it_stands(self, session: Session) -> None:
        gallery = self._gallery(session)
        gallery.look_again = True
        self._work_on(session, gallery)

    def when_told(self, session: Session, then: Callable[[], None]) -> None:
        """Calls `then` when all that was committed until now was told: at once if it was."""
        gallery = self._galleries.get(session)
        if gallery is None or not (gallery.is_working or gallery.turns):
            then()
        else:
            gallery.later.append(then)

    def leave(self, session: Session, listener: Listener) -> None:
        gallery = self._galleries.get(session)
        if gallery is not None:
            gallery.members.pop(listener, None)
            gallery.last.pop(listener, None)

    def is_moved(self, session: Session, listener: Listener) -> bool:
        """Whether what is being told has changed what a listener sees."""
        gallery = self._galleries.get(session)
        return gallery is not None and listener in gallery.moved

    def is_waited_for(self, session: Session) -> bool:
        """Whether somebody waits for the first snapshot, or for what a turn came to."""
        gallery = self._galleries.get(session)
        return gallery is not None and bool(gallery.joining or gallery.turns or gallery.is_working)

    def drop(self, session: Session, why: HubError | None) -> None:
        """The session leaves memory: who sent something is told what became of it, who waits hears
        `why`.
        """
        gallery = self._galleries.pop(session, None)
        if gallery is None:
            return
        _acknowledge(each.turn for each in gallery.turns)
        gallery.turns.clear()
        _call(gallery.later)
        for each in gallery.joining:
            _refuse(each, why or NotFound("no_such_session", "the session was deleted"))
        gallery.joining.clear()

    def _gallery(self, session: Session) -> Gallery:
        gallery = self._galleries.get(session)
        if gallery is None:
            gallery = self._galleries[session] = Gallery()
        return gallery

    def _work_on(self, session: Session, gallery: Gallery) -> None:
        if not gallery.is_working:
            gallery.is_working = True
            self._tasks.spawn(self._work(session, gallery))

    async def _work(self, session: Session, gallery: Gallery) -> None:
        try:
            while gallery.turns or gallery.joining or gallery.look_again:
                await self._show(session, gallery)
        finally:
            gallery.is_working = False
            self._publisher.notify(session)

    async def _show(self, session: Session, gallery: Gallery) -> None:
        """One question, about what gathered until now. Whatever becomes of it, senders are told
        what their events came to, and nobody waits for ever.
        """
        turns, now = _together(gallery.turns)
        joining, gallery.joining = gallery.joining, []
        now = now or snapshot_of(session)
        try:
            try:
                await self._tell(session, gallery, turns, now)
            except HubError as error:
                there = list(gallery.members)
                self._close(session, gallery, there, Ending.UNAVAILABLE, error.detail)
            await self._let_in(session, gallery, joining, now)
        except HubError as error:
            for each in joining:
                _refuse(each, error)
        finally:
            _acknowledge(turns)
            gallery.moved.clear()
            if not gallery.turns:
                _call(gallery.later)
            for each in joining:
                _refuse(each, Unavailable("unavailable", "what you may see could not be found out"))
        self._publisher.notify(session)

    async def _tell(
        self, session: Session, gallery: Gallery, turns: list[Turn], now: Snapshot
    ) -> None:
        """Whoever listens is told of committed turns. Raises `Unavailable`."""
        looks, gallery.look_again = gallery.look_again, False
        changed = looks or any(turn.snapshot is not None for turn in turns)
        emitted = [
            Emitted(turn.seq, bytes(event), now.state) for turn in turns for event in turn.emitted
        ]
        if emitted and not session.gone:
            for each in emitted:
                self._publisher.audience(session).recent.add(each)
        if not changed and not emitted:
            return
        there = dict(gallery.members)
        events = [each.event for each in emitted]
        seen = await self._questions.ask(session, now.state, events, there.values())
        told = _Told()
        for listener, member in there.items():
            if listener not in gallery.members:
                continue  # gone meanwhile
            view = seen[member]
            if view is None:
                self._close(session, gallery, [listener], Ending.UNSEEN, NOT_SHOWN)
                continue
            if changed and gallery.last.get(listener) != view.state:
                gallery.last[listener] = view.state
                gallery.moved.add(listener)
                self._publisher.send([listener], told.update(now.seq, view.state))
            for said, text in zip(emitted, view.emitted, strict=True):
                if text is not None:
                    self._publisher.send([listener], told.emitted(said.seq, text))
        _acknowledge(turns)

    async def _let_in(
        self, session: Session, gallery: Gallery, joining: list[Joining], now: Snapshot
    ) -> None:
        """Those who wait get their first snapshot, and what they missed. Raises `Unavailable`."""
        seen = await self._questions.ask(session, now.state, [], [each.member for each in joining])
        for each in joining:
            view = seen[each.member]
            if each.entered.done():
                continue  # they are gone
            if view is None:
                _refuse(each, _not_shown())
                continue
            try:
                each.enter(Snapshot(now.seq, now.version, view.state))
            except HubError as error:
                _refuse(each, error)
                continue
            gallery.members[each.listener] = each.member
            gallery.last[each.listener] = view.state
            each.entered.set_result(None)
            if each.emitted_after is not None:
                await self._catch_up(session, each, each.emitted_after, now)

    async def _catch_up(self, session: Session, joined: Joining, after: Seq, now: Snapshot) -> None:
        if session.gone:
            return
        recent = self._publisher.audience(session).recent.after(after)
        missed = [each for each in recent if each.seq <= now.seq]
        for state, group in itertools.groupby(missed, lambda each: each.state or now.state):
            together = list(group)
            events = [each.event for each in together]
            seen = await self._questions.ask(session, state, events, [joined.member])
            view = seen[joined.member]
            for said, text in zip(together, view.emitted if view else [], strict=False):
                if text is not None:
                    self._publisher.send([joined.listener], Emitted(said.seq, text))

    def _close(
        self,
        session: Session,
        gallery: Gallery,
        listeners: Iterable[Listener],
        why: Ending,
        detail: str,
    ) -> None:
        for listener in list(listeners):
            gallery.members.pop(listener, None)
            gallery.last.pop(listener, None)
            self._publisher.leave(session, listener)
            self._publisher.send([listener], Closed(why, detail))

    # --- one request ------------------------------------------------------------------------------

    async def shown(self, session: Session, member: bytes, snapshot: Snapshot) -> Snapshot:
        """A snapshot of the session as a member sees it. Raises `ViewFailed`, `Unavailable`."""
        view = (await self._questions.ask(session, snapshot.state, [], [member]))[member]
        if view is None:
            raise _not_shown()
        return Snapshot(snapshot.seq, snapshot.version, view.state, is_personal=True)


class _Told:
    """Messages: those with the same content are one, encoded once, however many hear it."""

    def __init__(self) -> None:
        self._updates: dict[bytes, Update] = {}
        self._emitted: dict[tuple[Seq, bytes], Emitted] = {}

    def update(self, seq: Seq, state: bytes) -> Update:
        found = self._updates.get(state)
        if found is None:
            found = self._updates[state] = Update(seq, state)
        return found

    def emitted(self, seq: Seq, event: bytes) -> Emitted:
        found = self._emitted.get((seq, event))
        if found is None:
            found = self._emitted[seq, event] = Emitted(seq, event)
        return found


def _together(told: deque[Told]) -> tuple[list[Turn], Snapshot | None]:
    """What one question is about: turns up to the first that emitted something, which members are
    shown by the snapshot of that moment; and the snapshot after them.
    """
    turns: list[Turn] = []
    after = None
    while told:
        turn, after = told.popleft()
        turns.append(turn)
        if turn.emitted:
            break
    return turns, after


def _acknowledge(turns: Iterable[Turn]) -> None:
    for turn in turns:
        if turn.pending.receipt is not None:
            answer(turn.pending.receipt)


def _call(later: list[Callable[[], None]]) -> None:
    calls, later[:] = list(later), []
    for then in calls:
        then()


def _refuse(joining: Joining, error: HubError) -> None:
    if not joining.entered.done():
        joining.entered.set_exception(error)
        joining.entered.exception()  # nobody may be waiting any more


def _not_shown() -> ViewFailed:
    return ViewFailed("view_failed", NOT_SHOWN)

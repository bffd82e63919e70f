"""One of Stately's clients: a replica of the machine that runs by itself, and is kept up to date.

The client applies its own events at once, and is sent all others in the order of the journal
(`Applied`). It is sent a snapshot when it is new, and never again: another one would make it a
second actor that nobody holds. So a client that comes back, known by its socket's `_pk`, is sent
the inputs that it missed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.closecodes import CloseCode
from machinehub.errors import BadRequest, HubError, error_of
from machinehub.ids import EventId, Seq
from machinehub.protocols.sky import frames, superjson
from machinehub.session.decide.identity import shown_id
from machinehub.session.messages import Applied, Closed, Ending, Presence, Settled, Snapshot, Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.clock import Clock
    from machinehub.edge.client_rates import ClientRates
    from machinehub.edge.websocket_connection import HubSocket
    from machinehub.limits import Limits
    from machinehub.metrics import Metrics
    from machinehub.model import Entry
    from machinehub.protocols.sky.frames import Dialect
    from machinehub.protocols.sky.places import Progress
    from machinehub.session.messages import Message
    from machinehub.session.port import Subscription

WAITING_MAX: Final = 1_000
"""Inputs that wait while a client is shown what it missed; more are read from the journal."""
EARLY_MAX: Final = 256
EARLY_BYTES_MAX: Final = 256 * 1024
"""What a client sends before it is let in, and is looked at then."""
INIT_BYTES_MAX: Final = 16 * 1024
INIT_TYPE: Final = b"actor.init"
TOGETHER: Final = 32
"""Inputs that a client is sent at once of those that it missed."""
RELOAD: Final = "reload the page"
_ENDINGS: Final = {
    Ending.RESTARTED: (CloseCode.MOVED, f"the session was started anew: {RELOAD}"),
    Ending.UNSEEN: (CloseCode.VIEW_FAILED, "what this client may see cannot be found out"),
    Ending.REVOKED: (CloseCode.SKY_UNAUTHORISED, "the key is not valid any more"),
}
"""What is said as an error before the socket is closed."""
_SILENT: Final = {
    Ending.DELETED: CloseCode.NO_SUCH_SESSION,
    Ending.UNAVAILABLE: CloseCode.TRY_AGAIN_LATER,
    Ending.GOING_AWAY: CloseCode.GOING_AWAY,
}


class Init(msgspec.Struct):
    """The first frame on each socket: `actor.init`. Its `apiBaseURL` is not read."""

    api_key: str | None
    actor_id: str
    session_id: str


class SkyClient:
    """`on_init` hears of the first frame, `on_behind` that inputs were missed, `on_over` that this
    client has nothing more to do with its session.
    """

    def __init__(
        self,
        socket: HubSocket,
        limits: Limits,
        clock: Clock,
        metrics: Metrics,
        *,
        event_ids: str,
        nonce: str,
        on_init: Callable[[Init], None],
        on_behind: Callable[[], None],
        on_over: Callable[[Ending], None],
    ) -> None:
        """The events of this client have ids that begin with `event_ids`, on this socket followed
        by `nonce`.
        """
        self._socket = socket
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._ids = event_ids
        self._own = event_ids
        self._nonce = nonce
        self._on_init = on_init
        self._on_behind = on_behind
        self._on_over = on_over
        self._sent = 0
        self._init: Init | None = None
        self._early: list[bytes] = []
        self._early_bytes = 0
        self._writable = asyncio.Event()
        self._waiting: list[Applied] = []
        self._rates: ClientRates | None = None
        self._subscription: Subscription | None = None
        self._progress: Progress | None = None
        self._dialect: Dialect
        self._is_live = False
        """Whether inputs are sent as they come."""
        self._is_started = False
        self._players: int | None = None
        self._heard_of = Seq(0)
        self.version = 0
        self.position = Seq(0)

    # --- letting it in ----------------------------------------------------------------------------

    @property
    def init(self) -> Init:
        """The first frame, once it has come."""
        assert self._init is not None
        return self._init

    @property
    def api_key(self) -> str | None:
        return self._init.api_key if self._init is not None else None

    def enter(
        self,
        subscription: Subscription,
        rates: ClientRates | None,
        progress: Progress,
        dialect: Dialect,
    ) -> None:
        self._subscription, self._rates, self._progress = subscription, rates, progress
        self._dialect = dialect
        self._socket.on_pong = progress.answered

    def start(self, seq: Seq, beta: Any, snapshot: bytes) -> None:
        """A new client becomes a replica of the session as it was after input `seq`."""
        assert self._progress is not None
        self._write(frames.start_frame(self.api_key, beta, snapshot))
        self.position = seq
        self._progress.starts_at(seq)
        self._begin()

    def resume(self, seq: Seq) -> None:
        """A client that had heard everything up to `seq` goes on."""
        assert self._progress is not None
        self.position = seq
        self._progress.goes_on_at(seq)
        self._begin()

    def _begin(self) -> None:
        self._is_started = True
        if self._players is not None:
            self._write(frames.players_frame(self.api_key, joined=True, count=self._players))

    def send_early(self, *, as_own: bool) -> None:
        """What it sent before it was let in: its own events, or, for a client that is new, such as
        it has to be sent as well, since nothing is known of its replica.
        """
        self._ids = self._own if as_own else f"early-{self._own}"
        early, self._early = self._early, []
        for data in early:
            self._try(self._send_early, data)
        self._ids = self._own

    def _send_early(self, data: bytes) -> None:
        message = _message_of(data)
        if message.get("type") != "actor.send":
            raise BadRequest("bad_frame", "a frame's type is actor.init or actor.send")
        self._send(message)

    # --- what it is sent --------------------------------------------------------------------------

    async def send_missed(self, entries: list[Entry]) -> bool:
        """Sends what it missed, as fast as it reads. False if that does not go on from where it
        is.
        """
        for at, entry in enumerate(entries):
            if entry.seq != self.position + 1:
                return False
            self._apply(Applied(entry))
            if at % TOGETHER == 0:
                await asyncio.sleep(0)  # or nothing of it would leave
                while self._socket.write_paused:
                    self._writable.clear()
                    await self._writable.wait()
        return True

    @property
    def latest(self) -> Seq:
        """Up to which input there is something to be sent: a session that is on another node is
        known by what came from there.
        """
        assert self._subscription is not None
        return max(self._heard_of, self._subscription.seq)

    def go_on(self) -> bool:
        """It is sent what came meanwhile, and what comes. False if some of that was dropped."""
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            if message.entry.seq == self.position + 1:
                self._apply(message)
        self._is_live = self.position >= self.latest
        return self._is_live

    def receive(self, message: Message) -> None:
        """From the session."""
        if isinstance(message, Applied):
            self._hear(message)
        elif isinstance(message, Update):
            self._heard_of = max(self._heard_of, message.seq)
            if self._is_live and message.seq > self.position:
                self._fall_behind()
        elif isinstance(message, Settled):
            self._settle(message)
        elif isinstance(message, Presence):
            self._count_players(message)
        elif isinstance(message, Snapshot):
            self._heard_of = max(self._heard_of, message.seq)
            self.version = message.version
        elif isinstance(message, Closed):
            self._end(message)

    def _hear(self, message: Applied) -> None:
        self._heard_of = max(self._heard_of, message.entry.seq)
        if not self._is_live:
            if len(self._waiting) >= WAITING_MAX:
                self._waiting.clear()  # they are in the journal
            self._waiting.append(message)
        elif message.entry.seq == self.position + 1:
            self._apply(message)
        elif message.entry.seq > self.position:
            self._fall_behind()

    def _fall_behind(self) -> None:
        self._is_live = False
        self._on_behind()

    def _apply(self, message: Applied) -> None:
        entry = message.entry
        self.position = entry.seq
        event_id = shown_id(entry.event_id)
        if event_id is None or not event_id.startswith(self._own):
            frame = message.encoded(self._dialect.encoder(self.api_key))
            if frame:
                self._write(frame)
        if self._progress is not None:
            self._progress.moved()

    def _settle(self, message: Settled) -> None:
        """Its replica has applied the event already: that the session did not is an error."""
        if message.error is not None and message.error.code != "session_finished":
            self.refuse(error_of(message.error))

    def _count_players(self, message: Presence) -> None:
        before, self._players = self._players, message.count
        if not self._is_started:
            return
        news = message.news
        if news is None:
            if before != message.count:
                joined = before is None or message.count > before
                self._tell_players(joined=joined)
            return
        if news.joined:
            self._tell_players(joined=True)
        if news.left:
            self._tell_players(joined=False)

    def _tell_players(self, *, joined: bool) -> None:
        assert self._players is not None
        self._write(frames.players_frame(self.api_key, joined=joined, count=self._players))

    def _end(self, message: Closed) -> None:
        self._on_over(message.why)
        if message.why is Ending.DELETED:
            self._write(frames.stop_frame(self.api_key))
        code, said = _ENDINGS.get(message.why, (_SILENT.get(message.why), ""))
        if said:
            self._write(frames.error_frame(self.api_key, said))
        self.close(code or CloseCode.POLICY_VIOLATION, message.detail)

    def refuse(self, error: HubError) -> None:
        """Tells of an error. Without a first frame the client would not listen: it ignores what
        does not carry its key.
        """
        self._metrics.refused.labels(code=error.code).inc()
        if self._init is not None:
            said = f"{error.detail} ({error.code})"
            self._write(frames.error_frame(self.api_key, said))

    def ping(self, payload: bytes) -> None:
        self._socket.write_ping(payload)

    def _write(self, frame: bytes) -> None:
        if not self._socket.offer(frame, unsent_bytes_max=self._limits.unsent_bytes):
            self._metrics.refused.labels(code="slow_reader").inc()
            self.close(CloseCode.LIMIT_EXCEEDED, "the client reads too slowly")

    def close(self, code: CloseCode, reason: str) -> None:
        """Its last answer may still say what it has heard."""
        if self._progress is not None:
            self._progress.ask()
        self._socket.close(code, reason)

    # --- what it says -----------------------------------------------------------------------------

    def writable_again(self) -> None:
        self._writable.set()

    def receive_binary(self) -> None:
        self.close(CloseCode.UNSUPPORTED_DATA, "frames are superjson text")

    def receive_text(self, data: bytes) -> None:
        try:
            data.decode()
        except UnicodeDecodeError:
            self.close(CloseCode.INVALID_DATA, "the text is not UTF-8")
            return
        self._try(self._read if self._is_started else self._read_early, data)

    def _try(self, read: Callable[[bytes], None], data: bytes) -> None:
        try:
            read(data)
        except HubError as error:
            self._refuse_frame(error)

    def _read(self, data: bytes) -> None:
        """Raises `HubError`."""
        message = _message_of(data)
        match message.get("type"):
            case "actor.send":
                if self._rates is not None:
                    self._rates.take_event(len(data), self._clock.monotonic_s())
                self._send(message)
            case "actor.init":
                self._initialise(message)
            case _:
                raise BadRequest("bad_frame", "a frame's type is actor.init or actor.send")

    def _read_early(self, data: bytes) -> None:
        """A frame of somebody who is not let in yet, perhaps of nobody known: only a first frame is
        looked into. Raises `HubError`.
        """
        if self._init is None and INIT_TYPE in data and len(data) <= INIT_BYTES_MAX:
            message = _message_of(data)
            if message.get("type") == INIT_TYPE.decode():
                self._initialise(message)
                return
        if self._init is None and b"actor.send" not in data:
            raise BadRequest("bad_frame", "a frame's type is actor.init or actor.send")
        self._early_bytes += len(data)
        if len(self._early) >= EARLY_MAX or self._early_bytes > EARLY_BYTES_MAX:
            self.close(CloseCode.LIMIT_EXCEEDED, "too much before actor.start")
        else:
            self._early.append(data)

    def _initialise(self, message: Any) -> None:
        try:
            init = Init(message.get("apiKey"), message["actorId"], message["sessionId"])
            msgspec.convert(msgspec.to_builtins(init), Init)
        except (KeyError, msgspec.ValidationError):
            raise BadRequest(
                "bad_frame", "actor.init has an apiKey, an actorId and a sessionId, each a text"
            ) from None
        if self._init is None:
            self._init = init
            self._on_init(init)
        elif self._init != init:
            raise BadRequest("bad_frame", "a socket is for one session, with one key")

    def _send(self, message: Any) -> None:
        event = message.get("event")
        try:
            if message.get("apiKey") != self.api_key:
                raise BadRequest("bad_frame", "a socket is for one session, with one key")
            if not isinstance(event, dict) or not isinstance(event.get("type"), str):
                raise BadRequest("bad_frame", "actor.send has an event, which has a type")
            event.pop("sendToSky", None)  # which says to the client itself where it goes
            self._sent += 1
            assert self._subscription is not None
            self._subscription.send(
                frames.quote(event), EventId(f"{self._ids}{self._nonce}.{self._sent}")
            )
        except HubError as error:
            if error.code != "session_finished":
                self.refuse(error)

    def _refuse_frame(self, error: HubError) -> None:
        if self._rates is not None and not self._rates.may_send_other(self._clock.monotonic_s()):
            self.close(CloseCode.LIMIT_EXCEEDED, "too many frames")
            return
        self.refuse(error)
        if self._init is None:
            self.close(CloseCode.POLICY_VIOLATION, error.detail)


def _message_of(data: bytes) -> dict[str, Any]:
    """Raises `BadRequest`."""
    try:
        message = superjson.read(data)
    except superjson.NotSuperjson as error:
        raise BadRequest("bad_frame", str(error)) from None
    if not isinstance(message, dict):
        raise BadRequest("bad_frame", "a frame is an object")
    return message

"""A socket of one of Stately's clients, from its first frame to its end.

Decides: who is let into which session, and whether a client is new, or comes back and is to be sent
what it missed. Facts about the clients come from the published packages (docs/stately-sky.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from machinehub.closecodes import CloseCode
from machinehub.edge.addresses import check_session_id
from machinehub.edge.admission import principal_of
from machinehub.edge.client_rates import ClientRates
from machinehub.edge.revoked import REVOKED, Watch
from machinehub.errors import BadRequest, Conflict, Forbidden, HubError, Unauthorised, Unavailable
from machinehub.protocols.sky import rooms
from machinehub.protocols.sky.client import RELOAD, SkyClient
from machinehub.protocols.sky.frames import Dialect
from machinehub.protocols.sky.places import Places, Progress
from machinehub.protocols.sky.snapshots import has_history, nodes_of, to_beta, unnamed_in
from machinehub.session.messages import Closed, Ending
from machinehub.session.port import Visitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope

    from machinehub.clock import Clock, Entropy
    from machinehub.edge.gate import Gate
    from machinehub.edge.websocket_connection import HubSocket
    from machinehub.ids import Digest, MachineId, Seq, SessionId
    from machinehub.limits import Limits
    from machinehub.metrics import Metrics
    from machinehub.model import Entry, Machine, Version
    from machinehub.principal import Principal
    from machinehub.session.port import Address, Sessions

INIT_S: Final = 10.0
"""How long the first frame is waited for."""
ENTRIES_AT_ONCE: Final = 500
KEY_CHARS_MIN: Final = 16
"""A `_pk` that could be guessed makes nobody a known participant."""
PK_CHARS_MAX: Final = 128
_PK: Final = re.compile(rb"(?:^|[?&])_pk=([^&#]*)")
"""A room's name with a question mark in it, which PartySocket does not encode, moves it."""
LAST_ATTEMPT: Final = 2**31 - 1
"""Behind every attempt at one seq."""


OVER_S: Final = 600.0
OVER_MAX: Final = 10_000
DIALECTS_MAX: Final = 1_000

Known = tuple["MachineId", "SessionId", bytes]
"""A client: its machine, its session, and what its `_pk` comes to."""


class Target(Protocol):
    @property
    def version(self) -> Version: ...


class Machines(Protocol):
    """The catalog, as it is needed here."""

    async def machine(self, machine_id: MachineId) -> Machine:
        """Raises `NotFound`."""
        ...

    async def target(self, machine_id: MachineId, number: int | None) -> Target:
        """The version of that number, or the active one. Raises `NotFound`."""
        ...


class Over:
    """Clients whose sessions were deleted or started anew while they were there. They come back, as
    their sockets do after whatever is said: they would begin the session again, or hold a replica
    of another one.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._over: OrderedDict[Known, tuple[float, Ending]] = OrderedDict()

    def add(self, client: Known, why: Ending) -> None:
        self._over[client] = self._clock.monotonic_s() + OVER_S, why
        self._over.move_to_end(client)
        if len(self._over) > OVER_MAX:
            self._over.popitem(last=False)

    def find(self, client: Known) -> Ending | None:
        until_s, why = self._over.get(client, (0.0, Ending.DELETED))
        return why if until_s > self._clock.monotonic_s() else None


class Dialects:
    """Those of the versions that were asked for last."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[Digest, bool], Dialect] = OrderedDict()

    def of(self, version: Version, *, early: bool) -> Dialect:
        name = version.digest, early
        found = self._known.get(name)
        if found is None:
            states = frozenset(str(node.get("id")) for node in nodes_of(version.definition))
            found = self._known[name] = Dialect(states, early=early)
            if len(self._known) > DIALECTS_MAX:
                self._known.popitem(last=False)
        return found


@dataclass(frozen=True, slots=True)
class Parts:
    """What all connections work with."""

    sessions: Sessions
    machines: Machines
    clock: Clock
    entropy: Entropy
    limits: Limits
    metrics: Metrics
    gate: Gate
    identify: Callable[[Scope, list[str]], Awaitable[Principal | None]]
    """Finds out whose keys those are that a frame shows; None where they mean nothing."""
    watch: Watch
    places: Places
    clients: dict[Known, SkyClient]
    """Who is here."""
    over: Over
    dialects: Dialects


class Connection:
    """One socket, from its first frame to its end."""

    def __init__(self, parts: Parts, scope: Scope, socket: HubSocket) -> None:
        self._parts = parts
        self._scope = scope
        found = _PK.search(scope["query_string"])
        shown = found[1].decode("latin-1") if found else ""
        pk = shown if 0 < len(shown) <= PK_CHARS_MAX else parts.entropy.connection_id()
        self._key = pk if len(pk) >= KEY_CHARS_MIN and pk == shown else None
        self._name = hashlib.sha256(pk.encode()).digest()[:16]
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._catching_up: asyncio.Task[None] | None = None
        self._address: Address
        self.client = SkyClient(
            socket,
            parts.limits,
            parts.clock,
            parts.metrics,
            event_ids=f"sky.{self._name.hex()}.",
            nonce=parts.entropy.connection_id(),
            on_init=lambda _init: self._first.set_result(None),
            on_behind=self._catch_up_soon,
            on_over=self._end,
        )
        socket.listen(self.client, high_water_bytes=parts.limits.unsent_bytes_soft)

    async def serve(self, receive: Receive) -> None:
        """Until the client goes."""
        gone = asyncio.ensure_future(_disconnected(receive))
        with contextlib.ExitStack() as leaving:
            leaving.callback(gone.cancel)
            leaving.callback(lambda: self._catching_up and self._catching_up.cancel())
            try:
                await asyncio.wait(
                    {gone, self._first}, timeout=INIT_S, return_when=asyncio.FIRST_COMPLETED
                )
                if gone.done():
                    return
                if not self._first.done():
                    raise BadRequest("bad_frame", "no actor.init came")
                entering = asyncio.ensure_future(self._enter(leaving))
                leaving.callback(entering.cancel)
                await asyncio.wait({gone, entering}, return_when=asyncio.FIRST_COMPLETED)
                if not entering.done():
                    return
                entering.result()
            except HubError as error:
                self.client.refuse(error)
                self.client.close(_close_code(error), error.detail)
            else:
                await gone
        await self._parts.places.settle()

    # --- letting it in ----------------------------------------------------------------------------

    async def _enter(self, leaving: contextlib.ExitStack) -> None:
        """Raises `HubError`."""
        parts, client = self._parts, self.client
        init = client.init
        actor = rooms.read_actor(init.actor_id)
        session = check_session_id(init.session_id, chars_max=parts.limits.session_id_chars)
        self._address = address = actor.address(session)
        shown = [init.api_key] if init.api_key else []
        identified = await parts.identify(self._scope, shown) or principal_of(self._scope)
        principal = await parts.gate.enter(identified, address, "operate")
        if (why := parts.over.find(self._known)) is not None:
            self.client.receive(Closed(why, "the session is another one by now"))
            return
        if principal.only_looks:
            await parts.sessions.members(address)  # or there is none, and looking begins none
        version = await self._followed(address, actor.version)
        assert principal.allowance is not None
        leaving.callback(principal.allowance.connect())
        progress = Progress(address, self._name, client, parts.places)
        self._take_over(leaving)
        subscription = await parts.sessions.subscribe(
            address, client, Visitor(principal, self._key), inputs=True
        )
        leaving.callback(subscription.close)
        leaving.callback(progress.leave)
        if actor.version is not None and actor.version != client.version:
            raise Conflict(
                "other_version",
                f"the session is on version {client.version} of the machine, and this app was"
                f" generated from version {actor.version}: run xstate sky --refetch, or use"
                " another session",
            )
        rates = None
        if principal.is_counted:
            rates = ClientRates(parts.limits, subscription.limits)
        is_early = rooms.is_early(self._scope["raw_path"])
        dialect = parts.dialects.of(version, early=is_early)
        client.enter(subscription, rates, progress, dialect)
        leave = parts.watch(principal, lambda: client.receive(REVOKED), address.machine_id, session)
        leaving.callback(leave)
        await self._bring_up_to_date(version)

    async def _followed(self, address: Address, version: int | None) -> Version:
        """The version that the client is a replica of, if such a one can be right. Raises
        `HubError`.
        """
        found = (await self._parts.machines.target(address.machine_id, version)).version
        if found.definition.get("view"):
            raise Forbidden(
                "forbidden",
                "the machine says itself what each member sees: it has no replicas",
            )
        if rooms.is_early(self._scope["raw_path"]) and has_history(found.definition):
            raise Conflict(
                "not_persistable",
                "XState 5.0.0-beta.37 cannot restore history states: use the hub's own client",
            )
        return found

    def _take_over(self, leaving: contextlib.ExitStack) -> None:
        """A socket that the client has lost, and the hub not yet, is closed."""
        clients, known = self._parts.clients, self._known
        earlier = clients.get(known)
        if earlier is not None:
            earlier.close(CloseCode.GOING_AWAY, "the client has come back on another socket")
        clients[known] = self.client

        def forget() -> None:
            if clients.get(known) is self.client:
                del clients[known]

        leaving.callback(forget)

    @property
    def _known(self) -> Known:
        return self._address.machine_id, self._address.session_id, self._name

    def _end(self, why: Ending) -> None:
        if why in (Ending.DELETED, Ending.RESTARTED):
            self._parts.over.add(self._known, why)

    # --- what it missed ---------------------------------------------------------------------------

    async def _bring_up_to_date(self, version: Version) -> None:
        parts, client, address = self._parts, self.client, self._address
        place = await parts.places.find(address, self._name)
        if place is None:
            client.send_early(as_own=False)
            persisted = await parts.sessions.persisted(address)
            client.send_early(as_own=False)
            snapshot = msgspec.json.decode(persisted.state)
            beta = to_beta(snapshot, unnamed_in(version.definition))
            client.start(persisted.seq, beta, persisted.state)
        elif place > client.latest:  # the database was put back to an earlier moment
            raise _away_too_long()
        else:
            client.resume(place)
            client.send_early(as_own=True)
        await self._catch_up()

    def _catch_up_soon(self) -> None:
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.ensure_future(self._catch_up_again())

    async def _catch_up_again(self) -> None:
        try:
            await self._catch_up()
        except HubError as error:
            self.client.refuse(error)
            self.client.close(_close_code(error), error.detail)

    async def _catch_up(self) -> None:
        """Sends what stands in the journal behind the client's position, then what comes. Raises
        `HubError`.
        """
        client = self.client
        while True:
            until = client.latest
            while client.position < until:
                entries = await self._entries_behind(client.position)
                if not entries or not await client.send_missed(entries):
                    raise _away_too_long()
            if client.go_on():
                return

    async def _entries_behind(self, seq: Seq) -> list[Entry]:
        """Some of the inputs that were applied, if there are any."""
        after = seq, LAST_ATTEMPT
        while True:
            found = await self._parts.sessions.journal_of(
                self._address, after=after, limit=ENTRIES_AT_ONCE
            )
            applied = [each for each in found if each.error is None]
            if applied or len(found) < ENTRIES_AT_ONCE:
                return applied
            after = found[-1].seq, found[-1].attempt


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "websocket.disconnect":
        pass


def _away_too_long() -> Conflict:
    return Conflict(
        "history_pruned",
        f"this client was away for too long to be sent what it missed: {RELOAD}",
    )


def _close_code(error: HubError) -> CloseCode:
    match error:
        case Unauthorised():
            return CloseCode.SKY_UNAUTHORISED
        case Unavailable():
            return CloseCode.TRY_AGAIN_LATER
    return CloseCode.POLICY_VIOLATION

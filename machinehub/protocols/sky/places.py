"""Up to where each of Stately's clients has heard its session.

Their protocol knows neither numbers nor acknowledgements, and a client that comes back must be sent
what it missed and nothing twice. So what was sent is followed by a WebSocket ping that says up to
which input; its pong says that the client has it. Those places are kept with the session, since the
hub may be another one when the client comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.errors import HubError
from machinehub.ids import Seq
from machinehub.session.port import Place

if TYPE_CHECKING:
    from machinehub.session.port import Address, Sessions

PING_EVERY_S: Final = 0.1
"""The least time between two pings of one client: what was sent meanwhile is asked for together."""
KEEP_EVERY_S: Final = 0.1
"""The same for writing down what clients answered, all of them together."""
RETRY_S: Final = 1.0
_PAYLOAD: Final = struct.Struct(">Q")


class Asked(Protocol):
    """A client, as it is asked."""

    @property
    def position(self) -> Seq:
        """Up to which input it was sent what there is."""
        ...

    def ping(self, payload: bytes) -> None: ...


class Progress:
    """One client's place."""

    def __init__(self, address: Address, name: bytes, client: Asked, places: Places) -> None:
        self._address = address
        self._name = name
        self._client = client
        self._places = places
        self._confirmed = Seq(0)
        self._asked = Seq(0)
        """What the last ping said."""
        self._timer: asyncio.TimerHandle | None = None
        self._rests_until_s = 0.0

    def starts_at(self, seq: Seq) -> None:
        """The client is new, and is sent the session as it was then: it is known only when it has
        answered. One whose connection broke before that is new once more.
        """
        self._confirmed = self._asked = Seq(seq - 1)
        self.moved()

    def goes_on_at(self, seq: Seq) -> None:
        self._confirmed = self._asked = seq

    def moved(self) -> None:
        """The client was sent something, or there was something that it need not be sent."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if (wait_s := self._rests_until_s - loop.time()) > 0:
            self._timer = loop.call_later(wait_s, self.ask)
        else:
            self.ask()

    def ask(self) -> None:
        """Asks about everything that was sent until now."""
        self.leave()
        position = self._client.position
        if position > self._asked:
            self._asked = position
            self._rests_until_s = asyncio.get_running_loop().time() + PING_EVERY_S
            self._client.ping(_PAYLOAD.pack(position))

    def answered(self, payload: bytes) -> None:
        """A pong: of a ping of this client, or one that it made up."""
        if len(payload) != _PAYLOAD.size:
            return
        seq = Seq(_PAYLOAD.unpack(payload)[0])
        if self._confirmed < seq <= self._asked:
            self._confirmed = seq
            self._places.note(Place(self._address, self._name, seq))

    def leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Places:
    """Writes places down, those of all clients together."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._noted: dict[tuple[Address, bytes], Place] = {}
        """What is not written yet."""
        self._room = asyncio.Lock()
        self._writing: asyncio.Task[None] | None = None

    async def find(self, address: Address, name: bytes) -> Seq | None:
        """Where a client is known to be; None for one that is new. Raises `Unavailable`."""
        await self.settle()
        return await self._sessions.place_of(address, name)

    def note(self, place: Place) -> None:
        self._noted[place.address, place.client] = place
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write_on())

    async def settle(self) -> None:
        """What was noted until now is written, if it can be."""
        with contextlib.suppress(HubError):
            await self._write()

    async def _write_on(self) -> None:
        try:
            while self._noted:
                try:
                    await self._write()
                    await asyncio.sleep(KEEP_EVERY_S)
                except HubError:  # the database is away: what it does not know is sent again
                    await asyncio.sleep(RETRY_S)
        finally:
            self._writing = None

    async def _write(self) -> None:
        async with self._room:  # or what is being written would be read as it was before
            noted, self._noted = self._noted, {}
            if not noted:
                return
            try:
                await self._sessions.keep_places(list(noted.values()))
            except BaseException:
                self._noted = noted | self._noted
                raise

"""Frames to Stately's clients: superjson with the recipient's own `apiKey`, without which they
ignore a frame.

What all clients of a session hear is encoded once for each key (`Dialect.encoder`), however many
listen with it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.edge.websocket_frames import text_frame
from machinehub.model import Kind
from machinehub.session.decide.identity import read_sender
from sandbox.protocol.inputs import read_input

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from machinehub.model import Entry
    from machinehub.session.messages import Applied

KEYS_REMEMBERED: Final = 256
_AFTER: Final = "xstate.after."

quote: Final = msgspec.json.Encoder().encode


class _Sender(msgspec.Struct, omit_defaults=True):
    """Who sent an event, as everybody in the session may know it: without what their token says
    for the machine alone.
    """

    id: str
    user: str | None = None
    roles: tuple[str, ...] = ()


def frame(api_key: str | None, *fields: bytes) -> bytes:
    """`fields` are `"name":value` each. A client that has no key expects a frame without one."""
    key = (b'"apiKey":%b' % quote(api_key),) if api_key is not None else ()
    return text_frame(b'{"json":{%b}}' % b",".join((*key, *fields)))


def start_frame(api_key: str | None, beta: Any, snapshot: bytes) -> bytes:
    return frame(
        api_key,
        b'"type":"actor.start"',
        b'"persistedState":%b' % quote(beta),
        b'"snapshot":%b' % snapshot,
    )


def players_frame(api_key: str | None, *, joined: bool, count: int) -> bytes:
    kind = b"joined" if joined else b"left"
    return frame(api_key, b'"type":"player.%b"' % kind, b'"numberOfPlayers":%d' % count)


def error_frame(api_key: str | None, detail: str) -> bytes:
    return frame(api_key, b'"type":"actor.error"', b'"error":%b' % quote(detail))


def stop_frame(api_key: str | None) -> bytes:
    return frame(api_key, b'"type":"actor.stop"')


class Dialect:
    """How replicas of one version are told of inputs. `states` are the ids of its states, `early`
    says whether their XState may be 5.0.0-beta.37.
    """

    def __init__(self, states: frozenset[str], *, early: bool) -> None:
        self._states = states
        self._early = early
        self._encoders: OrderedDict[str | None, Callable[[Applied], bytes]] = OrderedDict()

    def encoder(self, api_key: str | None) -> Callable[[Applied], bytes]:
        """What encodes an input for all clients with this key."""
        known = self._encoders.get(api_key)
        if known is None:
            known = self._encoders[api_key] = self._make_encoder(api_key)
            if len(self._encoders) > KEYS_REMEMBERED:
                self._encoders.popitem(last=False)
        return known

    def _make_encoder(self, api_key: str | None) -> Callable[[Applied], bytes]:
        def encode(message: Applied) -> bytes:
            return b"".join(
                frame(api_key, b'"type":"actor.send"', b'"event":%b' % event)
                for event in message.encoded(self.events_of)
            )

        return encode

    def events_of(self, message: Applied) -> tuple[bytes, ...]:
        """What replicas are to be sent because of an input: JSON texts."""
        entry = message.entry
        if entry.kind is Kind.TIMER and entry.cause.startswith(_AFTER):
            return tuple(quote({"type": name}) for name in self._names_of(entry.cause))
        return events_of(entry)

    def _names_of(self, type_: str) -> Iterator[str]:
        """A delay that is over, as XState 5 calls it and as its version 5.0.0-beta.37 does. Each
        ignores the other's. Delays may have dots, and so have states' ids.
        """
        yield type_
        if not self._early:
            return
        parts = type_.removeprefix(_AFTER).split(".")
        for at in range(1, len(parts)):
            state = ".".join(parts[at:])
            if state in self._states:
                yield f"xstate.after({'.'.join(parts[:at])})#{state}"
                return


def events_of(entry: Entry) -> tuple[bytes, ...]:
    """What everybody did, as replicas are to be sent it."""
    if entry.kind is Kind.EVENT or entry.kind is Kind.PRESENCE:
        given = read_input(entry.input)
        return (_with_sender(bytes(given.subject), bytes(given.sender)),)
    return ()


def _with_sender(event: bytes, sender: bytes) -> bytes:
    """The event as the machine got it."""
    if sender == b"null":
        return event
    who = read_sender(sender)
    shown = quote(_Sender(who.id, who.user, who.roles or ()))
    fields = msgspec.json.decode(event, type=dict[str, msgspec.Raw])
    return quote(fields | {"sender": msgspec.Raw(shown)})

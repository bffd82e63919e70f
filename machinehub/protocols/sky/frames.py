"""Frames to Stately's clients: superjson with the recipient's own `apiKey`, without which they
ignore a frame.

What all clients of a session hear is encoded once for each key (`Encoders.of`), however many listen
with it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.edge.websocket_frames import text_frame
from machinehub.model import Kind
from machinehub.session.decide.identity import read_sender
from sandbox.protocol.inputs import read_input

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.model import Entry
    from machinehub.session.port import Applied

KEYS_REMEMBERED: Final = 4096
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


@lru_cache(maxsize=KEYS_REMEMBERED)
def encoder(api_key: str | None) -> Callable[[Applied], bytes]:
    """What encodes an input for all clients with this key."""

    def encode(message: Applied) -> bytes:
        return b"".join(
            frame(api_key, b'"type":"actor.send"', b'"event":%b' % event)
            for event in message.encoded(events_of_applied)
        )

    return encode


def events_of_applied(message: Applied) -> tuple[bytes, ...]:
    return events_of(message.entry)


def events_of(entry: Entry) -> tuple[bytes, ...]:
    """What replicas of the machine are to be sent because of an input: JSON texts."""
    if entry.kind is Kind.EVENT or entry.kind is Kind.PRESENCE:
        given = read_input(entry.input)
        return (_with_sender(bytes(given.subject), bytes(given.sender)),)
    if entry.kind is Kind.TIMER and entry.cause.startswith(_AFTER):
        return _after_events(entry.cause)
    return ()


def _with_sender(event: bytes, sender: bytes) -> bytes:
    """The event as the machine got it."""
    if sender == b"null":
        return event
    who = read_sender(sender)
    shown = quote(_Sender(who.id, who.user, who.roles or ()))
    fields = msgspec.json.decode(event, type=dict[str, msgspec.Raw])
    return quote(fields | {"sender": msgspec.Raw(shown)})


def _after_events(type_: str) -> tuple[bytes, ...]:
    """A delay that is over, as XState 5 calls it and as its version 5.0.0-beta.37 does. Each
    ignores the other's.
    """
    delay, _, state = type_.removeprefix(_AFTER).partition(".")
    names = type_, f"xstate.after({delay})#{state}"
    return tuple(quote({"type": name}) for name in names)
